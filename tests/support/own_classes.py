"""Classes as users write them: the examples', and the package's own text as a module of theirs."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from places import ROOT
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.engine.planning.plan import Plan
from fastmaml.heads import Head

EXAMPLES = sorted(ROOT.glob("examples/extending/*.py"))


def loaded(path: Path, name: str) -> ModuleType:
    """A file as a module of this name, which is not the package's."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def example(name: str) -> Any:
    """What `examples/extending` has under this name."""
    return loaded(ROOT / "examples" / "extending" / f"{name}.py", f"extending_{name}")


def outside(file: str) -> Any:
    """A file of the package, such as "rules/sgd.py", as if a user had written it."""
    own = loaded(ROOT / "fastmaml" / file, f"outside_{file.removesuffix('.py').replace('/', '_')}")
    assert not own.__name__.startswith("fastmaml")
    return own


@dataclasses.dataclass(frozen=True)
class Zero(Head):
    """`heads.Zero`; `heads.py` itself would bring a base class of its own."""

    def start(self, weight: Tensor, features: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(weight), weight.new_zeros(len(weight))


@dataclasses.dataclass(frozen=True)
class Prototype(Head):
    """`heads.Prototype`, for labels alone."""

    scale: float = 1.0
    needs_features: ClassVar[bool] = True
    needs_bias: ClassVar[bool] = True

    def start(self, weight: Tensor, features: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        member = targets == torch.arange(len(weight), device=targets.device).unsqueeze(-1)
        member = member.to(features.dtype)
        means = member @ features / member.sum(1, keepdim=True).clamp(min=1)
        return 2 * self.scale * means, -self.scale * means.square().sum(1)


class Words(nn.Module):
    """Looks up a few of many rows, all of which adapt."""

    def __init__(self, rows: int = 2000) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(rows, 6), nn.Linear(6, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.table(x).mean(1))


WAYS, TASKS = 3, 4


def _layers() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, WAYS))


def _vectors(seed: int) -> Tensor:
    return torch.randn(TASKS, 6, 5, generator=torch.Generator().manual_seed(seed))


def _words(seed: int) -> Tensor:
    return torch.randint(2000, (TASKS, 6, 4), generator=torch.Generator().manual_seed(seed))


def problem(name: str, **options: Any) -> tuple[fm.MAML, fm.Episodes]:
    """A small classifier: "all" of it adapts, its "head", or a table of "words"."""
    torch.manual_seed(0)
    inputs, model = (_words, Words()) if name == "words" else (_vectors, _layers())
    labels = torch.arange(WAYS).repeat(TASKS, 2)
    settings = {
        "steps": 3, "loss": F.cross_entropy, "scope": "head" if name == "head" else "all",
        "memory_budget": 2**28, **options,
    }  # fmt: skip
    if "rule" not in options:
        settings["lr"] = 0.1
    episodes = fm.Episodes(*(fm.Batch(inputs(seed), labels) for seed in (1, 2)))
    return fm.MAML(model, **settings), episodes


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is decided for a meta-step, how many operations its recording has, and its numbers."""

    plan: dict[str, Any]
    operations: str
    numbers: list[Tensor]

    def assert_same(self, other: Facts) -> None:
        """To the last bit."""
        assert self.plan == other.plan
        assert self.operations == other.operations
        assert len(self.numbers) == len(other.numbers) > 1
        for x, y in zip(self.numbers, other.numbers, strict=True):
            assert torch.equal(x, y)


def facts(maml: fm.MAML, episodes: fm.Episodes) -> Facts:
    """Of a replay."""
    plan = maml.explain(episodes)
    said = str(plan)
    operations = re.search(r"executor: captured, (\d+) operations", said)
    assert operations is not None, said
    decided = {
        field.name: getattr(plan, field.name)
        for field in dataclasses.fields(Plan)
        if field.name not in ("gradient", "depends")  # what differs, and what it is watched by
    }
    decided["gradient"] = repr(plan.gradient)
    numbers: list[Tensor] = []
    for _ in range(2):
        maml.zero_grad()
        out = maml(episodes)
        out.loss.backward()
        numbers = [out.losses.detach(), out.outputs.detach()]
        numbers += [p.grad for p in maml.parameters() if p.grad is not None]
    return Facts(decided, operations[1], numbers)
