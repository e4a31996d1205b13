"""The backends: which raw ops there are, where they run, and why another is not there.

The only module that loads `fastmaml._C` and `fastmaml.kernels`, and only when first asked.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, final, get_args

import torch

from fastmaml.ops import _not_built

FAMILIES: dict[str, tuple[str, ...]] = {
    "task_linear": ("task_linear", "task_linear_dgrad", "task_linear_wgrad"),
    "task_conv2d": ("task_conv2d", "task_conv2d_dgrad", "task_conv2d_wgrad"),
    "task_act": ("task_act", "task_act_bwd", "task_act_bwd2"),
    "task_batch_norm": ("task_batch_norm", "task_batch_norm_bwd", "task_batch_norm_bwd2"),
    "task_layer_norm": ("task_layer_norm", "task_layer_norm_bwd", "task_layer_norm_bwd2"),
    "task_cross_entropy": (
        "task_cross_entropy",
        "task_cross_entropy_bwd",
        "task_cross_entropy_bwd2",
    ),
    "task_mse": ("task_mse", "task_mse_bwd", "task_mse_bwd2"),
    "task_attention": ("task_attention", "task_attention_bwd", "task_attention_bwd2"),
    "task_embedding": ("task_embedding", "task_embedding_grad"),
    "dropout_mask": ("dropout_mask",),
    "inner_update": ("inner_update", "inner_scale", "inner_rate_grad"),
    "inner_momentum": ("inner_momentum", "inner_scale", "inner_rate_grad"),
}
"""A public op, and the raw ops that it and its derivatives are made of."""

Backend = Literal["reference", "cpp", "cuda", "triton"]

BACKENDS: tuple[Backend, ...] = get_args(Backend)

_RAW_OPS = tuple(dict.fromkeys(op for members in FAMILIES.values() for op in members))
_LOGGER = logging.getLogger("fastmaml")


@final
@dataclass(frozen=True)
class Kernels:
    """The raw ops of one backend, an attribute each: ``kernels.task_linear(x, w, b, act)``.

    Attributes:
        backend: its name.
        devices: the device types that it runs on.
        dtypes: of the floating-point tensors that it takes.
        raw_ops: by name; none of them is differentiable.
    """

    backend: str
    devices: frozenset[str]
    dtypes: frozenset[torch.dtype]
    raw_ops: Mapping[str, Callable[..., Any]]

    def __post_init__(self) -> None:
        self.__dict__.update(self.raw_ops)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Callable[..., Any]: ...

    @functools.cached_property
    def families(self) -> frozenset[str]:
        """The public ops that all raw ops are there for."""
        return frozenset(f for f, members in FAMILIES.items() if set(members) <= set(self.raw_ops))


def kernels(backend: str) -> Kernels:
    """The raw ops of a backend, which know nothing of autograd.

    Args:
        backend: ``cpp``, ``cuda`` or ``triton``; ``shapes`` for what they allocate (`ops.shapes`).

    Raises:
        ValueError: there is no such backend, or it is not there; the message says why.
    """
    known = backend in _FINDERS or backend == "shapes"
    found = _found(backend) if known else f"no such backend; choose from {BACKENDS}"
    if isinstance(found, str):
        raise ValueError(f"backend={backend!r}: {found}")
    return found


def families(backend: str) -> frozenset[str]:
    """The public ops that a backend has kernels for; every op, for ``reference``."""
    return frozenset(FAMILIES) if backend == "reference" else kernels(backend).families


def status() -> dict[str, str]:
    """Of every backend: ``available``, with what it has, or why it is not there."""
    return {"reference": "available"} | {name: _said(_found(name)) for name in _FINDERS}


def default_backend(device: torch.device | str) -> str:
    """``FASTMAML_BACKEND`` where that is set, else the fastest backend there is for this device.

    Raises:
        ValueError: ``FASTMAML_BACKEND`` names no backend, or one that cannot run here.
    """
    kind = torch.device(device).type
    asked = os.environ.get("FASTMAML_BACKEND")
    if asked:
        return asked if asked == "reference" else _asked(asked, kind)
    candidates = {"cpu": ("cpp",), "cuda": ("triton", "cuda")}.get(kind, ())
    for name in candidates:
        if isinstance(_found(name), Kernels):
            return name
    if candidates:
        _tell(kind, "; ".join(f"{name}: {_said(_found(name))}" for name in candidates))
    return "reference"


def _asked(backend: str, kind: str) -> str:
    """A backend that the environment asks for, if it is there for this type of device."""
    try:
        devices = kernels(backend).devices
    except ValueError as error:
        raise ValueError(f"FASTMAML_BACKEND={backend!r} cannot be used: {error}") from None
    if kind not in devices:
        raise ValueError(
            f"FASTMAML_BACKEND={backend!r} runs on {', '.join(sorted(devices))}, and the tensors "
            f"are on {kind}: unset it, or move the model and the episodes."
        )
    return backend


@functools.cache
def _tell(kind: str, reasons: str) -> None:
    """Say once in a process that plain PyTorch stands in for the kernels."""
    _LOGGER.warning("fastmaml runs on plain PyTorch on %s. %s", kind, reasons)


def _said(found: Kernels | str) -> str:
    if isinstance(found, str):
        return found
    lacking = sorted(set(FAMILIES) - found.families)
    return "available" + (f", without {', '.join(lacking)}" if lacking else "")


@functools.cache
def _found(backend: str) -> Kernels | str:
    """The backend, or why it is not there."""
    return _shapes() if backend == "shapes" else _FINDERS[backend]()


def _shapes() -> Kernels:
    """Of fake tensors, which stand for those of any device."""
    dtypes = frozenset({torch.float32, torch.float64, torch.bfloat16})
    raw_ops = importlib.import_module("fastmaml.ops.shapes").RAW_OPS
    return Kernels("shapes", frozenset({"cpu"}), dtypes, raw_ops)


@functools.cache
def _extension() -> str | None:
    """Load the native module; why it cannot be, if it cannot."""
    spec = importlib.util.find_spec("fastmaml._C")
    if spec is None or spec.origin is None:
        return f"the native module fastmaml._C was not built{_not_built.why()}"
    try:
        torch.ops.load_library(spec.origin)
    except (OSError, RuntimeError) as error:
        return f"the native module fastmaml._C failed to load: {' '.join(str(error).split())}"
    return None


@functools.cache
def native_module() -> Any:
    """The module ``fastmaml._C``, or None where it is not built or does not load."""
    return None if _extension() else importlib.import_module("fastmaml._C")


def registered(namespace: str, key: str) -> dict[str, Callable[..., Any]]:
    """The raw ops of a loaded library that have a kernel for a dispatch key (``CPU``, ``CUDA``)."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    library = getattr(torch.ops, namespace)
    defined = (op for op in _RAW_OPS if hasattr(library, op))
    return {op: getattr(library, op).default for op in defined if has(f"{namespace}::{op}", key)}


def _cpp() -> Kernels | str:
    reason = _extension()
    if reason:
        return reason
    found = registered("fastmaml", "CPU")
    dtypes = frozenset({torch.float32, torch.float64})
    return Kernels("cpp", frozenset({"cpu"}), dtypes, found) if found else _nothing("CPU")


def _cuda() -> Kernels | str:
    reason = _extension()
    if reason:
        return reason
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    found = registered("fastmaml", "CUDA")
    dtypes = frozenset({torch.float32, torch.float64, torch.bfloat16})
    return Kernels("cuda", frozenset({"cuda"}), dtypes, found) if found else _nothing("CUDA")


def _nothing(device: str) -> str:
    return f"the native module fastmaml._C was built without {device} kernels"


def _triton() -> Kernels | str:
    """Triton's own ops, and the native ones for what it does not have.

    Under ``TRITON_INTERPRET=1``, set before the first use, the kernels run on the CPU: for tests.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    native = _found("cpp" if interpreted else "cuda")
    if isinstance(native, str):
        return native
    try:
        package = importlib.import_module("fastmaml.kernels")
    except ImportError as error:
        return f"fastmaml.kernels failed to load: {error}"
    own = {op: getattr(package, op) for op in _RAW_OPS if hasattr(package, op)}
    return Kernels("triton", native.devices, native.dtypes, {**native.raw_ops, **own})


_FINDERS: dict[str, Callable[[], Kernels | str]] = {
    "cpp": _cpp,
    "cuda": _cuda,
    "triton": _triton,
}
