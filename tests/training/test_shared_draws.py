"""Intervals where the tasks of a meta-batch are no independent draws: ranges of ways, buckets."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.training.evaluation import evaluate, shares_draws
from fastmaml.training.intervals import student_95
from fastmaml.training.recipes.base import Converted

COUNT, TASKS = 30, 4


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(12).repeat_interleave(8)
    return torch.randn(96, 3, generator=generator) + labels[:, None] / 4, labels


def sampler(ways: Any, shots: Any = 1, tasks: int = TASKS) -> fm.EpisodeSampler:
    return fm.EpisodeSampler(data(), ways=ways, shots=shots, queries=2, tasks=tasks, seed=3)


def learner() -> fm.MAML:
    torch.manual_seed(0)
    model = fm.models.mlp(3, 12, hidden=(4,)).double()
    return fm.MAML(model, 0.1, loss=F.cross_entropy, executor="eager")


def accuracies(source: fm.EpisodeSampler) -> list[list[float]]:
    """Of each meta-batch its tasks', up to the count."""
    maml, found = learner(), []
    for batch in Converted(source, torch.float64):
        out = maml.evaluate(batch)
        assert out.accuracies is not None
        found.append(out.accuracies.tolist())
        if sum(map(len, found)) >= COUNT:
            found[-1] = found[-1][: len(found[-1]) + COUNT - sum(map(len, found))]
            return found
    raise AssertionError


def test_the_interval_is_over_meta_batches() -> None:
    """The last one counts by half: 30 tasks of meta-batches of 4."""
    found = evaluate(learner(), Converted(sampler((2, 12)), torch.float64), COUNT, 1)
    batches = accuracies(sampler((2, 12)))
    mean = statistics.fmean(x for batch in batches for x in batch)
    sums = [sum(x - mean for x in batch) for batch in batches]
    spread = (sum(x * x for x in sums) * len(sums) / (len(sums) - 1)) ** 0.5 / COUNT
    assert found.means[-1] == pytest.approx(mean, rel=1e-12)
    assert found.intervals[-1] == pytest.approx(spread * student_95(len(sums) - 1), rel=1e-9)
    plain = [x for batch in batches for x in batch]
    assert spread > 1.5 * statistics.stdev(plain) / COUNT**0.5


def test_with_fixed_numbers_it_is_over_tasks() -> None:
    found = evaluate(learner(), Converted(sampler(5), torch.float64), COUNT, 1)
    plain = [x for batch in accuracies(sampler(5)) for x in batch]
    error = statistics.stdev(plain) / COUNT**0.5
    assert found.intervals[-1] == pytest.approx(error * student_95(COUNT - 1), rel=1e-9)


def test_a_single_meta_batch_has_no_interval() -> None:
    found = evaluate(learner(), Converted(sampler((2, 12)), torch.float64), TASKS, 1)
    assert found.intervals[-1] != found.intervals[-1]


class Wrapped:
    def __init__(self, source: Any) -> None:
        self.source = source

    def __iter__(self) -> Iterator[fm.Episodes]:
        return iter(self.source)


def test_chance_is_of_the_classes_that_a_task_has() -> None:
    """Query sets as they come lack some of six classes; support sets have them."""
    labels = torch.arange(12).view(2, 6) % 6
    query = fm.Batch(torch.randn(2, 2, 3), torch.tensor([[0, 1], [2, -100]]))
    episodes = fm.Episodes(fm.Batch(torch.randn(2, 6, 3), labels), query)
    maml = fm.MAML(fm.models.mlp(3, 6, hidden=(4,)), 0.1, loss=F.cross_entropy, executor="eager")
    assert evaluate(maml, [episodes], 2, 1).chance == pytest.approx(1 / 6)


def test_who_shares_draws() -> None:
    ranges = sampler((2, 3))
    for source in (ranges, iter(ranges), Converted(ranges, torch.float64), Wrapped(ranges)):
        assert shares_draws(source)
    assert shares_draws(sampler(2, shots=(1, 2)))
    assert shares_draws(sampler(2, shots="meta-dataset"))
    for other in (sampler(2), sampler((2, 3), tasks=1), iter(sampler(2)), [next(iter(ranges))]):
        assert not shares_draws(other)


def test_tables() -> None:
    rows = [(f"u{i}", float(j), float(j)) for i in range(12) for j in range(4 + i)]
    columns = {
        name: list(x) for name, x in zip(("u", "x", "y"), zip(*rows, strict=True), strict=True)
    }

    def source(unequal: Any) -> Any:
        return fm.episodes.table(
            columns, task="u", target="y", split="all", tasks=3, unequal=unequal
        )

    assert shares_draws(source("buckets"))
    assert not shares_draws(source("mask"))
    assert not shares_draws(source("buckets").all())
