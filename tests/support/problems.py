"""The rows of the contract: problems, rules and gradient methods that must agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastmaml as fm
from fastmaml.gradients import Checkpointed, GradientMethod, MixedMode, Unrolled
from fastmaml.rules import (
    ALFA,
    KFO,
    LSLR,
    SGD,
    Adam,
    AdamW,
    ClipNorm,
    ClipValue,
    MetaCurvature,
    MetaSGD,
    Momentum,
    Proximal,
    Rule,
    Scheduled,
    WeightDecay,
    chain,
)

TASKS, STEPS = 3, 3


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Problem:
    """A model, a loss and a meta-batch in float64, smooth, with a large second-order term."""

    name: str
    model: Callable[[], nn.Module]
    loss: Callable[[Any, Any], Tensor]
    episodes: fm.Episodes
    options: dict[str, Any] = field(default_factory=dict)

    def maml(self, rule: Rule, **options: Any) -> fm.MAML:
        torch.manual_seed(1)
        model = self.model().double()
        return fm.MAML(
            model, rule=rule, loss=self.loss, **{"steps": STEPS, **self.options, **options}
        )


class TwoInputs(nn.Module):
    """Named inputs, a nested module, and a parameter that the loss never uses."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.ModuleDict({"inner": nn.Linear(3, 4)})
        self.right = nn.Linear(2, 4)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.left["inner"](a).tanh() * self.right(b)).sum(-1, keepdim=True)


class Tied(nn.Module):
    """The same weight embeds and reads out, and one linear module is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.mix = nn.Linear(4, 4)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.out(self.mix(self.mix(x).tanh()).mean(-2))


class NormalisedClassifier(nn.Module):
    """BatchNorm with running statistics, a frozen layer and a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(4, 6).requires_grad_(False)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 5)
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.frozen(x)).tanh() * self.scale)


class Attention(nn.Module):
    """One block of a transformer, written as nanoGPT and its kin write it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(4), nn.LayerNorm(4)
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)
        self.mlp = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        heads = self.qkv(self.first(x)).view(n, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads.unbind(0), is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return self.head((x + self.mlp(self.second(x))).mean(1))


def _labels(n: int, classes: int, seed: int) -> Tensor:
    return torch.randint(classes, (TASKS, n), generator=torch.Generator().manual_seed(seed))


def _regression() -> fm.Episodes:
    x, q = tensor(TASKS, 6, 2, seed=1), tensor(TASKS, 4, 2, seed=2)
    return fm.Episodes(
        fm.Batch(x, x.sum(-1, keepdim=True).sin()), fm.Batch(q, q.prod(-1, keepdim=True).cos())
    )


def _pairs(n: int, seed: int) -> fm.Batch:
    inputs = {"a": tensor(TASKS, n, 3, seed=seed), "b": tensor(TASKS, n, 2, seed=seed + 1)}
    return fm.Batch(inputs, tensor(TASKS, n, 1, seed=seed + 2))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 5), nn.SiLU(), nn.Linear(5, 1))


def _quartic(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().square().mean()


def _with_context() -> nn.Module:
    body = nn.Sequential(nn.Linear(2 + 3, 5), nn.Tanh(), nn.Linear(5, 1))
    return fm.models.WithContext(body, 3)


def _dropout_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 1))


def _conv() -> nn.Module:
    """The block of the few-shot literature; BatchNorm, ReLU and pooling become one op."""
    block = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*block, nn.Flatten(), nn.Linear(8, 3))


def _per_step_conv() -> nn.Module:
    """The same block with a weight and a bias for each inner step, all of them far apart."""
    model = fm.models.per_step_batch_norm(_conv(), STEPS)
    with torch.no_grad():
        for i, p in enumerate(model[1].parameters()):
            p.add_(tensor(*p.shape, seed=60 + i) / 2)
    return model


def _strided_conv() -> nn.Module:
    body = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False), nn.GELU(), nn.Conv2d(3, 2, 2)
    return nn.Sequential(*body, nn.Sigmoid(), nn.Flatten(), nn.Linear(2, 3))


def _classes(*shape: int) -> fm.Episodes:
    """Inputs of this shape in three classes."""
    return fm.Episodes(
        fm.Batch(tensor(TASKS, 4, *shape, seed=21), _labels(4, 3, 22)),
        fm.Batch(tensor(TASKS, 5, *shape, seed=23), _labels(5, 3, 24)),
    )


def _tokens(n: int, seed: int) -> Tensor:
    return torch.randint(6, (TASKS, n, 3), generator=torch.Generator().manual_seed(seed))


def _own_supports() -> fm.Episodes:
    """A support set for each inner step, of several sizes; the model has a frozen layer."""
    sizes = (5, 4, 6, 5)
    sets = [fm.Batch(tensor(TASKS, n, 4, seed=n + 30), _labels(n, 5, n + 40)) for n in sizes]
    return fm.Episodes.of_steps(sets[:-1], sets[-1])


PROBLEMS = [
    Problem("mlp", _mlp, F.mse_loss, _regression()),
    Problem("mlp-head", _mlp, F.mse_loss, _regression(), {"scope": "head"}),
    Problem("mlp-bias", _mlp, F.mse_loss, _regression(), {"scope": "*.bias"}),
    Problem("query-loss", _mlp, F.mse_loss, _regression(), {"query_loss": _quartic}),
    Problem("context", _with_context, F.mse_loss, _regression(), {"scope": "context"}),
    Problem("dropout", _dropout_mlp, F.mse_loss, _regression()),
    Problem("two-inputs", TwoInputs, F.mse_loss, fm.Episodes(_pairs(5, seed=3), _pairs(4, seed=7))),
    Problem(
        "tied",
        Tied,
        F.cross_entropy,
        fm.Episodes(
            fm.Batch(_tokens(5, 1), _labels(5, 6, 2)), fm.Batch(_tokens(4, 3), _labels(4, 6, 4))
        ),
    ),
    Problem(
        "batch-norm",
        NormalisedClassifier,
        F.cross_entropy,
        fm.Episodes(
            fm.Batch(tensor(TASKS, 5, 4, seed=5), _labels(5, 5, 6)),
            fm.Batch(tensor(TASKS, 5, 4, seed=7), _labels(5, 5, 8)),
        ),
    ),
    Problem("conv", _conv, F.cross_entropy, _classes(1, 4, 4)),
    Problem("per-step-norm", _per_step_conv, F.cross_entropy, _classes(1, 4, 4)),
    Problem("strided-conv", _strided_conv, F.cross_entropy, _classes(2, 4, 4)),
    Problem("attention", Attention, F.cross_entropy, _classes(3, 4)),
    Problem("own-supports", NormalisedClassifier, F.cross_entropy, _own_supports()),
]


def _learned_rate() -> SGD:
    return SGD(nn.Parameter(torch.tensor(0.3, dtype=torch.float64)))


RULES: dict[str, Callable[[], Rule]] = {
    "sgd": lambda: SGD(0.3),
    "sgd-learned": _learned_rate,
    "momentum": lambda: Momentum(0.2, 0.8),
    "nesterov": lambda: Momentum(0.2, 0.8, nesterov=True),
    "adam": lambda: Adam(0.1, eps=0.1),
    "adamw": lambda: AdamW(0.1, eps=0.1, weight_decay=0.3),
    "meta-sgd": lambda: MetaSGD(0.3),
    "lslr": lambda: LSLR(0.3),
    "clip-decay-sgd": lambda: chain(ClipNorm(0.5), WeightDecay(0.2), SGD(0.3)),
    "clip-value-momentum": lambda: chain(ClipValue(0.4), Momentum(0.2)),
    "scheduled": lambda: Scheduled(Momentum(0.2, 0.8), (1.0, 0.5)),
    "proximal-momentum": lambda: chain(Proximal(0.3), Momentum(0.2, 0.8)),
    "meta-curvature": lambda: MetaCurvature(0.3),
    "kfo": lambda: KFO(0.3),
    "alfa": lambda: ALFA(0.3, decay=0.2),
    "decay-lslr": lambda: chain(WeightDecay(0.2), LSLR(0.3)),
}

EXACT: dict[str, GradientMethod] = {
    "unrolled": Unrolled(),
    "checkpointed": Checkpointed(),
    "checkpointed-2": Checkpointed(segments=2),
    "mixed-mode": MixedMode(),
    "mixed-mode-2": MixedMode(segments=2),
}

OFFLOADED: dict[str, GradientMethod] = {
    "checkpointed-offload": Checkpointed(offload=True),
    "mixed-mode-2-offload": MixedMode(segments=2, offload=True),
}


def meta_gradient(maml: fm.MAML, episodes: fm.Episodes, seed: int = 5, **options: Any) -> Tensor:
    """The meta-gradient of all meta-parameters as one vector; zero where there is none."""
    maml.zero_grad()
    torch.manual_seed(seed)
    maml(episodes, **options).loss.backward()
    trainable = [p for p in maml.parameters() if p.requires_grad]
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trainable]
    )


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())
