"""How fast are meta-batches drawn, from data of Omniglot's shape?

Every image here is its own number, so that a drawn meta-batch is first checked for what it should
be: classes that differ within a task, examples of their class, and none in support and query both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.programs.sampling import WORKLOADS
from fastmaml.episodes import Episodes, EpisodeSampler

CLASSES, EXAMPLES = 1200, 20


def rows(device: str, quick: bool) -> list[dict[str, Any]]:
    return [dict(work) for work in (WORKLOADS[:1] if quick else WORKLOADS)]


@functools.lru_cache(maxsize=1)
def data(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose first pixels hold their place among all."""
    places = torch.arange(CLASSES * EXAMPLES)
    images = torch.zeros(len(places), 1, 28, 28, dtype=torch.uint8)
    for digit in range(2):
        images[:, 0, 0, digit] = (places // 256**digit % 256).to(torch.uint8)
    return images.to(device), torch.arange(CLASSES).repeat_interleave(EXAMPLES).to(device)


def check(episodes: Episodes, ways: int, shots: int, queries: int) -> None:
    places = {}
    for name, batch, count in (
        ("support", episodes.support, shots),
        ("query", episodes.query, queries),
    ):
        pixels = batch.inputs[:, :, 0, 0, :2].long()
        places[name] = pixels[..., 0] + 256 * pixels[..., 1]
        classes = places[name] // EXAMPLES
        for task, labels in zip(classes, batch.targets, strict=True):
            of_label = {(int(y), int(c)) for y, c in zip(labels, task, strict=True)}
            assert len(of_label) == len({c for _, c in of_label}) == ways
            assert torch.bincount(labels, minlength=ways).tolist() == [count] * ways
    for task in zip(*places.values(), strict=True):
        drawn = torch.cat(task).tolist()
        assert len(set(drawn)) == len(drawn)


def test_sampling(
    ways: int, shots: int, queries: int, tasks: int, device: str, timed: Callable[..., None]
) -> None:
    sampler = EpisodeSampler(
        data(device), ways=ways, shots=shots, queries=queries, tasks=tasks, device=device,
        transform=torch.Tensor.float,
    )  # fmt: skip
    check(sampler.sample(), ways, shots, queries)
    timed(sampler.sample, tasks=tasks)
