"""Data whose sizes vary: other recordings follow from a few, and never a wrong number."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from outcomes import EAGER, outcome
from problems import tensor
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.engine.recording.captured import Captured
from fastmaml.gradients import Checkpointed, FirstOrder, MixedMode, Unrolled
from fastmaml.gradients.base import GradientMethod

SHOTS = [3, 5, 8, 6, 11, 4, 17, 9]
WIDTH = 4


def vectors(support: int, query: int | None = None, tasks: int = 3) -> fm.Episodes:
    """A regression of vectors."""

    def batch(n: int, seed: int) -> fm.Batch:
        return fm.Batch(tensor(tasks, n, WIDTH, seed=seed), tensor(tasks, n, 1, seed=seed + 1))

    return fm.Episodes(batch(support, support), batch(query or support, support + 50))


class Recorder(Captured):
    """Counts what is recorded."""

    recorded = 0

    def _record(self, *args: Any) -> Any:
        self.recorded += 1
        return super()._record(*args)


def learner(model: nn.Module, **options: Any) -> fm.MAML:
    given = {"lr": 0.1, "steps": 2, "loss": F.mse_loss, **options}
    return fm.MAML(model.double(), **given)


def same_as_eager(
    model: nn.Module, sizes: Iterable[fm.Episodes], required: bool = True, **options: Any
) -> int:
    """Hold every meta-step against one that runs eagerly; how many were recorded."""
    maml = learner(copy.deepcopy(model), **options)
    maml._execute = found = Recorder(required=required, spot_checks=False)
    for episodes in sizes:
        eager = learner(copy.deepcopy(model), **{**options, **EAGER})
        outcome(maml, episodes).check_close(outcome(eager, episodes), 1e-12)
    return found.recorded


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, 1))


# ------------------------------------------------------------------ it follows


@pytest.mark.parametrize("backend", ["reference", None])
@pytest.mark.parametrize(
    "gradient", [Unrolled(), Checkpointed(), MixedMode(), FirstOrder()], ids=str
)
def test_recordings_of_a_few_sizes_are_enough(gradient: GradientMethod, backend: Any) -> None:
    """The first is not known to vary; three more are samples."""
    made = same_as_eager(mlp(), map(vectors, SHOTS), gradient=gradient, backend=backend)
    assert made == 4


@pytest.mark.parametrize("scope", ["head", "body"])
def test_where_a_part_adapts(scope: str) -> None:
    assert same_as_eager(mlp(), map(vectors, SHOTS), scope=scope) == 4


def test_learned_rates() -> None:
    """One model of them, as they are the MAML's own."""
    made = [
        same_as_eager(mlp(), map(vectors, SHOTS), lr=None, rule=rule)
        for rule in (fm.rules.MetaSGD(0.1), fm.rules.LSLR(0.1), fm.rules.Adam(0.01))
    ]
    assert made == [4, 4, 4]


def test_support_and_query_vary_by_themselves() -> None:
    pairs = [(3, 5), (5, 9), (8, 4), (6, 6), (11, 7), (4, 12), (7, 7), (9, 3), (12, 5), (5, 5)]
    assert same_as_eager(mlp(), [vectors(*pair) for pair in pairs]) <= 6


def test_one_example_is_no_small_number() -> None:
    sizes = [*SHOTS, 1, 7, 1, 12]
    assert same_as_eager(mlp(), map(vectors, sizes)) == 5


def test_chunks_of_tasks() -> None:
    sizes = [vectors(n, tasks=5) for n in SHOTS]
    assert same_as_eager(mlp(), sizes, tasks_chunk=2) == 2 * 4


class Attends(nn.Module):
    """Everything looks at everything, as often as there are examples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.v = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3)
        self.norm, self.out = nn.LayerNorm(3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, v = self.q(x), self.v(x)
        weights = F.softmax(q @ q.T / len(x), -1)
        mask = torch.ones(len(x), len(x), dtype=torch.bool).tril()
        return self.out(self.norm((weights * mask) @ v) + v)


class Images(nn.Module):
    """Convolution, normalisation, in-place calls, dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten()
        )
        self.drop, self.out = nn.Dropout(0.5), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(self.body(x.view(len(x), 1, 2, 2))))


class Normalises(nn.Module):
    """Its derivative divides by one less than the number of examples, and nothing else does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(WIDTH, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return self.b((h - h.mean(0)) / (h.var(0) + 1).sqrt())


def test_two_sizes_seen_again_and_again_say_nothing_of_a_third() -> None:
    sizes = [(5, 20), (5, 5), (20, 5), (20, 20), (5, 20), (10, 10), (7, 9), (40, 30), (12, 8)]
    same_as_eager(Normalises(), [vectors(*pair) for pair in sizes])


@pytest.mark.parametrize("model", [Attends, Images, Normalises])
def test_kinds_of_models(model: type[nn.Module]) -> None:
    assert same_as_eager(model(), map(vectors, SHOTS)) == 4


def test_losses_of_one_s_own_over_outputs() -> None:
    """Their cotangents have sizes, too."""
    maml, eager = learner(mlp()), learner(mlp(), **EAGER)
    maml._execute = found = Recorder(required=True, spot_checks=False)
    for n in SHOTS:
        gradients = []
        for one in (maml, eager):
            one.zero_grad()
            (one(vectors(n)).outputs ** 2).mean().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in one.parameters()]))  # type: ignore[union-attr]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)
    assert found.recorded == 2 * 4


def test_evaluation() -> None:
    maml, eager = learner(mlp()), learner(mlp(), **EAGER)
    maml._execute_evaluation = found = Recorder(required=True, spot_checks=False)
    for n in SHOTS:
        for a, b in zip(
            maml.evaluate_each_step(vectors(n)), eager.evaluate_each_step(vectors(n)), strict=True
        ):
            torch.testing.assert_close(a.losses, b.losses, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(a.outputs, b.outputs, rtol=1e-12, atol=1e-14)
    assert found.recorded == 4


def test_plans_say_that_they_follow() -> None:
    maml = learner(mlp())
    for n in (3, 5, 6):
        maml(vectors(n))
    text = str(maml.explain(vectors(7)))
    assert "memory: at most about" in text
    assert "executor: captured" in text


# ------------------------------------------------------------------ it does not


class Looks(nn.Module):
    """Code that looks at the number of examples."""

    def __init__(self, function: Callable[[Looks, Tensor, int], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(3))
        self.function = function
        self.scale = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x, len(x))


class _Squared(torch.autograd.Function):
    """Its derivative looks at the size of what it is given."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return g * x * (2 if x.shape[0] < 7 else 3)


def _larger(g: Tensor) -> Tensor:
    return g * (2.0 if len(g) < 7 else 3.0)


def _hooked(m: Looks, x: Tensor, n: int) -> Tensor:
    y = m.layers[0](x)
    if y.requires_grad:
        y.register_hook(_larger)
    return y * y


LOOKS: dict[str, Callable[[Looks, Tensor, int], Tensor]] = {
    "branch": lambda m, x, n: m.layers[0](x) * (2.0 if n > 7 else 1.0),
    "other function": lambda m, x, n: m.layers[0](x).sin() if n > 7 else m.layers[0](x).cos(),
    "other layer": lambda m, x, n: m.layers[n % 3](x),
    "other times": lambda m, x, n: m.layers[0](x * 1.1 ** (n // 4)),
    "at most five": lambda m, x, n: m.layers[0](x) + x[: min(n, 5)].mean(),
    "every other": lambda m, x, n: m.layers[0](x) + x[::2].sum() + x[: (n + 1) // 2].sin().mean(),
    "one size": lambda m, x, n: m.layers[0](x) * (-1 if n == 11 else 1),
    "square root": lambda m, x, n: m.layers[0](x) * n**0.5,
    "power": lambda m, x, n: m.layers[0](x) * float(1.5**n),
    "derivative": lambda m, x, n: _Squared.apply(m.layers[0](x)),
    "hook": _hooked,
}


@pytest.mark.parametrize("name", LOOKS)
def test_code_that_looks_at_sizes(name: str) -> None:
    sizes = [*SHOTS, 11, 12, 5, 10, 16, 7]
    same_as_eager(Looks(LOOKS[name]), map(vectors, sizes), required=False)


def test_settings_that_only_some_sizes_read() -> None:
    """The function that reads it does not run at the sizes that are seen first."""

    def scaled(m: Looks, n: int) -> float:
        return m.scale if n > 9 else 2.0

    def function(m: Looks, x: Tensor, n: int) -> Tensor:
        return m.layers[0](x) * scaled(m, n)

    model = Looks(function)
    maml = learner(model, spot_checks=False)
    for n in (3, 5, 8, 6, 4, 11):
        maml(vectors(n))
    model.scale = 5.0
    for n in (11, 12, 7):
        expected = outcome(learner(copy.deepcopy(model), **EAGER), vectors(n))
        outcome(maml, vectors(n)).check_close(expected, 1e-12)


def test_settings_that_change_between_sizes() -> None:
    model = Looks(lambda m, x, n: m.layers[0](x) * m.scale)
    maml = learner(model, spot_checks=False)
    for i, n in enumerate([*SHOTS, *SHOTS]):
        model.scale = 2.0 + i // 6
        expected = outcome(learner(copy.deepcopy(model), **EAGER), vectors(n))
        outcome(maml, vectors(n)).check_close(expected, 1e-12)


def test_spot_checks_look_at_recordings_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one, and then as of any other recording."""
    seen = []
    check = Captured._check

    def counted(self: Captured, flat: Any, recording: Any) -> None:
        seen.append(flat.sizes()[1])
        check(self, flat, recording)

    monkeypatch.setattr(Captured, "_check", counted)
    maml = learner(mlp())
    for n in [*SHOTS, *SHOTS]:
        maml(vectors(n))
    assert seen[0] == SHOTS[4]


def test_a_result_elsewhere_in_memory_is_recorded_anew() -> None:
    """A PyTorch operation may lay its result out by size; here one of ours."""
    maml = learner(Looks(lambda m, x, n: m.layers[0](torch.ops.fastmaml_test.odd(x))))
    with torch.library._scoped_library("fastmaml_test", "DEF") as library:
        library.define("odd(Tensor x) -> Tensor")

        def odd(x: Tensor) -> Tensor:
            return x.mT.contiguous().mT.clone() if x.shape[-2] == 9 else x.clone()

        library.impl("odd", odd, "CompositeImplicitAutograd")
        maml._execute = found = Recorder(required=False, spot_checks=False)
        for n in [3, 5, 8, 6, 9, 11]:
            maml(vectors(n))
    assert found.recorded >= 4


def test_larger_data_than_fits_is_planned_anew() -> None:
    maml = learner(mlp(), memory_budget=200_000)
    for n in (3, 5, 8, 6, 400):
        maml(vectors(n))
    assert "at most about" not in str(maml.explain(vectors(400)))
    with pytest.raises(ValueError, match="inputs"):
        maml(fm.Episodes(*[fm.Batch(torch.zeros(3, 4, WIDTH), torch.zeros(3, 4, 1))] * 2))
