"""A user's own classes wherever a `MAML` goes: verified, profiled, measured, trained, copied."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from own_classes import example, facts, problem
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.gradients import Checkpointed, FirstOrder, MixedMode, Unrolled
from fastmaml.rules.base import State, Tensors

Constant = example("gradient_method").ConstantGradients
Differences = example("finite_differences").CentralDifferences
HeavyBall, Normalised = example("rule").HeavyBall, example("rule").Normalised
LeastSquares, Signs = example("head").LeastSquares, example("head").Signs


def gradient(maml: fm.MAML, episodes: fm.Episodes, seed: int = 3) -> Tensor:
    """Of a second call, which is a replay where it is recorded."""
    for _ in range(2):
        maml.zero_grad()
        torch.manual_seed(seed)
        maml(episodes).loss.backward()
    return torch.cat([p.grad.flatten() for p in maml.parameters() if p.grad is not None])


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def as_doubles(name: str, **options: Any) -> tuple[fm.MAML, fm.Episodes]:
    maml, episodes = problem(name, **options)
    return maml.double(), episodes.to(torch.float64)


AGREE = {
    "all of it": ("all", Unrolled(), lambda: HeavyBall(0.1)),
    "forwards": ("all", MixedMode(), lambda: Normalised(0.1)),
    "the head": ("head", Checkpointed(), lambda: HeavyBall(0.1)),
    "a learned rate": ("head", Checkpointed(2), lambda: Normalised(_rate())),
    "rows": ("words", Unrolled(), lambda: Normalised(_rate())),
    "rows, forwards": ("words", MixedMode(), lambda: HeavyBall(0.1)),
}


def _rate() -> nn.Parameter:
    return nn.Parameter(torch.tensor(0.1))


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("case", AGREE)
def test_rules_agree_with_a_plain_loop(case: str) -> None:
    where, method, rule = AGREE[case]
    assert fm.verify(*problem(where, rule=rule(), gradient=method)).agrees


def test_a_rule_takes_a_parameter_that_is_one_number() -> None:
    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope, self.offset = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.slope * x + self.offset

    x = torch.randn(4, 5, 1, generator=torch.Generator().manual_seed(0))
    episodes = fm.Episodes(fm.Batch(x, x.sin()), fm.Batch(x + 1, (x + 1).sin()))
    maml = fm.MAML(Line(), rule=Normalised(0.1), steps=3, loss=F.mse_loss)
    assert fm.verify(maml, episodes).agrees
    alone = torch.stack([maml.evaluate(task).loss for task in episodes])
    torch.testing.assert_close(maml.evaluate(episodes).losses, alone, rtol=1e-5, atol=0)


@dataclass(frozen=True)
class SaysLinear(Normalised):  # type: ignore[misc, valid-type]
    linear: ClassVar[bool] = True


@dataclass(frozen=True)
class Centred(fm.rules.Rule):
    """Moves rows without a gradient, too, and denies it."""

    by_row: ClassVar[bool] = True

    def update(
        self, step: int, gradients: Tensors, state: State, parameters: Tensors, rates: Tensors
    ) -> tuple[Tensors, State]:
        return {n: -0.1 * (g - g.mean(1, keepdim=True)) for n, g in gradients.items()}, state


@dataclass(frozen=True)
class SaysApart(Normalised):  # type: ignore[misc, valid-type]
    mixes_rows: ClassVar[bool] = False


@dataclass(frozen=True)
class SaysAll(Constant):  # type: ignore[misc, valid-type]
    def differentiates(self, step: int, steps: int) -> bool:
        return True


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "a rule that is not linear": ("all", {"rule": SaysLinear(0.1), "gradient": MixedMode()}),
    "a rule that is not by row": ("words", {"rule": Centred()}),
    "a rule that mixes rows which another one feeds": (
        "words", {"rule": fm.rules.chain(fm.rules.WeightDecay(0.5), SaysApart(0.1))},
    ),
    "a method that differentiates less": ("all", {"gradient": SaysAll()}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG)
def test_verify_tells_what_a_class_says_wrongly(wrong: str) -> None:
    where, options = WRONG[wrong]
    assert not fm.verify(*problem(where, **options)).agrees


class Noisy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + random.random()


@dataclass(frozen=True)
class SaysOnce(Differences):  # type: ignore[misc, valid-type]
    steps_once: ClassVar[bool] = True


def test_a_method_that_runs_steps_again_says_so() -> None:
    """Else nothing refuses a model whose steps would not do the same again."""
    episodes = problem("all")[1]

    def maml(method: Any) -> fm.MAML:
        return fm.MAML(Noisy(5, 3), lr=0.1, loss=F.cross_entropy, gradient=method)

    with pytest.raises(ValueError, match="runs inner steps again"):
        maml(Differences())(episodes)
    maml(SaysOnce())(episodes)


@pytest.mark.slow
def test_verify_takes_a_reference_for_other_methods() -> None:
    method = Differences(epsilon=1e-4)
    with pytest.raises(ValueError, match=r"no plain loop to compare CentralDifferences.*reference"):
        fm.verify(*problem("all", gradient=method))

    def exact(model: nn.Module, episodes: fm.Episodes) -> Tensor:
        maml = fm.MAML(model, lr=0.1, steps=3, loss=F.cross_entropy, executor="eager")
        return maml(episodes).loss

    assert fm.verify(*problem("all", gradient=method), exact, tolerance=1e-6).agrees
    assert not fm.verify(*problem("all", gradient=FirstOrder()), exact, tolerance=1e-6).agrees
    assert fm.verify(*problem("all", gradient=Constant())).agrees


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("where", ["all", "head"])
def test_finite_differences_are_as_exact_as_they_say(where: str) -> None:
    def found(method: Any) -> Tensor:
        return gradient(*as_doubles(where, gradient=method, executor="eager"))

    exact = found(Unrolled())
    errors = [far(found(Differences(epsilon=e)), exact) for e in (0.1, 0.01)]
    assert errors[0] > 1e-8
    assert 50 < errors[0] / errors[1] < 200  # epsilon²
    assert far(found(FirstOrder()), exact) > 1e-2


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * x.cos()


class WithOnce(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(super().forward(x))


@pytest.mark.slow
def test_finite_differences_need_no_second_derivative() -> None:
    def maml(layer: type[nn.Linear], **options: Any) -> tuple[fm.MAML, fm.Episodes]:
        torch.manual_seed(0)
        model = nn.Sequential(layer(5, 8), nn.Linear(8, 3)).double()
        made = fm.MAML(model, lr=0.5, steps=3, loss=F.cross_entropy, **options)
        return made, problem("all")[1].to(torch.float64)

    class Sine(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sin()

    with pytest.raises(fm.MissingDerivative):
        maml(WithOnce)[0](maml(WithOnce)[1])
    exact = gradient(*maml(Sine))
    assert far(gradient(*maml(WithOnce, gradient=Differences(epsilon=1e-4))), exact) < 1e-7
    assert far(gradient(*maml(WithOnce, gradient=FirstOrder())), exact) > 1e-2


@pytest.mark.slow
def test_per_task_takes_a_method_of_one_graph() -> None:
    def two_steps(learner: Any, x: Tensor, y: Tensor) -> Tensor:
        for _ in range(2):
            learner.adapt(F.cross_entropy(learner(x), y))
        return F.cross_entropy(learner(x + 1), y)

    def found(**options: Any) -> Tensor:
        maml, episodes = problem("all", **options)
        maml.per_task(two_steps)(episodes.support.inputs, episodes.support.targets).loss.backward()
        return torch.cat([p.grad.flatten() for p in maml.parameters() if p.grad is not None])

    assert torch.equal(found(gradient=Constant()), found(gradient=FirstOrder()))
    assert far(found(gradient=Constant()), found()) > 1e-4
    own, ours = (
        found(rule=rule, backend="reference") for rule in (HeavyBall(0.1), fm.rules.Momentum(0.1))
    )
    assert torch.equal(own, ours)
    with pytest.raises(ValueError, match=r"CentralDifferences.*decides how an inner loop"):
        found(gradient=Differences())


OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "method, rule and head": (
        "all", {"gradient": Differences(), "rule": HeavyBall(0.1), "head": LeastSquares()},
    ),
    "built in, walking back": ("head", {"gradient": Checkpointed()}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("own", OWN)
def test_what_is_profiled_is_what_runs(own: str) -> None:
    where, options = OWN[own]
    expected = facts(*problem(where, **options))
    report = fm.profile(*problem(where, **options), repeats=1)
    assert f"captured, {expected.operations} operations" in " ".join(str(report).split())


@pytest.mark.slow
def test_bench_measures_methods_of_ones_own() -> None:
    maml, episodes = problem("all")
    methods = (FirstOrder(), Constant(), Differences(epsilon=0.1))
    found = fm.bench(maml, episodes, methods=methods, steps=(2,), repeats=2, seconds=0.01)
    cells = {cell.configuration.method: cell for cell in found.cells}
    assert [cell.refusal for cell in found.cells] == [""] * 3
    own, twin = cells["ConstantGradients"], cells["FirstOrder"]
    assert own.error == twin.error
    assert own.peak_bytes == twin.peak_bytes
    assert 0 < cells["CentralDifferences(epsilon=0.1)"].error < twin.error  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(copied: Callable[[Any], Any]) -> None:
    rule, head = Normalised(_rate()), LeastSquares()
    maml, episodes = problem("all", rule=rule, head=head, gradient=Constant())
    before = gradient(maml, episodes)
    again = copied(maml)
    assert again is not maml
    assert torch.equal(gradient(again, episodes), before)


def test_an_interrupted_run_is_resumed_exactly(tmp_path: Path) -> None:
    def trainer(iterations: int, out: str) -> fm.MetaTrainer:
        rule = Normalised(_rate())
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 5))
        maml = fm.MAML(
            model, rule=rule, head=Signs(), gradient=Constant(), loss=F.cross_entropy, steps=2
        )
        config = fm.LoopConfig(
            iterations=iterations, evaluate_every=0, plots=False, out=str(tmp_path / out)
        )
        return fm.MetaTrainer(maml, fm.episodes.digits(tasks=2), config=config, screen=False)

    whole = trainer(6, "whole")
    whole.fit()
    half = trainer(3, "half")
    half.fit()
    rest = trainer(6, "half")
    rest.resume(tmp_path / "half" / "last.safetensors")
    rest.fit()
    for name, x in whole.maml.state_dict().items():
        assert torch.equal(rest.maml.state_dict()[name], x)
        assert name.startswith("module.3") or not torch.equal(half.maml.state_dict()[name], x)
