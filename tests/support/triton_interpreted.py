"""The Triton kernels under Triton's interpreter, against their definitions; run by test_triton.py.

TRITON_INTERPRET must be set before the kernels are imported, hence a process of their own. Every
launch is checked for bounds and for elements stored twice, and fresh memory is filled with NaN.
The interpreter multiplies bfloat16 wrongly, so float16 stands for the half precisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from triton_checks import BoundsError, careful, close

from fastmaml import kernels
from fastmaml.kernels import gemm, tiles, tuning
from fastmaml.kernels.conv_gather import flat, gather
from fastmaml.kernels.conv_wgrad import wgrad
from fastmaml.kernels.launch import Product, precision
from fastmaml.kernels.tiles import Tile, candidates, cycles, splits
from fastmaml.ops.task_act import at_input

ACTIVATIONS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda x: x,
    torch.relu,
    torch.tanh,
    F.gelu,
    lambda x: F.gelu(x, approximate="tanh"),
    torch.sigmoid,
    F.silu,
]
# By Triton 3.6's interpreter.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)
# stride, padding, dilation of a convolution
Settings = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
SAME: Settings = ((1, 1), (1, 1), (1, 1))


@pytest.fixture(autouse=True)
def carefully() -> Iterator[None]:
    with careful():
        yield


def layouts(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """The same shape dense, shared by all tasks, and with every stride unusual."""
    dense = torch.randn(shape, dtype=dtype)
    shared = torch.randn(shape[1:], dtype=dtype).expand(shape)
    backwards = torch.randn([2 * n for n in reversed(shape)], dtype=dtype)
    odd = backwards.permute(*reversed(range(len(shape))))[tuple(slice(0, n) for n in shape)]
    return [dense, shared, odd]


LINEAR = [(1, 1, 1, 1), (2, 3, 17, 5), (1, 17, 3, 19), (3, 1, 97, 2)]


@pytest.mark.sampled(at_most=3)
@pytest.mark.parametrize("size", LINEAR, ids=str)
@pytest.mark.parametrize("layout", range(3), ids=["dense", "shared", "odd strides"])
def test_linear(size: tuple[int, int, int, int], layout: int) -> None:
    tasks, examples, inputs, outputs = size
    x, w = (layouts((tasks, n, inputs))[layout] for n in (examples, outputs))
    b, g = layouts((tasks, outputs))[layout], layouts((tasks, examples, outputs))[layout]
    y, s = kernels.task_linear(x, w, b, 0)
    close(y, x.double() @ w.double().mT + b.double().unsqueeze(1))
    assert y.is_contiguous()
    assert s.numel() == 0
    close(kernels.task_linear_dgrad(g, w), g.double() @ w.double())
    gw, gb = kernels.task_linear_wgrad(g, x, True)
    close(gw, g.double().mT @ x.double())
    close(gb, g.double().sum(1))


@pytest.mark.sampled(at_most=4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("act", range(7))
def test_epilogue(act: int, dtype: torch.dtype) -> None:
    x, w, b = (torch.randn(shape, dtype=dtype) for shape in ((2, 3, 5), (2, 4, 5), (2, 4)))
    for bias in (b, None):
        y, s = kernels.task_linear(x, w, bias, act)
        before = x.double() @ w.double().mT + (0 if bias is None else b.double().unsqueeze(1))
        close(y, ACTIVATIONS[act](before))
        if at_input(act):
            close(s, before)
        else:
            assert s.numel() == 0


@pytest.mark.parametrize("act", [1, 2, 3, 4, 5, 6])
def test_activations_far_out_and_near_zero(act: int) -> None:
    x = torch.tensor([-200.0, -88.0, -9.0, -0.31, -0.29, -1e-4, 0.0, 1e-4, 0.3, 0.7, 9.0, 200.0])
    x = torch.cat([x, torch.tensor([float("nan")])]).view(1, -1, 1)
    with np.errstate(over="ignore", invalid="ignore"):  # as on a GPU: unused lanes may overflow
        y, _ = kernels.task_linear(x, torch.ones(1, 1, 1), None, act)
    expected = ACTIVATIONS[act](x.double())
    torch.testing.assert_close(y.double(), expected, rtol=2e-6, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("size", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 3, 0, 4), (2, 3, 4, 0)], ids=str)
def test_empty_linear(size: tuple[int, int, int, int]) -> None:
    tasks, examples, inputs, outputs = size
    x, w, g = (torch.randn(tasks, *s) for s in ((examples, inputs), (outputs, inputs), size[1::2]))
    b = torch.randn(tasks, outputs)
    close(kernels.task_linear(x, w, b, 0)[0], (x @ w.mT + b.unsqueeze(1)).double())
    close(kernels.task_linear_dgrad(g, w), (g @ w).double())
    gw, gb = kernels.task_linear_wgrad(g, x, True)
    close(gw, (g.mT @ x).double())
    close(gb, g.sum(1).double())


@pytest.mark.sampled(together=1)
@pytest.mark.parametrize("tile", [Tile(16, 16, 16, 1, 1), Tile(32, 16, 32, 1, 1)], ids=str)
@pytest.mark.parametrize("parts", [1, 3])
def test_tiles_and_split_sums(tile: Tile, parts: int) -> None:
    a, b = torch.randn(2, 35, 70), torch.randn(2, 70, 18)
    work = Product("x", 2, 35, 18, 70, a.dtype, "ieee", a.device, True)
    for out, sums in ((torch.empty(2, 35, 18), torch.empty(2, 35)), (torch.empty(2, 35, 18), None)):
        for launch in gemm.gemm(work, tile, a, b, out, row_sum=sums, parts=parts):
            launch.run()
        close(out, a.double() @ b.double())
        if sums is not None:
            close(sums, a.double().sum(2))


def definition(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, settings: Settings
) -> torch.Tensor:
    bias = [None] * len(x) if b is None else b
    return torch.stack([F.conv2d(*one, *settings) for one in zip(x, w, bias, strict=True)])


def check_conv(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, settings: Settings
) -> None:
    """All three members against autograd of the definition in float64."""
    inputs = [v.detach().double().requires_grad_() for v in (x, w, x.new_zeros(w.shape[:2]))]
    expected = definition(*inputs, settings) + (
        0 if b is None else b.double()[:, None, :, None, None]
    )
    y = kernels.task_conv2d(x, w, b, *settings)
    close(y, expected.detach())
    assert y.permute(0, 1, 3, 4, 2).is_contiguous()
    g = torch.randn(y.shape, dtype=x.dtype)
    gx, gw, gb = torch.autograd.grad(expected, inputs, g.double())
    found = kernels.task_conv2d_dgrad(g, w, *settings, x.shape[3:])
    close(found, gx)
    assert found.permute(0, 1, 3, 4, 2).is_contiguous()
    for bias in (False, True):
        found, sums = kernels.task_conv2d_wgrad(g, x, *settings, w.shape[3:], bias)
        close(found, gw)
        assert found.permute(0, 3, 4, 2, 1).is_contiguous()
    close(sums, gb)


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], Settings]] = {
    # name: x [T, N, C, H, W], w [O, kh, kw], settings
    "3x3": ((2, 2, 3, 5, 4), (2, 3, 3), SAME),
    "3x3, one channel": ((1, 1, 1, 3, 3), (17, 3, 3), SAME),
    "many channels": ((1, 2, 29, 3, 3), (18, 3, 3), SAME),
    "valid": ((1, 2, 3, 4, 5), (1, 2, 3), ((1, 1), (0, 0), (1, 1))),
    "1x1": ((2, 1, 17, 3, 2), (3, 1, 1), ((1, 1), (0, 0), (1, 1))),
    "1x1 stride 2": ((1, 2, 3, 5, 4), (2, 1, 1), ((2, 2), (0, 0), (1, 1))),
    "3x3 stride 2": ((1, 2, 2, 6, 5), (3, 3, 3), ((2, 2), (1, 1), (1, 1))),
    "uneven": ((1, 1, 2, 7, 8), (2, 5, 2), ((2, 3), (2, 0), (1, 1))),
    "dilated": ((1, 1, 2, 7, 6), (2, 3, 2), ((1, 1), (2, 1), (2, 3))),
    "dilated and strided": ((1, 1, 2, 8, 7), (2, 3, 3), ((2, 3), (1, 2), (2, 1))),
    "more padding than kernel": ((1, 1, 1, 2, 3), (2, 2, 2), ((1, 2), (3, 2), (1, 1))),
    "stride beyond the kernel": ((1, 1, 2, 9, 5), (2, 2, 1), ((4, 3), (1, 0), (1, 1))),
    "one pixel": ((2, 3, 4, 1, 1), (5, 3, 3), SAME),
}


@pytest.mark.sampled(at_most=3)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str) -> None:
    shape, (outputs, *kernel), settings = CONVOLUTIONS[name]
    x, w = torch.randn(shape), torch.randn(shape[0], outputs, shape[2], *kernel)
    check_conv(x, w, torch.randn(shape[0], outputs), settings)


@pytest.mark.parametrize("layout", range(3), ids=["dense", "shared", "odd strides"])
def test_convolution_of_any_layout(layout: int) -> None:
    check_conv(layouts((2, 2, 3, 4, 3))[layout], layouts((2, 2, 3, 3, 3))[layout], None, SAME)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_convolution_of_other_dtypes(dtype: torch.dtype) -> None:
    x, w = torch.randn(2, 2, 3, 5, 4, dtype=dtype), torch.randn(2, 4, 3, 3, 3, dtype=dtype)
    for settings in (SAME, ((2, 1), (1, 0), (2, 1))):
        check_conv(x, w, torch.randn(2, 4, dtype=dtype), settings)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4, 4), (2, 0, 3, 4, 4), (2, 1, 0, 4, 4)], ids=str)
def test_empty_convolution(shape: tuple[int, ...]) -> None:
    x, w = torch.randn(shape), torch.randn(shape[0], 2, shape[2], 3, 3)
    y = kernels.task_conv2d(x, w, None, *SAME)
    close(y, torch.zeros(*shape[:2], 2, 4, 4, dtype=torch.float64))
    close(kernels.task_conv2d_dgrad(y, w, *SAME, (4, 4)), x.double() * 0)
    gw, gb = kernels.task_conv2d_wgrad(y, x, *SAME, (3, 3), True)
    close(gw, w.double() * 0)
    close(gb, w.new_zeros(shape[0], 2).double())


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("tile", [Tile(16, 16, 16, 1, 1), Tile(32, 16, 32, 1, 1)], ids=str)
@pytest.mark.parametrize("channels", [3, 31], ids=["flat", "by taps"])
def test_convolution_tiles_and_split_sums(tile: Tile, channels: int) -> None:
    assert flat(channels, tile.k) == flat(channels, tile.m) == (channels == 3)
    x, w = torch.randn(1, 2, 3, 3, channels), torch.randn(1, 3, 2, channels, 18)
    y, gb = torch.empty(1, 2, 3, 2, 18), torch.empty(1, 18)
    setting = (1, 1), (1, 0), (1, 1)
    work = Product("x", 1, 12, 18, 6 * channels, x.dtype, "ieee", x.device)
    gather(work, tile, x, w, y, None, *setting, False).run()
    image, weight = x.permute(0, 1, 4, 2, 3), w.permute(0, 4, 3, 1, 2)
    close(y.permute(0, 1, 4, 2, 3), definition(image.double(), weight.double(), None, setting))
    gw = torch.empty(w.shape)
    for launch in wgrad(work, tile, x, y, gw, gb, *setting, parts=2):
        launch.run()
    image, given = image.double(), y.permute(0, 1, 4, 2, 3).double()
    expected = kernels.task_conv2d_wgrad(given, image, *setting, (3, 2), True)
    close(gw.permute(0, 4, 3, 1, 2), expected[0])
    close(gb, expected[1])


def examples() -> list[tuple[Callable, tuple]]:
    x, w, b = torch.randn(2, 3, 5), torch.randn(2, 4, 5), torch.randn(2, 4)
    g, image, weight = torch.randn(2, 3, 4), torch.randn(2, 1, 2, 4, 3), torch.randn(2, 3, 2, 3, 3)
    out = torch.randn(2, 1, 3, 4, 3)
    return [
        (kernels.task_linear, (x, w, b, 3)),
        (kernels.task_linear, (x, w, None, 1)),
        (kernels.task_linear_dgrad, (g, w)),
        (kernels.task_linear_wgrad, (g, x, True)),
        (kernels.task_conv2d, (image, weight, b[:, :3], *SAME)),
        (kernels.task_conv2d_dgrad, (out, weight, *SAME, (4, 3))),
        (kernels.task_conv2d_wgrad, (out, image, *SAME, (3, 3), False)),
    ]


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("index", range(7))
def test_each_is_one_node_of_a_trace(index: int) -> None:
    op, arguments = examples()[index]
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]

    def call(*given: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        rest = iter(given)
        return op(*(next(rest) if isinstance(a, torch.Tensor) else a for a in arguments))

    traced = make_fx(call, tracing_mode="fake")(*tensors)
    called = [n for n in traced.graph.nodes if n.op == "call_function"]
    assert [n for n in called if "fastmaml_triton" in str(n.target)] == called[:1]
    for found, expected in zip(traced(*tensors), call(*tensors), strict=True):
        assert torch.equal(found, expected)


def test_bad_arguments_are_named() -> None:
    x, w, b = torch.randn(2, 3, 5), torch.randn(2, 4, 5), torch.randn(2, 4)
    image, weight = torch.randn(2, 1, 2, 4, 3), torch.randn(2, 3, 2, 3, 3)
    for message, call in {
        "task_linear: w has 3 tasks, x has 2": lambda: kernels.task_linear(
            x, torch.randn(3, 4, 5), None, 0
        ),
        r"w has shape \[4, 5\], not 3 dim": lambda: kernels.task_linear(x, w[0], None, 0),
        "b is torch.float64": lambda: kernels.task_linear(x, w, b.double(), 0),
        r"shape of b is \[2, 3\], not \[2, 4\]": lambda: kernels.task_linear(x, w, b[:, :3], 0),
        r"number of inputs is \[4\], not \[5\]": lambda: kernels.task_linear(x, w[..., 1:], b, 0),
        "act is 7": lambda: kernels.task_linear(x, w, b, 7),
        "x is torch.int64": lambda: kernels.task_linear(x.long(), w.long(), None, 0),
        r"channels is \[2\], not \[1\]": lambda: kernels.task_conv2d(
            image[:, :, 1:], weight, None, *SAME
        ),
        r"stride is \[0, 1\]": lambda: kernels.task_conv2d(
            image, weight, None, (0, 1), (1, 1), (1, 1)
        ),
        "larger than the image": lambda: kernels.task_conv2d(
            image, weight, None, (1, 1), (0, 0), (2, 1)
        ),
        r"g's height and width is \[4, 3\]": lambda: kernels.task_conv2d_dgrad(
            weight.new_zeros(2, 1, 3, 4, 3), weight, *SAME, (5, 3)
        ),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_tf32_follows_pytorchs_switch() -> None:
    assert precision(torch.float32) == "ieee"
    torch.set_float32_matmul_precision("high")
    try:
        assert precision(torch.float32) == "tf32"
        assert precision(torch.bfloat16) == "ieee"
        kernels.task_linear(torch.ones(1, 1, 1), torch.ones(1, 1, 1), None, 0)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_model_prefers_what_fills_the_device() -> None:
    device = torch.device("meta")
    large = Product("x", 1, 4096, 4096, 4096, torch.bfloat16, "ieee", device)
    assert candidates(large)[0][:2] == (128, 128)
    small = Product("x", 32, 5, 5, 64, torch.float32, "ieee", device)
    assert candidates(small)[0][:2] == (16, 16)
    deep = Product("x", 1, 64, 64, 100_000, torch.float32, "tf32", device, splittable=True)
    tile = candidates(deep)[0]
    assert splits(deep, tile) > 1
    whole = Product("x", 1, 64, 64, 100_000, torch.float32, "tf32", device)
    assert cycles(deep, tile) < cycles(whole, tile)


def test_choices_are_kept_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "triton.json"
    work = Product("task_linear", 30, 100, 5, 64, torch.float32, "tf32", torch.device("cpu"))
    assert tuning.key(work) == "task_linear float32 tf32 32x128x8x64"
    assert tuning.remembered(path) == {}
    choices = {"a": Tile(16, 16, 32, 2, 3), "b": Tile(64, 64, 32, 4, 4)}
    for name, tile in choices.items():
        tuning.remember(path, name, tile)
    assert tuning.remembered(path) == choices
    assert list(path.parent.iterdir()) == [path]
    path.write_text("[1")
    with pytest.warns(UserWarning, match="measuring anew"):
        assert tuning.remembered(path) == {}
    with pytest.warns(UserWarning, match="this process only"):
        tuning.remember(path / "below a file", "a", tile)


def test_a_product_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, capturing, compiled = [], [True], []
    monkeypatch.setattr(tiles, "multiprocessors", lambda device: 100)
    monkeypatch.setattr(tuning, "cache_file", lambda device: tmp_path / "triton.json")
    monkeypatch.setattr(tuning, "measure", lambda plan: measured.extend(plan) or -len(measured))
    monkeypatch.setattr(tuning, "compile_all", compiled.append)
    monkeypatch.setattr(tuning, "DECIDED", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    work = Product("x", 2, 500, 500, 500, torch.float32, "tf32", torch.device("cuda"))
    ranked = candidates(work)

    def choose() -> Tile:
        return tuning.choose(work, lambda tile: [tile])

    assert choose() == ranked[0]  # nothing can be measured, and nothing is kept
    capturing[0] = False
    assert choose() == choose() == ranked[2]  # the last measured is the fastest
    assert measured == list(ranked[:3])
    assert compiled == [measured], "all at the same time, before the first is measured"
    tuning.DECIDED.clear()
    assert choose() == ranked[2]
    assert len(measured) == 3  # as a new process finds it on the disk
    tuning.DECIDED.clear()
    monkeypatch.setenv("FASTMAML_AUTOTUNE", "0")
    assert choose() == ranked[0]


@triton.jit
def copy_kernel(x, y, n, READ: tl.constexpr, WRITE: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + index, mask=index < n + READ, other=0.0)
    tl.store(y + index, value, mask=index < n + WRITE)


def test_the_checker_sees_what_is_out_of_bounds() -> None:
    x, y = torch.randn(20)[:10], torch.empty(20)[:10]
    copy_kernel[(2,)](x, y, 10, READ=0, WRITE=0, BLOCK=8)
    assert torch.equal(x, y)
    error = triton.runtime.errors.InterpreterError
    with pytest.raises(error, match="load: 1 of 3 active lanes"):
        copy_kernel[(2,)](x, y, 10, READ=1, WRITE=0, BLOCK=8)
    with pytest.raises(error, match="store: 2 of 4 active lanes"):
        copy_kernel[(2,)](x, y, 10, READ=0, WRITE=2, BLOCK=8)


def test_the_checker_sees_a_race() -> None:
    with pytest.raises(BoundsError, match="8 elements are stored more than once"):
        copy_kernel[(1, 2)](torch.randn(8), torch.empty(8), 8, READ=0, WRITE=0, BLOCK=8)
