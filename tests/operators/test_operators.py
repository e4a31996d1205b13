"""A fixed sample of PyTorch's operators; `make operators` tries all of them, in more ways."""

from __future__ import annotations

import json
from typing import Any

import pytest
from versions import differentiable_twice

from tests.operators.judge import EXECUTORS, judge
from tests.operators.problem import VARIANTS, Variant
from tests.operators.results import CLASSES, DOCS, RESULTS, figures, page, summary

PLAIN, IN_PLACE, SHARED = VARIANTS

RIGHT = [
    "linalg.solve",
    "linalg.slogdet",
    "logdet",
    "cumprod",
    "logit",
    "linalg.eigh",
    "svd",
    "cdist",
    "nn.functional.pdist",
    "nn.functional.embedding_bag",
    "nn.functional.multi_margin_loss",
    "nn.functional.hardsigmoid",
    "nn.functional.silu",
    "nn.functional.group_norm",
    "nn.functional.conv2d",
    "nn.functional.max_pool2d",
    "nn.functional.huber_loss",
    "masked_select",
    "sort",
    "index_put",
    "fft.rfft",
    "view_as_complex",
    "angle",
    "argmax",
]

NOT_RECORDED = ["masked_select", "fft.rfft", "view_as_complex"]
"""The size of the first one's result depends on values; the others see memory in two dtypes."""

NOT_FORWARDS = [
    "cholesky",
    "cholesky_inverse",
    "triangular_solve",
    "scatter_reduce.prod",
    "as_strided_scatter",
    "index_reduce.mean",
    "nn.functional.grid_sample",
    "nn.functional.max_unpool2d",
]

NOT_TWICE = ["nn.functional.ctc_loss", "_segment_reduce.lengths"]


def about(name: str, variant: Variant, *executors: str) -> dict[str, Any]:
    """What is found; from recordings, which are made of eager runs and checked against them."""
    rows = [finding.row() for finding in judge(name, 1, [variant], executors or ["captured"])]
    assert rows
    return summary({"findings": rows})


def found(name: str, variant: Variant, *executors: str) -> str:
    """The class of the operator."""
    return about(name, variant, *executors)["class"]


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("name", RIGHT)
def test_right_by_every_method(name: str) -> None:
    summary = about(name, PLAIN)
    assert summary["class"] == "right"
    assert name in NOT_RECORDED or "eager" not in summary, summary["eager"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linalg.det", "index_put", "cdist"])
def test_right_by_every_method_and_executor(name: str) -> None:
    assert found(name, PLAIN, *EXECUTORS) == "right"


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("name", NOT_FORWARDS)
def test_refused_by_mixed_mode_alone(name: str) -> None:
    if name == "nn.functional.grid_sample" and not differentiable_twice("grid_sample"):
        pytest.skip("this PyTorch has no second derivative of it")
    assert found(name, PLAIN) == "mixed mode"


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("name", NOT_TWICE)
def test_refused_by_exact_methods_and_right_in_first_order(name: str) -> None:
    assert found(name, PLAIN, "eager") == "second order"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mul", "cumsum", "index_add"])
def test_writing_in_place(name: str) -> None:
    assert found(name, IN_PLACE) == "right"


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("name", ["linalg.det", "cholesky_inverse", "_segment_reduce.lengths"])
def test_a_part_that_does_not_adapt(name: str) -> None:
    expected = "mixed mode" if name == "_segment_reduce.lengths" else "right"
    assert found(name, SHARED) == expected


def test_the_page_is_what_the_run_found() -> None:
    results = json.loads(RESULTS.read_text())
    assert DOCS.read_text() == page(results)
    numbers = figures(results)
    assert set(numbers) == set(CLASSES)
    assert numbers["wrong"] == numbers["error"] == numbers["crash"] == 0
    assert sum(numbers.values()) - numbers["not compared"] >= 400
