"""Activation checkpointing of a layer, with a second derivative and inside vmap.

`torch.utils.checkpoint` runs a layer again when its gradient is wanted, but by then the layer holds
the user's parameters again, not the adapted ones; and it saves nothing where that gradient is
itself differentiated. Here a layer is a pure function of all tensors that it uses, of which only
those are kept: its gradient runs it once more, and the gradient's gradient both.

Whatever leaves a layer by another way than its result (an attribute, what a hook keeps, a field of
an object that it returns) carries the graph of that one run, so that its gradient is what it is
without checkpointing, and so is what it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import vmap
from torch.overrides import _get_current_function_mode_stack
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from fastmaml.engine.base import functorch
from fastmaml.engine.base.storages import has_memory
from fastmaml.engine.model.functional_call import functional
from fastmaml.engine.routing.mode import Routing
from fastmaml.engine.step.lasting_graph import LastingGraph
from fastmaml.engine.step.layer_settings import LayerSettings
from fastmaml.engine.step.own_alone import OwnAlone


def checkpointed(routing: Routing, function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``, of which a derivative keeps the inputs only.

    Args:
        routing: the mode that is active.
        function: a partial of a layer's ``forward`` or ``__call__``, as transformers makes it.
        args: trees of tensors.

    Raises:
        ValueError: the layer uses something trainable that is neither its own nor an argument, or
            writes to an argument; when it runs again, its settings are not what they were.
    """
    layer = _layer_of(function)
    if (
        not isinstance(function, partial)
        or layer is None
        or forward_ad._current_level >= 0
        or not torch.is_grad_enabled()
        or _transformed()
    ):
        return function(*args)  # forward mode keeps no activations for long
    own_tensors = (*layer.named_parameters(), *layer.named_buffers())
    tensors = {n: x for n, x in own_tensors if x.requires_grad or has_memory(x)}
    if any(table is x for table, _ in routing.rows for x in tensors.values()):
        return function(*args)
    buffers = (n for n, _ in layer.named_buffers() if not n.endswith(_COUNT))
    if not routing.own_statistics and any(buffers):
        return function(*args)  # statistics are written without a trace
    given = (tensors, args, function.keywords, routing.key)
    leaves, spec = tree_flatten(given)
    own = [x for x in leaves if isinstance(x, Tensor)]
    run = _Run(routing, function, layer, leaves, spec)
    try:
        with LastingGraph():
            found = _Checkpoint.apply(run, *own)
    except _WritesBuffersError:
        routing.draws = run.draws
        return function(*args)  # what it writes is to be seen, and once
    rest, (layout, tree) = iter(found), run.layout
    run.layout = ([], None)  # it may hold objects with tensors
    return tree_unflatten([next(rest) if x is _TENSOR else x for x in layout], tree)


_TENSOR = object()


def _transformed() -> bool:
    """Whether this is inside a derivative of `torch.func`, which a Function's run is not part of.

    What leaves a layer otherwise than as its result would have none.
    """
    stack = functorch.get_interpreter_stack() or []
    return any(x.key() != functorch.TransformType.Vmap for x in stack)


def _layer_of(function: Any) -> nn.Module | None:
    """The module whose method this is a partial of."""
    if not isinstance(function, partial):
        return None
    owner = function.args[0] if function.args else getattr(function.func, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


class _WritesBuffersError(Exception):
    """A layer changes its buffers, so that another run would begin with others."""


@dataclass
class _Run:
    """The layer as a function of tensors, which it can be called with again.

    Attributes:
        layout: its first result's leaves, `_TENSOR` for tensors, and their tree.
        ran: whether it has run; any other time it runs again.
    """

    routing: Routing
    function: Any
    layer: nn.Module
    leaves: list[Any]
    spec: Any
    layout: tuple[list[Any], Any] = ([], None)
    ran: bool = False

    def __post_init__(self) -> None:
        self.draws = self.routing.draws
        self.settings = LayerSettings(self.layer)
        device = next(x.device.type for x in self.leaves if isinstance(x, Tensor))
        self.autocast = (
            device,
            torch.get_autocast_dtype(device),
            torch.is_autocast_enabled(device),
        )

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors that the layer returns."""
        if self.ran:
            self.settings.check()
        rest = iter(tensors)
        filled = [next(rest) if isinstance(x, Tensor) else x for x in self.leaves]
        state, args, keywords, key = tree_unflatten(filled, self.spec)
        buffers, arguments = self._copied(state), _versions((args, keywords))
        # Other objects: no mode that knows the arguments makes them what an in-place call gives.
        args, keywords = tree_map_only(Tensor, _same, (args, keywords))
        layer = _Plain(self.layer, partial(self.function.func, *self.function.args, **keywords))
        with ExitStack() as stack:
            if self.ran:  # when no mode is active any more
                device, dtype, enabled = self.autocast
                stack.enter_context(torch.autocast(device, dtype, enabled, cache_enabled=False))
            if self.routing not in _get_current_function_mode_stack():
                stack.enter_context(self.routing)  # under vmap a Function runs without any mode
            if not self.ran:
                given = tree_leaves((state, args, keywords, key))
                stack.enter_context(OwnAlone(type(self.layer).__name__, given))
            stack.enter_context(self.routing.at(key, self.draws, keep=not self.ran))
            result = functional(layer, {f"layer.{n}": x for n, x in state.items()}, args)
        if layer.replaced or any(now != was for now, was in buffers()):
            raise _WritesBuffersError
        self._check_arguments(arguments)
        found, spec = tree_flatten(result)
        if not self.ran:
            self.layout = [_TENSOR if isinstance(x, Tensor) else x for x in found], spec
            self.settings.has_run()
            self.ran = True
        return tuple(x for x in found if isinstance(x, Tensor))

    def _check_arguments(self, before: list[tuple[Tensor, int]]) -> None:
        for x, version in before:
            if x._version != version:
                raise ValueError(
                    f"a checkpointed layer, {type(self.layer).__name__}, writes to an argument of "
                    f"shape {list(x.shape)} in place, so that it would run again with another one: "
                    "compute beside it (inplace=False), or leave this layer out of gradient "
                    "checkpointing."
                )

    def _copied(self, state: dict[str, Tensor]) -> Callable[[], list[tuple[int, int]]]:
        """Exchange buffers for copies; returns what tells how often each was written, and was.

        BatchNorm counts its calls, which nothing reads where statistics are the batch's own: where
        they are not, it writes to others, too.
        """
        with torch._C.DisableTorchFunction():  # an in-place call is to stay one
            copies = {n: state[n].clone() for n, _ in self.layer.named_buffers() if n in state}
        state.update(copies)
        plain = {n: functorch.unwrapped(x) for n, x in copies.items() if not n.endswith(_COUNT)}
        before = {n: x._version for n, x in plain.items()}
        return lambda: [(x._version, before[n]) for n, x in plain.items()]


_COUNT = "num_batches_tracked"


def _versions(tree: Any) -> list[tuple[Tensor, int]]:
    """The memory of each tensor, and how often it was written."""
    plain = [functorch.unwrapped(x) for x in tree_leaves(tree) if isinstance(x, Tensor)]
    return [(x, x._version) for x in plain if not x.is_inference()]


def _same(x: Tensor) -> Tensor:
    """The tensor as another object."""
    if type(x) is not Tensor or x.layout is not torch.strided:
        return x
    with torch._C.DisableTorchFunction():
        return x.view_as(x)


class _Plain(nn.Module):
    """A layer whose call is that of a function that uses it."""

    def __init__(self, layer: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.function = layer, function
        self.replaced = False
        """Whether the layer has other buffers after its call."""

    def forward(self, *args: Any) -> Any:
        before = [id(b) for b in self.layer.buffers()]
        result = self.function(*args)
        self.replaced = before != [id(b) for b in self.layer.buffers()]
        return result


def _leaves(tensors: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    return [x.detach().requires_grad_(w) for x, w in zip(tensors, wanted, strict=True)]


def _batched(run: Callable[..., Any], in_dims: Sequence[int | None]) -> Callable[..., Any]:
    return vmap(run, in_dims=tuple(in_dims), randomness="error")


def _cut(x: Tensor, given: Sequence[Tensor]) -> Tensor:
    """The tensor without its graph; PyTorch is to know where it is a view of what was given."""
    bases = [y for g in given for y in (g, g._base) if y is not None]
    own = any(x is y or x._base is y for y in bases)
    return x.view_as(x) if own else x.detach()


class _Checkpoint(torch.autograd.Function):
    """The layer; its backward is `_Backward`."""

    @staticmethod
    def forward(run: Any, *tensors: Tensor) -> Any:
        with torch.enable_grad():  # of what leaves it otherwise than as its result
            found = run(*tensors)
        return tuple(_cut(x, tensors) for x in found)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.run = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        wanted = ctx.needs_input_grad[1:]
        given = (*cotangents, *ctx.saved_tensors)
        found = iter(_Backward.apply(ctx.run, wanted, len(cotangents), *given))
        return None, *(next(found) if w else None for w in wanted)

    @staticmethod
    def vmap(info: Any, in_dims: Any, run: Any, *tensors: Tensor) -> Any:
        found = _Checkpoint.apply(_batched(run, in_dims[1:]), *tensors)
        return found, tuple(0 for _ in found)


class _Backward(torch.autograd.Function):
    """The layer's vector-Jacobian product: of the cotangents, then of its inputs."""

    @staticmethod
    def forward(run: Any, wanted: Any, count: int, *tensors: Tensor) -> Any:
        with torch.enable_grad():
            inputs = _leaves(tensors[count:], wanted)
            return _pulled(run, inputs, wanted, tensors[:count], create_graph=False)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.run, ctx.wanted, ctx.count = inputs[:3]
        ctx.save_for_backward(*inputs[3:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        needs = ctx.needs_input_grad[3:]
        with torch.enable_grad():
            tensors = _leaves(ctx.saved_tensors, needs)
            for x, w in zip(tensors[ctx.count :], ctx.wanted, strict=True):
                x.requires_grad_(w)
            first = _pulled(
                ctx.run, tensors[ctx.count :], ctx.wanted, tensors[: ctx.count], create_graph=True
            )
            pairs = [(y, c) for y, c in zip(first, cotangents, strict=True) if y.requires_grad]
            chosen = [x for x, n in zip(tensors, needs, strict=True) if n]
            found = iter(
                torch.autograd.grad(
                    [y for y, _ in pairs], chosen, [c for _, c in pairs], allow_unused=True
                )
            )
        return None, None, None, *(next(found) if n else None for n in needs)


def _pulled(
    run: Callable[..., Any],
    inputs: Sequence[Tensor],
    wanted: Sequence[bool],
    cotangents: Sequence[Tensor],
    *,
    create_graph: bool,
) -> tuple[Tensor, ...]:
    """The gradients for those inputs that are wanted, zero where nothing arrives."""
    outputs = run(*inputs)
    pairs = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if y.requires_grad]
    return torch.autograd.grad(
        [y for y, _ in pairs],
        [x for x, w in zip(inputs, wanted, strict=True) if w],
        [c for _, c in pairs],
        create_graph=create_graph,
        materialize_grads=True,
    )
