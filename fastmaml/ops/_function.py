"""What every op's autograd functions share: the vmap rule, masks, and where derivatives end.

Every op is a family of `torch.autograd.Function`s, each around one raw op of a backend, whose
derivatives are written with the others. That alone composes with autograd, forward mode, vmap and
make_fx, which then sees one node a raw op. Members take the backend's `Kernels` first.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import Function


class TaskFunction(Function):
    """A function of tensors ``[tasks, ...]``, every task on its own."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # PyTorch asks for it at every call, and would find it out each time.
        cls.forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]
        cls._alone = _without_transforms(cls)

    _alone: type[Function]
    """The same for `OneTask`, which no transform sees: half as long on its way."""

    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        """The function's result; the first argument are the kernels."""
        if getattr(arguments[0], "is_of_one_task", False):
            return cls._alone.apply(*arguments)
        return super().apply(*arguments)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        """The mapped dimension becomes part of the tasks."""
        size = info.batch_size
        folded = [
            fold(a, dim, size) if isinstance(a, Tensor) else a
            for a, dim in zip(args, in_dims, strict=True)
        ]
        tasks = next(len(a) for a in folded if isinstance(a, Tensor)) // size
        outputs = cls.apply(*folded)
        if isinstance(outputs, Tensor):
            return unfold(outputs, size, tasks)
        pairs = [(None, None) if o is None else unfold(o, size, tasks) for o in outputs]
        return tuple(o for o, _ in pairs), tuple(dim for _, dim in pairs)


def _without_transforms(function: type[TaskFunction]) -> type[Function]:
    """An autograd function of the older kind, without rules for transforms."""

    def forward(ctx: Any, *arguments: Any) -> Any:
        found = function.forward(*arguments)
        function.setup_context(ctx, arguments, found)
        return found

    members = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
    return type(function.__name__, (Function,), members)


def fold(x: Tensor, dim: int | None, size: int) -> Tensor:
    """``[tasks, ...]`` with a mapped dimension of this size as ``[size * tasks, ...]``.

    A tensor that is not mapped is expanded; with one task, nothing is ever copied.
    """
    if dim is None:
        if len(x) == 0:
            return x
        if len(x) == 1:
            return x.expand(size, *x.shape[1:])
        return x.unsqueeze(0).expand(size, *x.shape).flatten(0, 1)
    x = x.movedim(dim, 0) if dim else x
    return x.squeeze(1) if x.shape[1] == 1 else x.flatten(0, 1)


def unfold(x: Tensor, size: int, tasks: int) -> tuple[Tensor, int | None]:
    """The inverse, and where the mapped dimension is; an output that does not exist has none."""
    if len(x) != size * tasks:
        return x, None
    return (x.unsqueeze(1) if tasks == 1 else x.unflatten(0, (size, tasks))), 0


def bits(*wanted: bool) -> int:
    """The mask of a raw op: bit i for its output i."""
    return sum(1 << i for i, yes in enumerate(wanted) if yes)


def wanted(outputs: tuple[Tensor, ...], need: int) -> tuple[Tensor | None, ...]:
    """A raw op's outputs, with None for those that the mask left out."""
    return tuple(o if need >> i & 1 else None for i, o in enumerate(outputs))


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of derivatives, where None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def filled(tangents: Sequence[Tensor | None], outputs: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """The tangents of a function's outputs: forward mode takes no None for an output that is there.

    The outputs are saved for forward mode alone, which costs nothing: they are dropped at once.
    """
    return tuple(
        torch.zeros_like(o) if t is None and o is not None else t
        for t, o in zip(tangents, outputs, strict=True)
    )


def third_derivative(op: str) -> NoReturn:
    """Say where the kernels' derivatives end."""
    raise NotImplementedError(
        f"{op}: the kernels end at the second derivative, and a third was asked for. "
        'Use backend="reference", which can be differentiated any number of times.'
    )
