"""What some PyTorch functions do while a model runs inside the meta-step.

An unmodified model calls `F.batch_norm`, `F.dropout`, `F.scaled_dot_product_attention`. Inside a
meta-step these must use the task's own statistics, draw a mask that can be drawn again, and have
second derivatives, forwards too (`written_out`). A `TorchFunctionMode` sees to that. It is active
only while the model runs; nothing is patched, and every other function is left alone.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from fastmaml import ops
from fastmaml.engine.base.seeds import python_seed
from fastmaml.engine.derivatives.sparse_constants import with_sparse_constants
from fastmaml.engine.routing.attention import attention, embedding, embedding_bag
from fastmaml.engine.routing.bias_alone import bias_alone, without_bias
from fastmaml.engine.routing.decompositions import ALWAYS, FORWARD_MODE
from fastmaml.engine.routing.row_tables import asks_about
from fastmaml.engine.routing.second_order import SECOND_ORDER
from fastmaml.engine.routing.to_ops import OpRouting
from fastmaml.engine.routing.torch_regions import inside, keeps_inputs, kept_without_vmap, set_aside
from fastmaml.models.per_step import per_step

_RANDOM_FUNCTIONS = {
    "rand",
    "randn",
    "rand_like",
    "randn_like",
    "randint",
    "randint_like",
    "randperm",
    "normal",
    "bernoulli",
    "binomial",
    "multinomial",
    "poisson",
    "native_dropout",
    "feature_dropout",
    "gumbel_softmax",
    "_standard_gamma",
    "_sample_dirichlet",
    "bernoulli_",
    "uniform_",
    "normal_",
    "exponential_",
    "random_",
    "geometric_",
    "cauchy_",
    "log_normal_",
    "dropout_",
    "alpha_dropout_",
    "feature_dropout_",
    "feature_alpha_dropout_",
    "rrelu_",
}
_STAND_INS = {**ALWAYS, **SECOND_ORDER}
_RANDOM_IN_TRAINING = {"rrelu": 3, "alpha_dropout": 2, "feature_alpha_dropout": 2}
"""Functions that draw only in training, and the place of that argument."""


def unhidden(function: Any) -> Any:
    """A copy of a functional whose inner calls a mode sees: a handler runs with the mode off."""
    return types.FunctionType(
        function.__code__,
        {**vars(F), "has_torch_function": lambda *_: False},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


class Routing(TorchFunctionMode):
    """Active while the model runs on one task (or, under vmap, on all of them).

    Args:
        key: int64 scalar that names the task and the step; random draws depend on it alone.
        own_statistics: normalise by the batch at hand whatever the module's mode, and leave
            running statistics alone.
        backend: what runs the functions that have an op family; "reference" is PyTorch itself.
        fuses: see `OpRouting`.
        rows: pairs of a gathered embedding table and the indices that its rows stand for.
        step: the row that modules with rows of each inner step take (`models.per_step`).
    """

    def __init__(
        self,
        key: Tensor,
        own_statistics: bool,
        backend: str = "reference",
        fuses: bool = False,
        rows: Sequence[tuple[Tensor, Tensor]] = (),
        step: int = 0,
    ) -> None:
        super().__init__()
        self.key = key
        self.rows = rows
        self.step = step
        self.own_statistics = own_statistics
        self.draws = 0
        self.nested = 0
        """In how many checkpointed layers this is, which run once more later."""
        self.ops = None if backend == "reference" else OpRouting(backend, own_statistics, fuses)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`, or what stands in for it."""
        kwargs = dict(kwargs or {})
        if inside():
            with set_aside():
                return self.__torch_function__(func, types, args, kwargs)
        if keeps_inputs(func, args):
            return kept_without_vmap(args[0])
        if forward_ad._current_level >= 0 and not torch.is_grad_enabled():
            # The model's own no_grad() makes a constant, which to forward mode it is not by itself.
            with forward_ad._set_fwd_grad_enabled(False):
                return self._routed(func, args, kwargs)
        return self._routed(func, args, kwargs)

    def _routed(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if self.rows and func is not F.embedding and not asks_about(func):
            self._require_lookup(func, args)
        if self.ops is not None:
            result = self.ops(func, args, kwargs)
            if result is not NotImplemented:
                return result
        bias = bias_alone(func, args, kwargs)
        if bias is not None:
            return self._routed(func, *without_bias(func, args, kwargs)) + bias
        handler = _HANDLERS.get(func)
        if handler is not None:
            return handler(self, func, *args, **kwargs)
        if func in _STAND_INS:
            return _STAND_INS[func](*args, **kwargs)
        if forward_ad._current_level >= 0:
            if func in FORWARD_MODE:
                return FORWARD_MODE[func](*args, **kwargs)
            result = with_sparse_constants(func, args, kwargs)
            if result is not NotImplemented:
                return result
        if _draws(func, args, kwargs):
            return self.replayed(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _require_lookup(self, func: Any, args: Any) -> None:
        """Raise RuntimeError where a table of some rows is used as if it had all."""
        for x in args:
            if isinstance(x, Tensor) and any(x is table for table, _ in self.rows):
                name = getattr(func, "__name__", func)
                raise RuntimeError(
                    f"the model uses an embedding's table in {name}, where it only looked rows up "
                    "when this kind of call was planned: please report it; a scope= "
                    "without that table goes around it"
                )

    def native(self, op: str, *tensors: Tensor | None) -> str | None:
        """The backend that has the op for these tensors; None where plain PyTorch is to run."""
        there = self.ops is not None and not torch.is_autocast_enabled(self.key.device.type)
        return self.ops.backend if there and self.ops.covers(op, *tensors) else None  # type: ignore[union-attr]

    def may_become(self, x: Tensor) -> bool:
        """See `Follower`: what is made in a pass is no table."""
        return True

    def is_again(self, x: Tensor) -> bool:
        """See `Follower`."""
        return False

    def exchanged(self, x: Tensor, y: Tensor) -> None:
        """See `Follower`."""
        if self.ops is not None:
            self.ops.exchanged(x, y)

    def dropout_mask(self, shape: list[int], p: float, like: Tensor) -> Tensor:
        """The mask of the next draw; see `ops.dropout_mask`."""
        backend = self.native("dropout_mask", like) or "reference"
        key = self.next_key().unsqueeze(0)
        return ops.dropout_mask(key, shape, p, like, backend=backend).squeeze(0)

    def next_key(self) -> Tensor:
        """A key for the next random draw of this forward pass."""
        self.draws += 1
        return self.key + self.draws

    @contextlib.contextmanager
    def at(self, key: Tensor, draws: int, keep: bool) -> Iterator[None]:
        """With another key and number of draws; `keep` counts what is drawn meanwhile."""
        before = self.key, self.draws
        self.key, self.draws = key, draws
        self.nested += 1
        try:
            yield
        finally:
            self.nested -= 1
            self.key = before[0]
            self.draws = self.draws if keep else before[1]

    def replayed(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Any other random function: draw from a generator state that only the key decides."""
        key = self.next_key()
        with _seeded(python_seed(key, func.__name__), key.device):
            return func(*args, **kwargs)


def _draws(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    name = getattr(func, "__name__", "")
    if name in _RANDOM_IN_TRAINING:
        place = _RANDOM_IN_TRAINING[name]
        return bool(args[place] if len(args) > place else kwargs.get("training", False))
    return name in _RANDOM_FUNCTIONS


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The generators of the CPU and of `device` at `seed`, and as they were afterwards."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [g.get_state() for g in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _batch_norm(
    mode: Routing,
    func: Any,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if mode.own_statistics:
        running_mean, running_var, training = None, None, True
    return func(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _instance_norm(
    mode: Routing,
    func: Any,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if mode.own_statistics:
        running_mean, running_var, use_input_stats = None, None, True
    return func(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _dropout_over(dimensions: int | None) -> Callable[..., Tensor]:
    """Dropout of single elements (None) or of whole channels over that many last dimensions."""

    def handler(
        mode: Routing,
        func: Any,
        input: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> Tensor:
        if not training or p == 0:
            return func(input, p, training, inplace)
        kept = input.ndim if dimensions is None else input.ndim - dimensions
        shape = [*input.shape[:kept], *[1] * (input.ndim - kept)]
        mask = mode.dropout_mask(shape, p, input)
        return input.mul_(mask) if inplace else input * mask

    return handler


def _per_step(mode: Routing, func: Any, table: Tensor, step: int | None = None) -> Tensor:
    return per_step(table, mode.step)


def _multi_head_attention(mode: Routing, func: Any, *args: Any, **kwargs: Any) -> Any:
    with mode:
        return unhidden(func)(*args, **kwargs)


@contextlib.contextmanager
def without_cudnn() -> Iterator[None]:
    """cuDNN off inside.

    `torch.backends.cudnn.flags` does more, and raises where TF32 was set for convolutions alone; to
    set `torch.backends.cudnn.enabled` raises once torch's testing modules were imported.
    """
    enabled = torch._C._get_cudnn_enabled()
    torch._C._set_cudnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_cudnn_enabled(enabled)


def _recurrent(mode: Routing, func: Any, *args: Any, **kwargs: Any) -> Any:
    """cuDNN's recurrent kernels have no second derivative."""
    # Packed: (data, batch_sizes, state, weights, ...); else (input, state, weights, biases, ...).
    packed = not isinstance(args[3], bool)
    dropout, training = args[6:8] if packed else args[5:7]
    run = mode.replayed if dropout > 0 and training else lambda f, *a, **k: f(*a, **k)
    with without_cudnn():
        return run(func, *args, **kwargs)


_HANDLERS: dict[Any, Callable[..., Any]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.dropout: _dropout_over(None),
    torch.dropout: _dropout_over(None),
    F.dropout1d: _dropout_over(1),
    F.dropout2d: _dropout_over(2),
    F.dropout3d: _dropout_over(3),
    per_step: _per_step,
    F.embedding: embedding,
    F.embedding_bag: embedding_bag,
    F.scaled_dot_product_attention: attention,
    F.multi_head_attention_forward: _multi_head_attention,
    torch.lstm: _recurrent,
    torch.gru: _recurrent,
    torch.rnn_tanh: _recurrent,
    torch.rnn_relu: _recurrent,
}
