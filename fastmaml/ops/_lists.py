"""What the ops on lists of tensors share: checks, the vmap rule, lists with gaps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastmaml.ops._checks import chosen
from fastmaml.ops._function import fold, plus, unfold
from fastmaml.ops._load import Kernels

Maybe = Sequence[Tensor | None]
"""Derivatives of a list of tensors, where None is zero."""


def prepared(
    op: str, backend: str, p: list[Tensor], rate: list[Tensor], **others: list[Tensor]
) -> Kernels | None:
    """The kernels to call, None for ``reference``; every tensor fits its parameter."""
    for name, tensors in {**others, "rate": rate}.items():
        if len(tensors) != len(p) and (tensors or name != "rate"):
            raise ValueError(f"{op}: {name} has {len(tensors)} tensors, p has {len(p)}.")
    for i, x in enumerate(p):
        if not x.ndim or x.shape[0] != p[0].shape[0]:
            raise ValueError(
                f"{op}: p[{i}] has shape {list(x.shape)}; it must be [tasks, ...] with as many "
                f"tasks as p[0], of shape {list(p[0].shape)}."
            )
        for name, tensors in others.items():
            _check_like(op, f"{name}[{i}]", tensors[i], f"p[{i}]", x, (x.shape,))
        if rate:
            _check_like(op, f"rate[{i}]", rate[i], f"p[{i}]", x, (x.shape[1:], torch.Size()))
        _check_like(op, f"p[{i}]", x, "p[0]", p[0], (x.shape,))
    return chosen(op, backend, "p[0]", p[0]) if p else None


def _check_like(
    op: str, name: str, y: Tensor, first: str, x: Tensor, shapes: tuple[torch.Size, ...]
) -> None:
    if y.dtype != x.dtype or y.device != x.device:
        raise ValueError(
            f"{op}: {name} is {y.dtype} on {y.device}, {first} is {x.dtype} on {x.device}; "
            "give both one dtype and device."
        )
    if y.shape not in shapes:
        wanted = " or ".join(str(list(s)) for s in dict.fromkeys(shapes))
        raise ValueError(f"{op}: {name} has shape {list(y.shape)}; it must be {wanted}.")


class ListFunction(Function):
    """A function of lists of tensors, with their number third among its arguments."""

    per_task: int
    """How many lists have a tasks dimension; that of rates follows them."""

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        """The mapped dimension joins the tasks; or the shapes, if the rates have it."""
        size = info.batch_size
        first = next(i for i, a in enumerate(args) if isinstance(a, Tensor))
        numbers, tensors, dims = args[:first], args[first:], in_dims[first:]
        split = numbers[2] * cls.per_task
        mine, rates = tensors[:split], tensors[split:]
        if all(dim is None for dim in dims[split:]):
            x, dim = mine[0], dims[0]
            tasks = x.shape[0 if dim is None or dim > 0 else 1]
            folded = [fold(x, dim, size) for x, dim in zip(mine, dims, strict=False)]
            outputs = cls.apply(*numbers, *folded, *rates)
            return tuple(unfold(o, size, tasks)[0] for o in outputs), (0,) * len(outputs)
        inside = [mapped(x, dim, size, 1) for x, dim in zip(mine, dims, strict=False)]
        own = [mapped(r, dim, size, 0) for r, dim in zip(rates, dims[split:], strict=True)]
        own = [_alike(r, x.shape[1:]) for r, x in zip(own, inside, strict=False)]
        outputs = cls.apply(*numbers, *inside, *own)
        return tuple(outputs), (1,) * len(outputs)


def mapped(x: Tensor, dim: int | None, size: int, to: int) -> Tensor:
    """x with its mapped dimension there; expanded, if it has none."""
    if dim is not None:
        return x.movedim(dim, to)
    return x.unsqueeze(to).expand(*x.shape[:to], size, *x.shape[to:])


def _alike(r: Tensor, shape: torch.Size) -> Tensor:
    """Rates ``[mapped, *shape]`` or ``[mapped]`` as the former."""
    return r.reshape(r.shape + (1,) * (len(shape) - r.ndim)).expand(shape)


def halves(ctx: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The first list that was saved, and the rest."""
    saved = list(ctx.saved_tensors)
    return saved[: ctx.n], saved[ctx.n :]


def chunks(x: Sequence[Any], n: int) -> tuple[list[Any], list[Any], list[Any]]:
    """Two lists of n, and the rest."""
    return list(x[:n]), list(x[n : 2 * n]), list(x[2 * n :])


def those(h: Maybe, wanted: Iterable[bool]) -> list[Tensor | None]:
    """The cotangents of what needs a gradient."""
    return [x if yes else None for x, yes in zip(h, wanted, strict=False)]


def summed(a: Maybe, b: Maybe) -> tuple[Tensor | None, ...]:
    """The sums of derivatives; an empty list is zero too."""
    if not a or not b:
        return tuple(a or b)
    return tuple(plus(x, y) for x, y in zip(a, b, strict=True))


def times(factor: float, a: Maybe) -> list[Tensor | None]:
    """Every derivative times a number."""
    return [None if x is None else factor * x for x in a]
