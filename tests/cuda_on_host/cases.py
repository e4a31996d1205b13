"""How an op is compared with its reference, and the tensors that cases are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastmaml.ops import _load

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
TOLERANCE = {F64: 1e-11, F32: 3e-5, BF16: 4e-2}  # of the largest element, float64 being the truth
ALL = (F64, F32, BF16)

Function = Callable[..., Tensor | Sequence[Tensor]]


class Cases:
    """Runs cases against one library and keeps the digest of what came out."""

    def __init__(self, kernels: _load.Kernels, dtypes: Sequence[torch.dtype]) -> None:
        self.kernels = kernels
        self.dtypes = dtypes
        self.digest = hashlib.sha256()
        self.count = 0

    def keep(self, x: Tensor) -> None:
        if x.dtype == F32:
            self.digest.update(x.detach().double().numpy().tobytes())

    def compare(
        self,
        name: str,
        native: Function,
        reference: Function,
        tensors: Sequence[Tensor],
        dtypes: Sequence[torch.dtype] = ALL,
    ) -> None:
        """Values, gradients and second derivatives, in every dtype, in the tensors' own layouts."""
        for dtype in [d for d in dtypes if d in self.dtypes]:
            inputs = [x.to(dtype).requires_grad_() for x in tensors]
            found = derivatives(native, inputs)
            expected = derivatives(
                reference, [x.detach().double().requires_grad_() for x in inputs]
            )
            for i, (a, b) in enumerate(zip(found, expected, strict=True)):
                self.same(f"{name} {dtype} result {i}", a, b, TOLERANCE[dtype])

    def same(
        self, name: str, found: Tensor | None, expected: Tensor | None, tolerance: float
    ) -> None:
        """Equal to within a part of the largest element; None is zero."""
        self.count += 1
        if found is None or expected is None:
            other = found if expected is None else expected
            assert other is None or not other.abs().sum() > tolerance, f"{name}: {found} {expected}"
            return
        self.keep(found)
        assert found.shape == expected.shape, f"{name}: {found.shape}, not {expected.shape}"
        if not found.numel():
            return
        scale = expected.nan_to_num().abs().max().clamp(min=1)
        error = (found.double() - expected).abs().max() / scale
        both_nan = found.isnan() & expected.isnan()
        error = error if not both_nan.any() else (found.double() - expected)[~both_nan].abs().sum()
        assert error <= tolerance, f"{name}: relative error {error:.2e}\n{found}\n{expected}"


def derivatives(function: Function, inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """Outputs, gradients along a fixed cotangent, and the gradients of those along another."""
    generator = torch.Generator().manual_seed(1)  # not the one that cases are drawn with

    def direction(x: Tensor) -> Tensor:
        return torch.randn(x.shape, dtype=F64, generator=generator).to(x.dtype)

    outputs = function(*inputs)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    g = [direction(y).requires_grad_() for y in outputs]
    first = torch.autograd.grad(outputs, inputs, g, create_graph=True, allow_unused=True)
    used = [x for x in first if x is not None and x.requires_grad]
    h = [direction(x) for x in used]
    second: tuple[Tensor | None, ...] = ()
    if used:
        second = torch.autograd.grad(used, [*g, *inputs], h, allow_unused=True)
    return [*outputs, *first, *second]


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=F64)


def images(*shape: int) -> Tensor:
    """``[tasks, examples, channels, height, width]``, channels-last in memory."""
    t, n, c, h, w = shape
    return randn(t, n, h, w, c).permute(0, 1, 4, 2, 3)


def shared(tasks: int, x: Tensor) -> Tensor:
    return x.expand(tasks, *x.shape)
