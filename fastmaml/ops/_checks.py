"""What is checked before an op runs. Only shapes, dtypes and devices are read, never values."""

from __future__ import annotations

from torch import Tensor

from fastmaml.ops._load import Kernels, kernels


def prepared(op: str, backend: str, **tensors: Tensor | None) -> Kernels | None:
    """The kernels to call, None for ``reference``; the tensors' dtypes and devices are right.

    Raises:
        ValueError: the backend is not there, or not for these tensors; or they differ among
            themselves in dtype, device or number of tasks. All are floating-point ``[tasks, ...]``.
    """
    given = {name: x for name, x in tensors.items() if x is not None}
    (first, x), *others = given.items()
    if not x.is_floating_point():
        raise ValueError(f"{op}: {first} is {x.dtype}; it must be floating-point.")
    for name, y in others:
        if y.dtype != x.dtype:
            raise ValueError(f"{op}: {name} is {y.dtype}, {first} is {x.dtype}; give both one.")
        same_device(op, name, y, first, x)
        same_tasks(op, name, y, first, x)
    return chosen(op, backend, first, x)


def chosen(op: str, backend: str, name: str, x: Tensor) -> Kernels | None:
    """The kernels of a backend that has this op for tensors like x; None for ``reference``."""
    if backend == "reference":
        return None
    found = kernels(backend)
    if op not in found.families:
        raise ValueError(
            f'{op}: backend={backend!r} has no kernels for it; use backend="reference".'
        )
    if x.device.type not in found.devices:
        raise ValueError(
            f"{op}: {name} is on {x.device}, and backend={backend!r} runs on "
            f'{", ".join(sorted(found.devices))}; move it, or use backend="reference".'
        )
    if x.dtype not in found.dtypes:
        known = ", ".join(sorted(str(dtype) for dtype in found.dtypes))
        raise ValueError(
            f"{op}: {name} is {x.dtype}, and backend={backend!r} takes {known}; "
            'convert it, or use backend="reference".'
        )
    return found


def same_device(op: str, name: str, y: Tensor, first: str, x: Tensor) -> None:
    """Check that y is where x is."""
    if y.device != x.device:
        raise ValueError(f"{op}: {name} is on {y.device}, {first} on {x.device}; move one.")


def same_tasks(op: str, name: str, y: Tensor, first: str, x: Tensor) -> None:
    """Check that both have as many tasks."""
    if y.shape[:1] != x.shape[:1]:
        raise ValueError(
            f"{op}: {name} has {_tasks(y)}, {first} has {_tasks(x)}; what all tasks share is "
            "expanded: t.expand(tasks, *t.shape)."
        )


def shape(op: str, name: str, x: Tensor | None, *expected: int | str) -> None:
    """Check the shape of x: a number is a size, a word names a dimension of any size."""
    if x is None:
        return
    fits = x.ndim == len(expected) and all(
        isinstance(e, str) or e == size for e, size in zip(expected, x.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(e) for e in expected)
        raise ValueError(f"{op}: {name} has shape {list(x.shape)}; it must be [{wanted}].")


def _tasks(x: Tensor) -> str:
    return f"{len(x)} tasks" if x.ndim else "no tasks dimension"
