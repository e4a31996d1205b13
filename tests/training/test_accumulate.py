"""Several meta-batches an iteration are one larger one; bfloat16 is autocast's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastmaml import MAML, Batch, Episodes, LoopConfig, MetaTrainer, TrainConfig, episodes, rules
from fastmaml.training.config import PolicyConfig

ITERATIONS = 3


class Divided:
    """The meta-batches of a source, in parts with so many tasks."""

    def __init__(self, parts: Sequence[int]) -> None:
        source = episodes.digits(ways=3, shots=2, queries=3, tasks=sum(parts))
        self.whole = [source.sample().to(dtype=torch.float64) for _ in range(ITERATIONS)]
        self.parts = parts

    def __iter__(self) -> Iterator[Episodes]:
        for whole in self.whole:
            start = 0
            for count in self.parts:
                yield whole[start : start + count]
                start += count


def run_of(out: Path, parts: Sequence[int], **changes: Any) -> tuple[MetaTrainer, list[dict]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Dropout(0.2))
    model = nn.Sequential(model, nn.Linear(8, 3)).double()
    maml = MAML(model, steps=2, loss=F.cross_entropy, rule=rules.MetaSGD(0.3))
    config = LoopConfig(
        iterations=ITERATIONS,
        accumulate=len(parts),
        meta_lr=0.05,
        clip=0.1,
        checkpoint_every=0,
        out=str(out),
        plots=False,
    )
    config = dataclasses.replace(config, **changes)
    run = MetaTrainer(maml, Divided(parts), config=config, screen=False)
    return run, [run.step() for _ in range(ITERATIONS)]


@pytest.mark.parametrize("parts", [(3, 3), (2, 2, 2), (1, 5)])
def test_parts_give_the_numbers_of_the_whole(tmp_path: Path, parts: Sequence[int]) -> None:
    whole, expected = run_of(tmp_path, (6,))
    run, found = run_of(tmp_path, parts)
    for a, b in zip(run.maml.parameters(), whole.maml.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    for line, other in zip(found, expected, strict=True):
        for name in ("loss", "accuracy", "gradient_norm"):
            assert line[name] == pytest.approx(
                other[name], rel=1e-6 if name == "accuracy" else 1e-12
            )


def test_the_parts_are_not_all_alike(tmp_path: Path) -> None:
    """Otherwise the test above would show nothing."""
    run, _ = run_of(tmp_path, (6,))
    other, _ = run_of(tmp_path, (3,))
    assert not torch.allclose(*(next(x.maml.parameters()) for x in (run, other)), atol=1e-3)


def test_episodes_that_end_within_an_iteration(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ended after 2 of 3 iterations"):
        run_of(tmp_path, (3, 3), accumulate=4 // 2 + 1)


def test_autocast_is_that_of_torch(tmp_path: Path) -> None:
    batch = episodes.digits(ways=3, tasks=2).sample()

    def learner() -> MAML:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        return MAML(model, lr=0.3, loss=F.cross_entropy)

    by_hand = learner()
    with torch.autocast("cpu", torch.bfloat16):
        out = by_hand(batch)
    out.loss.backward()
    exact = learner()
    exact(batch).loss.backward()
    config = LoopConfig(autocast="bfloat16", checkpoint_every=0, out=str(tmp_path))
    run = MetaTrainer(learner(), [batch], config=config, screen=False)
    line = run.step()
    assert line["loss"] == out.loss.item()
    for p, q, r in zip(*(x.parameters() for x in (run.maml, by_hand, exact)), strict=True):
        assert p.dtype == torch.float32
        assert p.grad is not None
        assert torch.equal(p.grad, q.grad)
        assert not torch.equal(p.grad, r.grad)


def test_validations_are_in_the_same_precision(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Watching(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().forward(x)

    x = torch.randn(2, 4, 3)
    batch = Episodes(Batch(x, x[..., :1]), Batch(x, x[..., :1]))
    maml = MAML(Watching(3, 1), lr=0.1, loss=lambda a, b: (a - b).square().mean())
    settings: dict[str, Any] = {"validation_episodes": 2, "checkpoint_every": 0, "plots": False}
    config = LoopConfig(iterations=1, autocast="bfloat16", out=str(tmp_path), **settings)
    MetaTrainer(maml, [batch], validation=[batch], config=config, screen=False).fit()
    assert seen
    assert all(seen)


def test_an_autocast_around_it_stays_in_force(tmp_path: Path) -> None:
    batch = episodes.digits(ways=3, tasks=2).sample()
    losses = []
    for own in ("none", "bfloat16"):
        torch.manual_seed(0)
        maml = MAML(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), lr=0.3, loss=F.cross_entropy)
        config = LoopConfig(autocast=own, checkpoint_every=0, out=str(tmp_path))  # type: ignore[arg-type]
        run = MetaTrainer(maml, [batch], config=config, screen=False)
        with torch.autocast("cpu", torch.bfloat16, enabled=own == "none"):
            losses.append(run.step()["loss"])
    assert losses[0] == losses[1]


def test_what_means_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="autocast='bfloat16' leaves dtype='float64'"):
        TrainConfig(autocast="bfloat16", dtype="float64")
    with pytest.raises(ValueError, match="accumulate=2, autocast='none'"):
        PolicyConfig(accumulate=2)
