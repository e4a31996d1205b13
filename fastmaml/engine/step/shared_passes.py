"""Support passes that share what they have in common.

Where only a part of a model adapts (its head, as in ANIL; its last layers; biases), everything that
a support pass computes before it meets an adapted parameter is the same at every inner step. It is
computed at the first step only: later passes get the same tensors, so autograd's graph has that
part once too, and the meta-gradient goes back through it once. The model need not be written in any
way for this: a mode watches its calls to torch, and a call of which everything given is known to be
as in the pass before gets the result of that pass.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves

from fastmaml.engine.base import functorch
from fastmaml.engine.routing.mode import Routing
from fastmaml.models.per_step import per_step
from fastmaml.rules.base import Tensors

Token = tuple[Any, ...]
"""Which tensor of a pass one is, alike in every pass."""

_VALUES: tuple[type, ...] = (bool, int, str, type(None), type(...))
_VALUES += (torch.dtype, torch.device, torch.layout, torch.memory_format)
_UNSEEN = {
    "__set__",
    "data",
    "grad",
    "numpy",
    "set_",
    "storage",
    "untyped_storage",
    "data_ptr",
    "__array__",
    "__dlpack__",
    "detach_",
    "retain_grad",
    "backward",
    "register_hook",
    "register_post_accumulate_grad_hook",
}
"""What changes a tensor, or may, and its version does not tell: then nothing is shared."""


@final
class SharedPasses:
    """Of the support passes of one inner loop.

    Passes share with each other where they have the same shared parameters: a step that is held
    constant has them without their graph, and others with it.
    """

    def __init__(self) -> None:
        self._detached: dict[int, tuple[Tensors, Tensors]] = {}
        self._kept: dict[Token, tuple[Any, Kept]] = {}

    def detached(self, shared: Tensors) -> Tensors:
        """The same parameters without a graph, and the same ones every time."""
        if id(shared) not in self._detached:
            self._detached[id(shared)] = shared, {n: x.detach() for n, x in shared.items()}
        return self._detached[id(shared)][1]

    def of(self, shared: Tensors, inputs: Any = ()) -> Kept:
        """What passes with these shared parameters, over these inputs, have in common.

        Args:
            shared: the very same dict in every such pass.
            inputs: a tree of which the tensors are the very same ones.
        """
        leaves, spec = tree_flatten(inputs)
        own = (
            (id(x), _version(x)) if isinstance(x, Tensor) else (type(x), repr(x)) for x in leaves
        )
        return self._kept.setdefault((id(shared), *own, spec), ((shared, inputs), Kept()))[1]

    def clear(self) -> None:
        """Let go of what the steps so far had in common."""
        self._detached.clear()
        self._kept.clear()


class _Stored(NamedTuple):
    """A tensor that a call returned, without its level of vmap, and how it was then."""

    token: Token
    value: Tensor
    dimension: int | None
    version: int
    requires_grad: bool

    def unchanged(self) -> bool:
        """Whether it is still as it was."""
        now = self.value._version, self.value.requires_grad
        return now == (self.version, self.requires_grad)


@final
@dataclass
class Kept:
    """The calls of passes, and what they returned.

    Attributes:
        made: results by function, arguments, and how often the pass had made this call before.
        numbers: of results, no two alike.
        alike: whether passes can be held against each other at all.
    """

    made: dict[Token, tuple[Any, list[_Stored | None]]] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    alike: bool = True


class _Known(NamedTuple):
    """A tensor that every pass has; kept, or its id could become another one's."""

    tensor: Tensor
    token: Token
    version: int
    again: bool
    """Whether a pass before computed it, whose memory it is, too."""


class SharedPass(TorchFunctionMode):
    """Active while the model runs on a support set, above the `Routing`.

    Args:
        kept: by the passes before, and for those to come.
        routing: which tells whether a call drew at random.
        same: a tree of tensors that are alike in every pass, the same tree in each.
    """

    def __init__(self, kept: Kept, routing: Routing, same: Any) -> None:
        super().__init__()
        self.kept, self.routing = kept, routing
        self.level = functorch.maybe_current_level()
        self.calls: Counter[Token] = Counter()
        self.known: dict[int, _Known] = {}
        for i, x in enumerate(tree_leaves(same)):
            if isinstance(x, Tensor):
                self._know(x, ("given", i))

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`, or take the result that it had in the pass before."""
        kwargs = kwargs or {}
        key = self._key(func, args, kwargs)
        if key is None:
            return func(*args, **kwargs)
        key = *key, self.calls[key]
        self.calls[key[:-1]] += 1
        if key in self.kept.made:
            spec, stored = self.kept.made[key]
            if all(x is None or x.unchanged() for x in stored):
                return self._again(spec, stored)
        draws = self.routing.draws
        result = func(*args, **kwargs)
        if self.routing.draws == draws:
            self._keep(key, result, (args, kwargs))
        return result

    def may_become(self, x: Tensor) -> bool:
        """See `Follower`; of what vmap does not batch, these very objects are kept for others."""
        return id(x) not in self.known or _plain(x, self.level)[1] is not None

    def is_again(self, x: Tensor) -> bool:
        """See `Follower`: what a pass had overwritten is not from there, but computed anew."""
        found = self.known.get(id(x))
        if found is None or not found.again:
            return False
        others = [other.tensor for other in self.known.values() if other is not found]
        with torch._C.DisableTorchFunction():  # this is no call of the model's
            mine = _memory(x)
            return all(_memory(other) != mine for other in others)

    def exchanged(self, x: Tensor, y: Tensor) -> None:
        """See `Follower`."""
        first, second = self.known.pop(id(x), None), self.known.pop(id(y), None)
        if first is not None:
            self.known[id(y)] = first._replace(tensor=y)
        if second is not None:
            self.known[id(x)] = second._replace(tensor=x)

    def _key(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Token | None:
        """Of a call, all of whose arguments are as in the pass before; None of any other."""
        if not self.kept.alike or self.routing.nested:
            return None
        name = getattr(func, "__name__", "")
        if name == "__get__":  # of an attribute, whose name the descriptor has
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        if name in _UNSEEN:
            self.kept.alike = False
            self.kept.made.clear()
            return None
        if func is per_step:
            return None  # another row at every step
        if functorch.maybe_current_level() != self.level:
            return None  # inside a transform of the model's own
        if name == "requires_grad_":
            return None  # marks this pass's own tensor
        try:
            device = next((x.tensor.device.type for x in self.known.values()), "cpu")
            mode = torch.is_grad_enabled(), torch.is_autocast_enabled(device)
            return func, mode, self._token(args), self._token(dict(kwargs))
        except _NotAlikeError:
            return None

    def _token(self, x: Any) -> Any:
        """What stands for an argument in every pass."""
        if isinstance(x, Tensor):
            found = self.known.get(id(x))
            if found is None or _plain(x, self.level)[0]._version != found.version:
                raise _NotAlikeError
            return found.token
        if isinstance(x, float):
            return float, x.hex()  # 0.0 is no -0.0
        if isinstance(x, _VALUES):
            return type(x), x
        if isinstance(x, tuple | list):
            return type(x), *map(self._token, x)
        if type(x) is dict:
            return dict, *((k, self._token(v)) for k, v in x.items())
        if isinstance(x, slice):
            return slice, self._token((x.start, x.stop, x.step))
        raise _NotAlikeError

    def _keep(self, key: Token, result: Any, given: Any) -> None:
        """Remember the result, if it is tensors that nothing given was changed for."""
        single = isinstance(result, Tensor)
        found = [result] if single else result
        if type(found) not in (tuple, list) or not all(x is None or _is_tensor(x) for x in found):
            return
        if any(self._changed(x) for x in tree_leaves(given)):
            return
        number, stored = next(self.kept.numbers), []
        for i, x in enumerate(found):
            stored.append(None if x is None else self._stored(x, (number, i)))
        self.kept.made[key] = (None if single else type(result)), stored

    def _stored(self, x: Tensor, token: Token) -> _Stored:
        """A result; a call may also return what it was given."""
        token = self.known[id(x)].token if id(x) in self.known else token
        value, dimension = _plain(x, self.level)
        self._know(x, token)
        return _Stored(token, value, dimension, value._version, value.requires_grad)

    def _changed(self, x: Any) -> bool:
        known = self.known.get(id(x)) if isinstance(x, Tensor) else None
        return known is not None and _plain(x, self.level)[0]._version != known.version

    def _again(self, spec: Any, stored: list[_Stored | None]) -> Any:
        """The result of the pass before, at this pass's level of vmap."""
        found: list[Tensor | None] = []
        for x in stored:
            found.append(None if x is None else self._restored(x))
        return found[0] if spec is None else spec(found)

    def _restored(self, x: _Stored) -> Tensor:
        found = x.value
        if x.dimension is not None and self.level is not None:
            found = functorch.add_batch_dim(x.value, x.dimension, self.level)
        self._know(found, x.token, again=True)
        return found

    def _know(self, x: Tensor, token: Token, again: bool = False) -> None:
        version = _plain(x, self.level)[0]._version
        self.known.setdefault(id(x), _Known(x, token, version, again))


def _is_tensor(x: Any) -> bool:
    return isinstance(x, Tensor)


class _NotAlikeError(Exception):
    """Something that a call is given is not known from the pass before."""


def _memory(x: Tensor) -> int:
    x = functorch.unwrapped(x)
    return x.untyped_storage()._cdata if x.layout is torch.strided else id(x)


def _version(x: Tensor) -> int:
    """How often it was written to, whatever it is a batch of."""
    return functorch.unwrapped(x)._version


def _plain(x: Tensor, level: int | None) -> tuple[Tensor, int | None]:
    """A tensor without this level of vmap, and which of its dimensions that was."""
    if level is None or not functorch.is_batchedtensor(x) or functorch.maybe_get_level(x) != level:
        return x, None
    return functorch.get_unwrapped(x), functorch.maybe_get_bdim(x)
