"""A model held to the plain loop in every way that fastmaml runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from hand_loop import hand_loop
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.gradients import Checkpointed, GradientMethod, MixedMode, Unrolled

METHODS: tuple[GradientMethod, ...] = (Unrolled(), Checkpointed(), MixedMode())
LR, STEPS = 0.3, 2
Expected = tuple[Tensor, dict[str, Tensor]]


def episodes(inputs: int = 3, outputs: int = 2, examples: int = 4, tasks: int = 3) -> fm.Episodes:
    """Numbers for a regression, in float64."""
    draw = torch.Generator().manual_seed(3)
    sizes = ((tasks, examples, n) for n in (inputs, outputs) * 2)
    x, y, xq, yq = (torch.randn(*size, generator=draw, dtype=torch.float64) for size in sizes)
    return fm.Episodes(fm.Batch(x, y), fm.Batch(xq, yq))


class Between(nn.Module):
    """Two linear layers, and a function of what is between them and of a vector."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.vector = nn.Parameter(torch.randn(4))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x), self.vector))


def between(function: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return Between(function).double()


def maml(model: nn.Module, **options: Any) -> fm.MAML:
    return fm.MAML(model, **{"lr": 0.3, "steps": 2, "loss": F.mse_loss, **options})


def close(found: Tensor, expected: Tensor, what: str) -> None:
    """To rounding."""
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11, msg=lambda m: f"{what}: {m}")


def held_to_loop(
    model: nn.Module,
    given: fm.Episodes,
    loss: Callable[[Any, Any], Tensor] = F.mse_loss,
    methods: Iterable[GradientMethod] = METHODS,
    executors: Iterable[Any] = ("eager", None),
    expected: Expected | None = None,
    **options: Any,
) -> None:
    """Gradients by every method and executor, twice; `evaluate`; `per_task`; `adapt_to`.

    Args:
        model: in float64; parameters and buffers must be as they were afterwards.
        given: of which the first task is adapted to.
        loss: of one task.
        methods, executors: all pairs run.
        expected: what the loop gives, where it is not to run on `model` itself.
        options: more of `MAML`'s.
    """
    before = {n: x.clone() for n, x in model.state_dict().items()}
    value, gradient = hand_loop(model, loss, given, LR, STEPS) if expected is None else expected
    common: dict[str, Any] = {"lr": LR, "steps": STEPS, "loss": loss, **options}

    def same(out: fm.MetaOutput, what: str) -> None:
        model.zero_grad()
        out.loss.backward()
        close(out.loss.detach(), value, f"loss, {what}")
        for name, p in model.named_parameters():
            if p.requires_grad:
                found = torch.zeros_like(p) if p.grad is None else p.grad
                close(found, gradient[name], f"{name}, {what}")

    for executor in executors:
        for method in methods:
            maml = fm.MAML(model, gradient=method, executor=executor, **common)
            for call in (1, 2):
                same(maml(given), f"{method}, executor {executor}, call {call}")
        maml = fm.MAML(model, executor=executor, **common)
        run = maml.per_task(_two_steps(loss))
        for call in (1, 2):
            outputs = maml.evaluate(given)
            close(outputs.loss, value, f"evaluate, executor {executor}, call {call}")
            same(run(given), f"per_task, executor {executor}, call {call}")
    if not given.later:
        learner = maml.adapt_to(fm.Batch(given.support.inputs[0], given.support.targets[0]))
        close(learner(given.query.inputs[0]).detach(), outputs.outputs[0], "adapt_to")
    for name, x in model.state_dict().items():
        assert torch.equal(x.to_dense(), before[name].to_dense()), f"{name} changed"


def _two_steps(loss: Callable[[Any, Any], Tensor]) -> Callable[..., Tensor]:
    def run(learner: Any, support: fm.Batch | list[fm.Batch], query: fm.Batch) -> Tensor:
        for given in support if isinstance(support, list) else [support] * STEPS:
            learner.adapt(loss(learner(given.inputs), given.targets))
        return loss(learner(query.inputs), query.targets)

    return run
