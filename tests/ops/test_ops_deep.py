"""Products whose sums are long, and gradients of weights: they go through the caches in pieces."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from outcomes import require
from problems import tensor
from torch import Tensor

TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-14}
"""Of the norm of a result; plain PyTorch's own are about as far from the truth."""

dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@pytest.fixture(autouse=True)
def _native() -> None:
    require("cpp")


def check(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    error = float((found.double() - expected).norm() / expected.norm())
    assert error < TOLERANCE[found.dtype]


# images, channels, outputs, height, width, kernel, stride, padding, dilation
CONVOLUTIONS = {
    "rows of taps in pieces": (2, 128, 40, 5, 4, (3, 3), (1, 1), (1, 1), (1, 1)),
    "a row of taps in parts": (2, 400, 24, 4, 3, (3, 3), (1, 1), (1, 1), (1, 1)),
    "taps in pieces, dilated": (2, 200, 40, 7, 6, (3, 3), (1, 1), (2, 2), (2, 2)),
    "one tap in parts, strided": (3, 1100, 20, 4, 4, (1, 1), (2, 2), (0, 0), (1, 1)),
    "outputs in parts": (2, 20, 1100, 3, 4, (3, 3), (1, 1), (1, 1), (1, 1)),
    "images of one pixel": (5, 20, 18, 1, 1, (3, 3), (1, 1), (1, 1), (1, 1)),
    "images of few pixels": (5, 33, 18, 2, 3, (3, 3), (1, 1), (1, 1), (1, 1)),
    "bands across images": (3, 17, 9, 21, 20, (3, 3), (1, 1), (1, 1), (1, 1)),
    "nothing padded": (3, 20, 18, 25, 24, (2, 3), (1, 1), (0, 0), (1, 1)),
    "padded on one side": (3, 20, 18, 9, 24, (3, 1), (1, 1), (1, 0), (1, 1)),
    "stride in height alone": (2, 20, 18, 30, 23, (3, 3), (2, 1), (1, 1), (1, 1)),
    "stride in width": (2, 20, 18, 12, 13, (3, 3), (1, 2), (1, 1), (1, 1)),
    "few channels": (2, 3, 18, 30, 23, (3, 3), (1, 1), (1, 1), (1, 1)),
    "rows wider than a band": (1, 16, 5, 3, 700, (3, 3), (1, 1), (1, 1), (1, 1)),
    "no images": (0, 20, 18, 3, 3, (3, 3), (1, 1), (1, 1), (1, 1)),
}


@dtypes
@pytest.mark.parametrize("shape", CONVOLUTIONS.values(), ids=list(CONVOLUTIONS))
def test_convolutions(shape: tuple, dtype: torch.dtype) -> None:
    images, channels, outputs, height, width, kernel, stride, padding, dilation = shape
    x = tensor(2, images, channels, height, width, seed=1)
    w = tensor(2, outputs, channels, *kernel, seed=2)
    b = tensor(2, outputs, seed=3)
    leaves = [x.requires_grad_(), w.requires_grad_(), b.requires_grad_()]
    how = {"stride": stride, "padding": padding, "dilation": dilation}
    y = torch.stack([F.conv2d(x[t], w[t], b[t], **how) for t in range(2)])
    g = tensor(*y.shape, seed=4)
    expected = torch.autograd.grad(y, leaves, g)
    x, w, b, g = (z.detach().to(dtype) for z in (x, w, b, g))
    x = x.to(memory_format=torch.channels_last_3d) if images % 2 else x
    own, rest = torch.ops.fastmaml, [list(stride), list(padding), list(dilation)]
    found = own.task_conv2d(x, w, b, *rest)
    gx = own.task_conv2d_dgrad(g, w, *rest, [height, width])
    gw, gb = own.task_conv2d_wgrad(g, x, *rest, list(kernel), True)
    if images == 0:
        assert found.shape == y.shape
        assert not any(z.any() for z in (gw, gb))
        return
    for a, c in zip((found, gx, gw, gb), (y.detach(), *expected), strict=True):
        check(a, c)


# rows, inputs, outputs
LINEAR = {
    "a long sum": (9, 2500, 33),
    "a long sum of few rows": (3, 2500, 70),
    "few outputs of a long sum": (40, 2500, 20),
    "many rows": (700, 40, 250),
    "rows of two pieces and a rest": (513, 17, 193),
    "outputs of a vector": (20, 30, 16),
    "outputs of less": (300, 30, 7),
    "fewer rows than lanes": (5, 30, 64),
}


@dtypes
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", LINEAR.values(), ids=list(LINEAR))
def test_linear_layers(shape: tuple[int, int, int], relu: bool, dtype: torch.dtype) -> None:
    rows, inputs, outputs = shape
    x, w = tensor(2, rows, inputs, seed=1), tensor(2, outputs, inputs, seed=2)
    b, g = tensor(2, outputs, seed=3), tensor(2, rows, outputs, seed=4)
    leaves = [x.requires_grad_(), w.requires_grad_(), b.requires_grad_()]
    y = torch.baddbmm(b[:, None], x, w.transpose(1, 2))
    expected = torch.autograd.grad(y, leaves, g)
    y = y.relu() if relu else y
    x, w, b, g = (z.detach().to(dtype) for z in (x, w, b, g))
    own = torch.ops.fastmaml
    found, _ = own.task_linear(x, w, b, int(relu))
    gw, gb = own.task_linear_wgrad(g, x, True)
    pairs = zip((found, own.task_linear_dgrad(g, w), gw, gb), (y.detach(), *expected), strict=True)
    for a, c in pairs:
        check(a, c)


def test_a_long_sum_keeps_nan_and_infinity() -> None:
    x, w = tensor(1, 9, 2500, seed=1), tensor(1, 33, 2500, seed=2)
    x[0, 4, 7], x[0, 5, 2400] = torch.nan, torch.inf
    y, _ = torch.ops.fastmaml.task_linear(x, w, None, 1)
    expected = torch.bmm(x, w.transpose(1, 2)).relu()
    torch.testing.assert_close(y, expected, equal_nan=True)
