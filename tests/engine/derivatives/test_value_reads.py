"""Who reads values out of tensors, and whose values those are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmaml.engine.derivatives.value_reads import ValueReads

OUTSIDE = torch.tensor([1.0, 2.0])


def _written(y: Tensor | None) -> bool:
    made = torch.zeros(4)
    made[1:3].fill_(1) if y is None else made[1:3].copy_(y)
    return bool(made.sum() > 0)


def _forgotten(x: Tensor) -> bool:
    made = torch.ones(2)
    made = made * x  # where that other one was, perhaps
    return bool(made.any())


FIXED: dict[str, Callable[[Tensor], object]] = {
    "arange": lambda x: (torch.arange(4).diff() == 1).all().item(),
    "like": lambda x: torch.full((3,), x.shape[0]).sum().item(),
    "view": lambda x: bool(torch.eye(3)[1, 1:].sum() == 1),
    "written": lambda x: _written(None),
    "equal": lambda x: torch.equal(torch.ones(2), torch.arange(1, 3)),
    "none": lambda x: x.sin(),
}

OTHERS: dict[str, Callable[[Tensor], object]] = {
    "input": lambda x: x.sum().item(),
    "outside": lambda x: OUTSIDE.max().item(),
    "written": lambda x: _written(x),
    "written from outside": lambda x: _written(OUTSIDE),
    "made of both": lambda x: bool((torch.arange(4) * x[0]).any()),
    "made anew": _forgotten,
    "drawn": lambda x: F.dropout(torch.ones(8), 0.5).sum().item(),
    "like": lambda x: torch.ones_like(x).mul_(x).sum().item(),
    "list": lambda x: torch.arange(4).tolist(),  # a door: what is behind it is not asked
}


@pytest.mark.parametrize("name", FIXED)
def test_what_is_the_same_every_time_is_no_read(name: str) -> None:
    given = torch.ones(2)
    with ValueReads() as found:
        FIXED[name](given)
    assert not found.numbers
    assert not found.seen


@pytest.mark.parametrize("name", OTHERS)
def test_what_may_differ_is(name: str) -> None:
    given = torch.ones(2)
    with ValueReads() as found:
        OTHERS[name](given)
    assert found.numbers
    assert found.seen
