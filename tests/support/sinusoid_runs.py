"""Small runs of `MetaTrainer` on sinusoids, and what they leave."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmaml import MAML, Episodes, episodes
from fastmaml.training.config import LoopConfig
from fastmaml.training.trainer import MetaTrainer

CONFIG = LoopConfig(
    iterations=10,
    meta_lr=0.01,
    schedule="cosine",
    clip=1.0,
    first_order_until=3,
    multi_step_until=8,
    evaluate_every=3,
    validation_episodes=6,
    test_episodes=10,
    checkpoint_every=4,
    plots=False,
)


def mean_square(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


class Watched:
    """Sinusoid episodes that call `event` before the n-th meta-batch."""

    def __init__(self, at: int = -1, event: Callable[[], None] = lambda: None) -> None:
        self.source = episodes.sinusoid(shots=4, queries=4, tasks=4)
        self.at, self.event, self.count = at, event, 0

    def __iter__(self) -> Iterator[Episodes]:
        for batch in self.source:
            self.count += 1
            if self.count == self.at:
                self.event()
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {**self.source.state_dict(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.source.load_state_dict(state)
        self.count = state["count"]


def trainer(
    out: Path,
    train: Any = None,
    seed: int = 0,
    *,
    scheduler: Any = None,
    callbacks: Any = (),
    executor: Any = None,
    **changes: Any,
) -> MetaTrainer:
    """A small network with dropout, two inner steps and learned rates."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1))
    rates = nn.Parameter(torch.tensor(0.05))
    return MetaTrainer(
        MAML(model, lr=rates, steps=2, loss=mean_square, executor=executor),
        Watched() if train is None else train,
        config=dataclasses.replace(CONFIG, out=str(out), **changes),
        validation=episodes.sinusoid(4, 4, 4, seed=1),
        test=episodes.sinusoid(4, 4, 4, seed=2),
        screen=False,
        scheduler=scheduler,
        callbacks=callbacks,
    )


def final_state(trainer: MetaTrainer) -> list[Tensor]:
    """Parameters and optimizer state of what is trained, not of what was tested."""
    trainer._put_back()
    kept = [*trainer.maml.state_dict().values()]
    for state in trainer.optimizer.state_dict()["state"].values():
        kept += state.values()
    return [x.clone() for x in kept]


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics but for the time."""
    text = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in text]
