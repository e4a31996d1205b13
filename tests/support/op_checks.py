"""How the rows of the op table are run: on which backends, and derived in which ways."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import pytest
import torch
from op_table import ROWS, SMALL, Row
from raw_reference import raw_kernels
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad

from fastmaml.ops import _load
from fastmaml.ops._load import Kernels
from fastmaml.ops.coverage import WIDEST

with warnings.catch_warnings():  # what torch loads at the first dual number is deprecated in torch
    warnings.simplefilter("ignore", DeprecationWarning)
    importlib.import_module("torch._decomp.decompositions_for_jvp")

ON_A_GPU = [pytest.param(backend, marks=pytest.mark.gpu) for backend in ("cuda", "triton")]
BACKENDS = ["raw_reference", "cpp", *(ON_A_GPU if torch.cuda.is_available() else [])]
on_backends = pytest.mark.parametrize("backend", BACKENDS)
on_rows = pytest.mark.parametrize("row", ROWS, ids=str)
on_small_rows = pytest.mark.parametrize("row", SMALL, ids=str)
every_op = pytest.mark.sampled(columns=lambda row, **how: (row.op, *how.values()))
"""A row of each op, rather than each row, on every backend."""


def kernels_for(backend: str, op: str, dtype: torch.dtype = torch.float64) -> Kernels:
    if backend == "raw_reference":
        return raw_kernels()
    reason = _load.status()[backend]
    if not reason.startswith("available"):
        pytest.skip(f"{backend}: {reason}")
    found = _load.kernels(backend)
    if op not in found.families:
        pytest.skip(f"{backend} has no {op}")
    if dtype not in found.dtypes:
        pytest.skip(f"{backend} takes no {dtype}")
    return found


def place(x: Tensor, kernels: Kernels, dtype: torch.dtype = torch.float64) -> Tensor:
    """On the backend's device, with the strides it has."""
    device = (
        next(iter(kernels.devices - {"cpu"}), "cpu")
        if kernels.backend != "raw_reference"
        else "cpu"
    )
    if x.is_floating_point() and (x.dtype != dtype or x.device.type != device):
        shared = x.ndim > 0 and len(x) > 1 and x.stride(0) == 0
        moved = x[:1].to(device, dtype).expand_as(x) if shared else x.to(device, dtype)
        return moved
    return x.to(device)


def inputs_of(row: Row, kernels: Kernels, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    given = row.inputs()
    widest = WIDEST.get((kernels.backend, row.op))
    if widest is not None and any(x.shape[-1] > widest for x in floats(given)):
        pytest.skip(f"{kernels.backend} has kernels for {row.op} up to {widest}; others stand in")
    return [place(x, kernels, dtype) for x in given]


def as_leaves(tensors: list[Tensor]) -> list[Tensor]:
    """Leaves that need a gradient, of the same strides: an expanded one is expanded anew."""
    return [x.detach().requires_grad_(x.is_floating_point()) for x in tensors]


def many(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def floats(tensors: Any) -> list[Tensor]:
    return [x for x in tensors if x.is_floating_point()]


def weights(tensors: Any, seed: int) -> list[Tensor]:
    made = torch.Generator().manual_seed(seed)
    return [
        torch.randn(x.shape, dtype=torch.float64, generator=made).to(x.device, x.dtype)
        for x in tensors
    ]


def dot(a: Any, b: Any) -> Tensor:
    return sum(((x * y).sum() for x, y in zip(a, b, strict=True)), torch.zeros(()))


def derivatives(function: Any, tensors: list[Tensor]) -> list[Tensor]:
    """Outputs, the gradient of a functional of them, and a Hessian-vector product."""
    leaves = as_leaves(tensors)
    mine = floats(leaves)
    outputs = many(function(*leaves))
    cotangents = [w.requires_grad_() for w in weights(outputs, 1)]
    first = torch.autograd.grad(dot(outputs, cotangents), mine, create_graph=True)
    second = torch.autograd.grad(
        dot(first, weights(mine, 2)), [*mine, *cotangents], materialize_grads=True
    )
    return [x.detach() for x in (*outputs, *first, *second)]


def forward_over_reverse(function: Any, tensors: list[Tensor]) -> list[Tensor]:
    """The gradient of a functional and its derivative in a direction, as `MixedMode` takes it."""
    with forward_ad.dual_level():
        duals = [
            forward_ad.make_dual(x.contiguous(), w) if x.is_floating_point() else x
            for x, w in zip(tensors, weights(tensors, 2), strict=True)
        ]
        own = [i for i, x in enumerate(tensors) if x.is_floating_point()]

        def loss(*chosen: Tensor) -> Tensor:
            given = list(duals)
            for i, x in zip(own, chosen, strict=True):
                given[i] = x
            outputs = many(function(*given))
            return dot([o.square() for o in outputs], weights(outputs, 1))

        gradients = grad(loss, tuple(range(len(own))))(*(duals[i] for i in own))
        pairs = [forward_ad.unpack_dual(g) for g in gradients]
        zeros = (torch.zeros_like(p.primal) if p.tangent is None else p.tangent for p in pairs)
        return [*(p.primal for p in pairs), *zeros]


def assert_equal(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-11) -> None:
    assert len(found) == len(expected)
    for i, (x, y) in enumerate(zip(found, expected, strict=True)):
        assert x.shape == y.shape, i
        scale = max(1.0, y.abs().max().item()) if y.numel() and not y.isnan().any() else 1.0
        torch.testing.assert_close(
            x,
            y,
            rtol=tolerance,
            atol=tolerance * scale,
            equal_nan=True,
            msg=lambda m, i=i: f"{i}: {m}",
        )
