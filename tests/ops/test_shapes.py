"""What the kernels would allocate: the shapes of their results, without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fastmaml import ops

SHAPES = ops.kernels("shapes")


def _x(*size: int) -> Tensor:
    return torch.rand(size)


def _attention() -> tuple[Any, ...]:
    """q, k, v, mask and key; o, lse and how."""
    q, k, v = _x(2, 3, 4, 5, 8), _x(2, 3, 4, 6, 8), _x(2, 3, 4, 6, 7)
    return q, k, v, None, None, _x(2, 3, 5, 4, 7).transpose(2, 3), _x(2, 3, 4, 5), False, 0.3, 0.0


def _arguments() -> dict[str, list[tuple[Any, ...]]]:
    x, w, ids = _x(2, 5, 6), _x(2, 4, 6), torch.randint(5, (2, 7))
    rows, stats, target = _x(2, 5, 6), _x(2, 5), torch.randint(6, (2, 5))
    q, k, v, mask, key, o, lse, *how = _attention()
    lists = [[_x(2, 3), _x(2, 4, 5)] for _ in range(2)]
    rates = [torch.tensor(0.1), _x(4, 5)]
    weight = _x(2, 6)
    norm = rows, weight, stats, stats
    return {
        "task_linear": [(x, w, None, 0), (x, w, _x(2, 4), 6), (x, w, None, 1)],
        "task_linear_dgrad": [(_x(2, 5, 4), w)],
        "task_linear_wgrad": [(_x(2, 5, 4), x, False), (_x(2, 5, 4), x, True)],
        "task_act": [(x, 6)],
        "task_act_bwd": [(x, x, 6)],
        "task_act_bwd2": [(x, x, x, 6, need) for need in (1, 2, 3)],
        "task_layer_norm": [(rows, weight, weight, 1e-5), (rows, None, None, 1e-5)],
        "task_layer_norm_bwd": [(rows, *norm, need) for need in (1, 6, 7)],
        "task_layer_norm_bwd2": [(rows, weight, None, rows, *norm, need) for need in (1, 6, 7)],
        "task_cross_entropy": [(rows, target, -100)],
        "task_cross_entropy_bwd": [(_x(2), rows, target, stats, -100)],
        "task_cross_entropy_bwd2": [
            (rows, _x(2), rows, target, stats, -100, need) for need in (1, 2, 3)
        ],
        "task_attention": [(q, k, v, mask, key, *how)],
        "task_attention_bwd": [(o, q, k, v, mask, key, o, lse, *how)],
        "task_attention_bwd2": [
            (q, k, v, o, q, k, v, mask, key, o, lse, *how, need) for need in (1, 6, 14, 15)
        ],
        "task_embedding": [(w, ids % 4)],
        "task_embedding_grad": [(_x(2, 7, 6), ids, 5)],
        "dropout_mask": [(torch.tensor([1, 2]), 9, 0.5, torch.float32)],
        "inner_update": [(*lists, [], -0.1), (*lists, rates, -1.0)],
        "inner_scale": [(lists[0], rates, -1.0), (lists[0], [], -1.0)],
        "inner_rate_grad": [(*lists, [True, False], -1.0)],
    }


CASES = [(name, i) for name, rows in _arguments().items() for i in range(len(rows))]


def test_every_op_of_it_has_a_case() -> None:
    assert set(_arguments()) == set(SHAPES.raw_ops)


@pytest.mark.parametrize(("name", "number"), CASES)
def test_the_results_are_like_the_kernels(name: str, number: int) -> None:
    try:
        kernel: Callable[..., Any] = ops.kernels("cpp").raw_ops[name]
    except ValueError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    given = _arguments()[name][number]
    wanted = tree_leaves(kernel(*given))
    with FakeTensorMode() as mode:
        fake = tree_map_only(Tensor, mode.from_tensor, given)
        found = tree_leaves(SHAPES.raw_ops[name](*fake))
    assert list(map(_layout, found)) == list(map(_layout, wanted))


def _layout(x: Tensor) -> tuple[Any, ...]:
    return x.shape, x.dtype, x.stride() if x.numel() else ()


def test_it_computes_nothing() -> None:
    with pytest.raises(ValueError, match="computes nothing"):
        ops.task_act(torch.ones(2, 3), "silu", backend="shapes")


def test_it_is_none_of_the_backends() -> None:
    assert "shapes" not in ops.BACKENDS
    assert "shapes" not in ops.status()
