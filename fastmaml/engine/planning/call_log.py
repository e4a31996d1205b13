"""What a model and a loss call of PyTorch, on one task, and what follows from the sizes of data.

Code that looks at a size may do something else at another one: take another branch, another layer,
a chunk more. Before anything that is known at some sizes is used at others, the code runs there
once, on one task and without a derivative, and its calls are held against those that are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fastmaml.engine.base.sizes import Form, Number, Sizes, Variables, fitted
from fastmaml.engine.guards.sight import root
from fastmaml.engine.step.program import Call
from fastmaml.gradients.base import leaves_of

LEAST_LOGS = 3
"""From which numbers are foretold."""

MOST_LOGS = 6
"""That are kept."""


@dataclass(frozen=True)
class Log:
    """The calls of a support and a query pass, and of a head's beginning where there is one.

    Attributes:
        calls: everything but numbers: functions, which tensor each was given, dtypes, words.
        numbers: sizes of tensors and other numbers, in order.
        outputs: of the query pass, ``[1, ...]``.
        outside: what calls were given that none had made; their ids are among `calls`.
    """

    calls: tuple[Any, ...]
    numbers: tuple[Number, ...]
    outputs: Any
    outside: tuple[Any, ...]


class UnloggableError(Exception):
    """The code does something that its calls do not tell; the message says what."""


def logged(call: Call) -> Log:
    """Run the model and the loss on the support and the query set of the first task.

    Raises:
        UnloggableError: it takes derivatives of its own by code that runs later, or gives PyTorch
            objects in which numbers may be that cannot be seen.
    """
    passes: list[_Pass] = []

    def listen(given: Any) -> _Pass:
        passes.append(_Pass(given))
        return passes[-1]

    how: dict[str, Any] = {"batched": False, "fuses": False, "backend": "reference"}
    forward = replace(call.program.forward, listen=listen, **how)
    loop = call.part(0, 1).by(forward=forward, chunk=1).loop()
    with torch.enable_grad():
        meta = leaves_of(call.meta)
        carry, shared = loop.start(meta), meta.shared
        query = loop.query(loop.steps, carry.parameters, shared)
        if forward.query_loss is None and _same_sizes(loop.episodes):
            passes.append(passes[-1])
        else:
            loop.support_losses(0, carry.parameters, shared)
    _require_known_derivatives(query.losses)
    return Log(
        tuple(call for one in passes for call in one.calls),
        tuple(number for one in passes for number in one.numbers),
        query.outputs,
        tuple(x for one in passes for x in one.outside),
    )


def _same_sizes(data: Any) -> bool:
    """Whether the support set looks as the query set does, so that one pass tells of both."""
    found = [
        [(x.shape, x.dtype) if isinstance(x, Tensor) else x for x in tree_leaves(part)]
        for part in data.tree()
    ]
    return found[0] == found[1]


def _require_known_derivatives(losses: Tensor) -> None:
    """Raise UnloggableError where the user's own code runs in a derivative."""
    waiting, seen = [losses.grad_fn] if losses.grad_fn is not None else [], set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        module = getattr(type(node), "__module__", "")
        if hasattr(type(node), "_forward_cls") and root(module) not in ("torch", "fastmaml"):
            raise UnloggableError(f"{type(node).__name__} has a derivative of its own")
        waiting += [n for n, _ in node.next_functions if n is not None]


_VALUES: tuple[type, ...] = (bool, str, type(...), torch.dtype, torch.device)
_VALUES += (torch.layout, torch.memory_format)


_HOOKS = ("register_hook", "register_post_accumulate_grad_hook")


@final
class _Pass(TorchFunctionMode):
    """Notes every call of a pass, by where what it is given comes from.

    Args:
        given: a tree of the tensors that the code is given, the same tree in each pass.
    """

    def __init__(self, given: Any) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self.numbers: list[Number] = []
        self.outside: list[Any] = []
        self._tokens: dict[int, Any] = {}
        self._alive: list[Any] = []  # an id must not be used again meanwhile
        for i, x in enumerate(tree_leaves(given)):
            if isinstance(x, Tensor):
                self._token(x, ("given", i))

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in _HOOKS:
            raise UnloggableError("it sets a hook, which runs later")
        if name == "__get__":  # of an attribute, as x.T or x.shape
            result = func(*args, **kwargs)
            if not isinstance(result, Tensor):
                return result
            self.calls.append((func, self._note(args)))
        else:
            self.calls.append((func, self._note(args), self._note(kwargs)))
            result = func(*args, **kwargs)
        number = len(self.calls)
        for i, x in enumerate([result] if isinstance(result, Tensor) else tree_leaves(result)):
            if isinstance(x, Tensor) and id(x) not in self._tokens:
                self._token(x, (number, i))
        return result

    def _token(self, x: Tensor, token: Any) -> Any:
        self._alive.append(x)
        self._tokens[id(x)] = token
        return token

    def _note(self, x: Any) -> Any:
        """What stands for it; its numbers go to the others."""
        if isinstance(x, Tensor):
            return self._tensor(x)
        if type(x) in (int, float):
            self.numbers.append(x)
            return type(x)
        if isinstance(x, tuple | list):
            return type(x), *map(self._note, x)
        if isinstance(x, dict):
            return dict, *((k, self._note(v)) for k, v in x.items())
        if isinstance(x, slice):
            return slice, *map(self._note, (x.start, x.stop, x.step))
        if x is None or isinstance(x, _VALUES):
            return type(x), x
        if not callable(x) and not isinstance(x, torch.Generator):
            raise UnloggableError(f"it gives PyTorch a {type(x).__name__}")
        self.outside.append(x)
        return type(x), id(x)

    def _tensor(self, x: Tensor) -> Any:
        token = self._tokens.get(id(x))
        if token is None:
            token = self._token(x, ("outside", id(x)))
            self.outside.append(x)
        with torch._C.DisableTorchFunction():  # other modes need not hear of it
            self.numbers += x.shape
            return token, x.ndim, x.dtype


@final
class Logs:
    """The calls that are known, and at which sizes.

    Attributes:
        calls: alike in all of them.
    """

    def __init__(self, sizes: Sizes, log: Log) -> None:
        self.calls = log.calls
        self._outside = log.outside  # whose ids must not be another's
        self._samples: list[tuple[Sizes, tuple[Number, ...]]] = []
        self._variables = Variables((), ())
        self._forms: list[Number | Form] | None = None
        self.add(sizes, log)

    def alike(self, log: Log) -> bool:
        """Whether these are the same calls, but for numbers."""
        return log.calls == self.calls

    def add(self, sizes: Sizes, log: Log) -> None:
        """Learn from one that is alike."""
        self._samples = [*self._samples, (sizes, log.numbers)][-MOST_LOGS:]
        self._forms = None
        if len(self._samples) < LEAST_LOGS:
            return
        self._variables = Variables.of([s for s, _ in self._samples])
        values = [self._variables.values(s) or () for s, _ in self._samples]
        known: dict[str, Number | Form | None] = {}
        forms: list[Number | Form] = []
        for numbers in zip(*(n for _, n in self._samples), strict=True):
            key = repr(numbers)  # 1 is not 1.0, nor 0.0 -0.0
            if key not in known:
                known[key] = fitted(numbers, values)
            form = known[key]
            if form is None:
                return
            forms.append(form)
        self._forms = forms

    def foretold(self, sizes: Sizes, log: Log) -> bool:
        """Whether all numbers are what the sizes say, as it was at other sizes."""
        if self._forms is None or (values := self._variables.values(sizes)) is None:
            return False
        known: dict[Form, Number | None] = {}
        for form, number in zip(self._forms, log.numbers, strict=True):
            expected: Number | None
            if isinstance(form, Form):
                if form not in known:
                    known[form] = form.at(values)
                expected = known[form]
            else:
                expected = form
            if type(expected) is not type(number) or expected != number:
                return False
        return True
