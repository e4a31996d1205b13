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

from fastmaml import ops

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

pytestmark = [
    pytest.mark.gpu,
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


def as_good(
    found: torch.Tensor, torchs: torch.Tensor, exact: torch.Tensor, roundings: int = 1
) -> None:
    """``found`` is at most twice as far from ``exact`` as ``torchs`` is, or as rounding is.

    TF32 reads ten bits of the mantissa, which some kernels round and others cut off.
    """
    tf32 = found.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    rounding = roundings * (2**-10 if tf32 else torch.finfo(found.dtype).eps) * exact.abs().max()
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


ATTENTIONS = [
    # tasks, batch, heads, rows, keys, head size, outputs; mask, causal, dropout
    ((2, 2, 3, 128, 128, 64, 64), None, False, 0.0),
    ((2, 3, 2, 77, 130, 32, 32), "padding", False, 0.1),
    ((1, 2, 2, 200, 200, 128, 128), None, True, 0.0),
    ((2, 1, 2, 33, 70, 40, 24), "dead rows", True, 0.2),
    ((1, 1, 1, 3, 5, 7, 9), None, False, 0.0),
]


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, keep: Any, causal: bool
) -> torch.Tensor:
    """By an explicit softmax; ``keep`` is the dropout mask."""
    scores = q.shape[-1] ** -0.5 * q @ k.mT
    if mask is not None:
        scores = scores + mask.to(q.dtype)
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~seen, float("-inf"))
    alive = (scores > float("-inf")).any(-1, keepdim=True)
    p = torch.softmax(torch.where(alive, scores, 0.0), -1) * alive
    return (p if keep is None else p * keep.to(q.dtype)) @ v


@pytest.mark.parametrize("case", ATTENTIONS, ids=str)
def test_attention(kernels: Any, dtype: torch.dtype, case: tuple) -> None:
    (t, b, h, n, m, d, e), kind, causal, dropout = case
    shapes = (n, d), (m, d), (m, e), (n, e)
    q, k, v, g = (random(t, b, x, h, y, dtype=dtype).transpose(2, 3) for x, y in shapes)
    hq, hk, hv = (torch.randn_like(x) for x in (q, k, v))
    mask, keep, key = None, None, torch.arange(t, device="cuda") * 2**60 + 5
    if kind is not None:
        mask = torch.zeros(t, b, 1, n, m, device="cuda", dtype=dtype)
        mask[..., m // 2 :] = float("-inf")
        mask[..., :: 5 if kind == "dead rows" else n, :] = float("-inf")
        mask = mask.expand(t, b, h, n, m)
    if dropout:
        keep = ops.dropout_mask(key, [b, h, n, m], dropout, q)
    rest = causal, d**-0.5, dropout
    found = list(kernels.task_attention(q, k, v, mask, key, *rest))
    saved = g, q, k, v, mask, key, *found, *rest
    found = [found[0], *kernels.task_attention_bwd(*saved)]
    found += kernels.task_attention_bwd2(hq, hk, hv, *saved, 15)
    results = []
    for wanted in (dtype, torch.float64):
        inputs = [x.detach().to(wanted).requires_grad_() for x in (q, k, v, g)]
        out = attention(*inputs[:3], mask, keep, causal)
        first = torch.autograd.grad(out, inputs[:3], inputs[3], create_graph=True)
        moved = torch.stack([(a * b).sum() for a, b in zip(first, (hq, hk, hv), strict=True)])
        second = torch.autograd.grad(moved.sum(), [inputs[i] for i in (3, 0, 1, 2)])
        results.append([x.detach() for x in (out, *first, *second)])
    # exp(x) has |x| roundings, of which halves see none: they compute it in float32.
    roundings = 1 if dtype.itemsize == 2 else 8
    for each in zip(found, *results, strict=True):
        as_good(*each, roundings)


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_masks_equal_the_engines_bit_for_bit(
    kernels: Any, dtype: torch.dtype, dropout: float
) -> None:
    q, k = (torch.zeros(2, 3, 2, n, 16, device="cuda", dtype=dtype) for n in (100, 128))
    v = torch.eye(128, device="cuda", dtype=dtype).expand(2, 3, 2, 128, 128)
    key = torch.tensor([-(2**63), 2**63 - 1], device="cuda")
    o, _ = kernels.task_attention(q, k, v, None, key, False, 1.0, dropout)
    keep = ops.dropout_mask(key, [3, 2, 100, 128], dropout, q)
    torch.testing.assert_close(o, keep / 128, rtol=1e-3, atol=0)  # so the zeros are the same
    assert torch.equal(o == 0, keep == 0)


@pytest.mark.parametrize("rows", [5, 30_522])
def test_embedding(kernels: Any, dtype: torch.dtype, rows: int) -> None:
    w = random(1, rows, 200, dtype=dtype).expand(3, -1, -1)
    ids = torch.randint(rows, (3, 999), device="cuda")
    g, places = random(3, 999, 200, dtype=dtype), ids.unsqueeze(2).expand(-1, -1, 200)
    assert torch.equal(kernels.task_embedding(w, ids), w.gather(1, places))
    zeros = torch.zeros(3, rows, 200, device="cuda", dtype=dtype)
    torchs, exact = (x.scatter_add(1, places, g.to(x)) for x in (zeros, zeros.double()))
    as_good(kernels.task_embedding_grad(g, ids, rows), torchs, exact)


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
    q = room.as_strided((2, 1, 1, 64, 32), (far, 1, 1, 64, 1))
    o, _ = kernels.task_attention(q, q, q, None, None, False, 0.1, 0.0)
    torch.testing.assert_close(o, torch.softmax(0.1 * q.float() @ q.float().mT, -1).to(q) @ q)


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
    q, h, g, k = (random(1, 2, 2, 500, 64, dtype=torch.float32) for _ in range(4))
    o, lse = kernels.task_attention(q, k, q, None, None, True, 0.1, 0.0)
    saved = g, q, k, q, None, None, o, lse, True, 0.1, 0.0
    runs = (kernels.task_attention_bwd2(h, h, h, *saved, 15) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    ids = torch.randint(7, (1, 50_000), device="cuda")
    first, second = (kernels.task_embedding_grad(x, ids, 7) for _ in range(2))
    assert torch.equal(first, second)


def test_attention_in_a_cuda_graph(kernels: Any) -> None:
    q, k = (random(2, 2, 2, 50, 32, dtype=torch.float32) for _ in range(2))
    ids, key = torch.randint(9, (2, 30), device="cuda"), torch.arange(2, device="cuda")

    def both() -> list[torch.Tensor]:
        o, lse = kernels.task_attention(q, k, k, None, key, False, 0.2, 0.1)
        saved = q, q, k, k, None, key, o, lse, False, 0.2, 0.1
        moved = kernels.task_attention_bwd2(k, None, q, *saved, 15)
        first = kernels.task_attention_bwd(*saved)
        return [o, *first, *moved, kernels.task_embedding_grad(q[:, 0, 0, :30], ids, 9)]

    both()  # a capture must not compile
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = both()
    q.normal_()
    k.normal_()
    key += 3
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(found, both(), strict=True))


def test_cpu_tensors_are_refused(kernels: Any) -> None:
    with pytest.raises(ValueError, match="x is on cpu"):
        kernels.task_linear(torch.ones(1, 1, 1), torch.ones(1, 1, 1), None, 0)
