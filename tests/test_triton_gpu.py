"""The Triton kernels on a CUDA device: `make gpu` runs these.

The yardstick is PyTorch's own error against float64 in the same precision: at most twice that.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton"),
]
MODES = {
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
    "float64": (torch.float64, False),
}
Call = Callable[..., torch.Tensor]


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imported here, as collecting tests on a CPU must not need Triton; choices start afresh."""
    monkeypatch.setenv("FASTMAML_CACHE", str(tmp_path))
    torch.manual_seed(0)
    return importlib.import_module("fastmaml.kernels")


@pytest.fixture(params=MODES)
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    dtype, tf32 = MODES[request.param]
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = products.fp32_precision, convolutions.fp32_precision
    products.fp32_precision = convolutions.fp32_precision = "tf32" if tf32 else "ieee"
    yield dtype
    products.fp32_precision, convolutions.fp32_precision = before


def as_good(found: torch.Tensor, torchs: torch.Tensor, exact: torch.Tensor) -> None:
    """``found`` is at most twice as far from ``exact`` as ``torchs`` is, or as rounding is."""
    rounding = torch.finfo(found.dtype).eps * exact.abs().max()
    allowed = 2 * max((torchs.double() - exact).abs().max(), rounding)
    assert (found.double() - exact).abs().max() <= allowed


def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("size", [(3, 97, 17, 5), (8, 256, 192, 320), (1, 1, 1, 1)], ids=str)
def test_linear(
    kernels: Any, dtype: torch.dtype, size: tuple[int, int, int, int], shared: bool
) -> None:
    tasks, examples, inputs, outputs = size
    x, g = random(tasks, examples, inputs, dtype=dtype), random(*size[:2], outputs, dtype=dtype)
    w = random(1 if shared else tasks, outputs, inputs, dtype=dtype).expand(tasks, -1, -1)
    b = random(tasks, outputs, dtype=dtype)

    def all_members(product: Call, *given: torch.Tensor) -> list[torch.Tensor]:
        x, w, b, g = given
        forward = product(x, w.mT) + b.unsqueeze(1)
        return [forward, product(g, w), product(g.mT, x), g.sum(1)]

    exact = all_members(torch.bmm, *(v.double() for v in (x, w, b, g)))
    found = [kernels.task_linear(x, w, b, 0)[0], kernels.task_linear_dgrad(g, w)]
    found += kernels.task_linear_wgrad(g, x, True)
    for each in zip(found, all_members(torch.bmm, x, w, b, g), exact, strict=True):
        as_good(*each)
    relu, _ = kernels.task_linear(x, w, b, 1)
    assert torch.equal(relu, found[0].relu())


@pytest.mark.parametrize("act", range(2, 7))
def test_epilogues(kernels: Any, dtype: torch.dtype, act: int) -> None:
    x, w = random(2, 33, 40, dtype=dtype), random(2, 20, 40, dtype=dtype)
    function = [
        torch.tanh,
        F.gelu,
        lambda x: F.gelu(x, approximate="tanh"),
        torch.sigmoid,
        F.silu,
    ][act - 2]
    y, _ = kernels.task_linear(x, w, None, act)
    as_good(y, function(x @ w.mT), function(x.double() @ w.double().mT))


CONVOLUTIONS = [
    # x [T, N, C, H, W], w [O, kh, kw], stride, padding, dilation
    ((4, 5, 64, 14, 14), (64, 3, 3), (1, 1), (1, 1), (1, 1)),
    ((2, 5, 1, 28, 28), (64, 3, 3), (1, 1), (1, 1), (1, 1)),
    ((2, 3, 64, 15, 14), (32, 3, 3), (2, 2), (1, 1), (1, 1)),
    ((2, 3, 40, 9, 8), (24, 1, 1), (2, 1), (0, 0), (1, 1)),
    ((2, 2, 3, 17, 19), (5, 5, 2), (2, 3), (2, 1), (1, 2)),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution(kernels: Any, dtype: torch.dtype, case: tuple) -> None:
    shape, (outputs, *kernel), *settings = case
    x, w = random(*shape, dtype=dtype), random(shape[0], outputs, shape[2], *kernel, dtype=dtype)
    b = random(shape[0], outputs, dtype=dtype)

    def definition(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.stack([F.conv2d(*one, *settings) for one in zip(x, w, b, strict=True)])

    y = kernels.task_conv2d(x, w, b, *settings)
    g = torch.randn_like(y)
    found = [y, kernels.task_conv2d_dgrad(g, w, *settings, shape[3:])]
    found += kernels.task_conv2d_wgrad(g, x, *settings, kernel, True)
    results = []
    for wanted in (dtype, torch.float64):
        inputs = [v.to(wanted).requires_grad_() for v in (x, w, b)]
        out = definition(*inputs)
        results.append([out.detach(), *torch.autograd.grad(out, inputs, g.to(wanted))])
    for each in zip(found, *results, strict=True):
        as_good(*each)


def test_offsets_beyond_32_bits(kernels: Any) -> None:
    if torch.cuda.get_device_properties(0).total_memory < 16e9:
        pytest.skip("needs 16 GB of GPU memory")
    far = 2**31 + 64
    room = torch.empty(far + 4096, device="cuda", dtype=torch.bfloat16)
    x = room.as_strided((2, 64, 64), (far, 64, 1))
    image = room.as_strided((2, 1, 64, 8, 8), (far, 4096, 1, 512, 64))
    x.normal_()
    w, kernel = x.new_ones(2, 3, 64), x.new_ones(2, 3, 64, 1, 1)
    torch.testing.assert_close(kernels.task_linear(x, w, None, 0)[0], x @ w.mT)
    torch.testing.assert_close(
        kernels.task_conv2d(image, kernel, None, (1, 1), (0, 0), (1, 1)).flatten(3).squeeze(1),
        (image.flatten(3).squeeze(1).mT @ w.mT).mT,
    )


@pytest.mark.parametrize("measured", ["1", "0"])
def test_in_a_cuda_graph(
    kernels: Any, measured: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured before the capture, or first met within it, where the model's choice runs."""
    x, w = random(4, 30, 51, dtype=torch.float32), random(4, 9, 51, dtype=torch.float32)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        return kernels.task_linear(x, w, None, 2)[0], kernels.task_linear_wgrad(w, w, True)[0]

    monkeypatch.setenv("FASTMAML_AUTOTUNE", measured)
    both()  # a capture must not compile
    assert bool(list(tmp_path.glob("triton-*.json"))) == (measured == "1")
    monkeypatch.delenv("FASTMAML_AUTOTUNE")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, gw = both()
    x.normal_()
    w.normal_()
    graph.replay()
    as_good(y, torch.tanh(x @ w.mT), torch.tanh(x.double() @ w.double().mT))
    as_good(gw, w.mT @ w, w.double().mT @ w.double())


def test_repeats_to_the_last_bit(kernels: Any) -> None:
    g, x = random(1, 50_000, 40, dtype=torch.float32), random(1, 50_000, 33, dtype=torch.float32)
    first, second = (kernels.task_linear_wgrad(g, x, True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_cpu_tensors_are_refused(kernels: Any) -> None:
    with pytest.raises(ValueError, match="x is on cpu"):
        kernels.task_linear(torch.ones(1, 1, 1), torch.ones(1, 1, 1), None, 0)
