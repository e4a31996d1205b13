"""The ops of one task: as PyTorch has them, to the third derivative."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmaml import ops
from fastmaml.ops import one_task
from fastmaml.ops.one_task import Normalisation
from fastmaml.ops.task_batch_norm import reference_task_batch_norm
from fastmaml.ops.task_layer_norm import reference_task_layer_norm

pytestmark = pytest.mark.skipif(
    ops.default_backend("cpu") == "reference", reason="the native module is not built"
)
Function = Callable[..., Tensor]


def normalised(relu: bool, pool: bool, b: bool = True) -> tuple[Function, Function, list[Tensor]]:
    def found(x: Tensor, w: Tensor, *b: Tensor) -> Tensor:
        of = Normalisation(x, w, b[0] if b else None, 1e-3, relu, pool)
        return one_task.batch_norm("cpp", of)[0]

    def expected(x: Tensor, w: Tensor, *b: Tensor) -> Tensor:
        more = b[0][None] if b else None
        return reference_task_batch_norm(x[None], w[None], more, 1e-3, relu, pool)[0]

    return found, expected, drawn((3, 2, 5, 4), (2,), *[(2,)] * b)


def in_layers() -> tuple[Function, Function, list[Tensor]]:
    def expected(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return reference_task_layer_norm(x[None], w[None], b[None], 1e-3)[0]

    found = partial(one_task.layer_norm, "cpp", eps=1e-3)
    return found, expected, drawn((4, 7), (7,), (7,))


def attending(masked: bool) -> tuple[Function, Function, list[Tensor]]:
    mask = torch.zeros(5).masked_fill(torch.arange(5) > 2, -torch.inf).double() if masked else None

    def found(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return one_task.attention("cpp", q, k, v, mask, False, 0.5)

    def expected(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = 0.5 * q @ k.mT + (0 if mask is None else mask)
        return scores.softmax(-1) @ v

    return found, expected, drawn((2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 6))


def convolved(bias: bool) -> tuple[Function, Function, list[Tensor]]:
    def found(x: Tensor, w: Tensor, *b: Tensor) -> Tensor:
        more = b[0] if b else None
        return one_task.conv2d("cpp", x, w, more, (2, 1), (1, 0), (1, 2))

    def expected(x: Tensor, w: Tensor, *b: Tensor) -> Tensor:
        return F.conv2d(x, w, b[0] if b else None, (2, 1), (1, 0), (1, 2))

    return found, expected, drawn((2, 3, 6, 7), (4, 3, 3, 2), *[(4,)] * bias)


def turned() -> tuple[Function, Function, list[Tensor]]:
    def found(x: Tensor) -> Tensor:
        return one_task.channels_first(x.to(memory_format=torch.channels_last))

    return found, lambda x: x.clone(), drawn((3, 17, 30, 31))


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


CASES: dict[str, Callable[[], tuple[Function, Function, list[Tensor]]]] = {
    "batch norm": partial(normalised, False, False),
    "batch norm, relu": partial(normalised, True, False),
    "batch norm, relu, pool": partial(normalised, True, True),
    "batch norm without bias": partial(normalised, True, False, False),
    "layer norm": in_layers,
    "gelu": lambda: (partial(one_task.act, "cpp", activation="gelu"), F.gelu, drawn((3, 5))),
    "silu": lambda: (
        partial(one_task.act, "cpp", activation="silu"),
        lambda x: x * torch.sigmoid(x),
        drawn((3, 5)),
    ),
    "attention": partial(attending, False),
    "attention, masked": partial(attending, True),
    "conv": partial(convolved, True),
    "conv without bias": partial(convolved, False),
    "channels first": turned,
}


def weighted(xs: list[Tensor]) -> Tensor:
    """A sum of sines with weights that are all different."""
    weights = (torch.arange(x.numel(), dtype=x.dtype).cos().view_as(x) for x in xs)
    return torch.stack([(x.sin() * w).sum() for x, w in zip(xs, weights, strict=True)]).sum()


@pytest.mark.parametrize("name", CASES)
def test_values_and_three_derivatives(name: str) -> None:
    found, expected, leaves = CASES[name]()
    a, b = found(*leaves), expected(*leaves)
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    for _ in range(3):
        pair = [
            torch.autograd.grad(
                weighted([y] if isinstance(y, Tensor) else y), leaves, create_graph=True
            )
            for y in (a, b)
        ]
        for x, y in zip(*pair, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)
        a, b = (list(gradients) for gradients in pair)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape",
    [(5, 64, 28, 28), (1, 1, 200, 200), (3, 5, 6, 7), (2, 70, 1, 1), (2, 3, 2, 2), (0, 3, 4, 4)],
)
def test_channels_first_is_a_dense_copy(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    dense = torch.randn(shape, dtype=dtype)
    y = torch.ops.fastmaml.channels_first(dense.to(memory_format=torch.channels_last))
    assert y.is_contiguous()
    assert torch.equal(y, dense)
    strided = torch.randn(*shape[:3], 2 * shape[3], dtype=dtype)[..., ::2]
    assert torch.equal(torch.ops.fastmaml.channels_first(strided), strided)


def test_a_result_may_be_written_over() -> None:
    x, w, b = drawn((2, 3, 6, 6), (4, 3, 1, 1), (4,))
    y = one_task.conv2d("cpp", x, w, b, (1, 1), (0, 0), (1, 1))
    y.relu_().sum().backward()
    assert w.grad is not None
    assert x.grad is not None
