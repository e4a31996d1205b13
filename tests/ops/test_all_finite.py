"""One question for all losses and gradients: is any of them NaN or infinite?"""

from __future__ import annotations

import math

import pytest
import torch
from outcomes import require
from torch import Tensor

from fastmaml.ops.coverage import all_finite

SIZE = 40_000  # in three blocks, of which threads take some


@pytest.fixture(autouse=True)
def _native() -> None:
    require("cpp")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 16_383, 16_384, SIZE - 1])
def test_each_element_is_looked_at(dtype: torch.dtype, bad: float, place: int) -> None:
    largest = torch.finfo(dtype).max
    given = [torch.zeros(0, dtype=dtype), torch.full((SIZE,), -largest, dtype=dtype)]
    assert all_finite([*given, torch.tensor(largest, dtype=dtype)])
    given[1][place] = bad
    assert not all_finite(given)


def test_whatever_their_order_in_memory() -> None:
    x = torch.randn(2, 3, 4, 5)
    for given in (x, x.permute(0, 2, 3, 1), x.to(memory_format=torch.channels_last), x[:1]):
        assert all_finite([given])
        other = given.clone(memory_format=torch.preserve_format)
        other[0, 1, 2, 2] = math.nan
        assert not all_finite([other])


def _strided() -> Tensor:
    return torch.randn(8, 8)[:, 0]


@pytest.mark.parametrize(
    "given",
    [torch.ones(3, dtype=torch.int64), torch.ones(3).half(), torch.ones(3, device="meta")],
    ids=["integers", "half", "meta"],
)
def test_what_it_cannot_tell_is_left_to_others(given: Tensor) -> None:
    assert not all_finite([torch.ones(2), given])
    assert not all_finite([_strided()])
