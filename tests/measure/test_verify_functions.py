"""`verify` of per-task functions: beside clones, beside loops by hand, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hand_loop import sgd_step
from problems import PROBLEMS, RULES, Problem, tensor
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import fastmaml as fm
import fastmaml.compat.learn2learn as l2l

LR, STEPS, TASKS = 0.5, 2, 3


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    labels = torch.arange(4).repeat(TASKS, 2)
    return tensor(TASKS, 8, 3, seed=1).float(), labels, tensor(TASKS, 8, 3, seed=2).float(), labels


def fast_adapt(
    learner: Any, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor, steps: int = STEPS
) -> tuple[Tensor, Tensor]:
    """Another loss for the support set than for the query set."""
    for _ in range(steps):
        learner.adapt(F.cross_entropy(learner(xs), ys, label_smoothing=0.2))
    logits = learner(xq)
    return F.cross_entropy(logits, yq), (logits.argmax(-1) == yq).float().mean()


def plain(model: nn.Module, *given: Tensor, steps: int = STEPS, lr: float = LR) -> Tensor:
    """The same in `torch.func.functional_call` and `torch.autograd.grad`."""
    losses = []
    for xs, ys, xq, yq in zip(*given, strict=True):
        adapted = dict(model.named_parameters())
        for _ in range(steps):
            output = functional_call(model, adapted, (xs,))
            loss = F.cross_entropy(output, ys, label_smoothing=0.2)
            adapted = sgd_step(adapted, loss, lr, first_order=False)
        losses.append(F.cross_entropy(functional_call(model, adapted, (xq,)), yq))
    return torch.stack(losses).mean()


def with_learn2learn(model: nn.Module, *given: Tensor, **keywords: Any) -> Tensor:
    maml = l2l.algorithms.MAML(model, lr=LR)
    tasks = zip(*given, strict=True)
    return torch.stack([fast_adapt(maml.clone(), *task, **keywords)[0] for task in tasks]).mean()


def make(**options: Any) -> Any:
    return fm.MAML(classifier(), **{"lr": LR, **options}).per_task(fast_adapt)


def test_a_function_agrees_with_clones_and_with_loops_by_hand() -> None:
    model = classifier().double()
    given = [x.double() if x.is_floating_point() else x for x in data()]
    loss = plain(model, *given)
    loss.backward()
    for reference in (None, plain, with_learn2learn):
        found = fm.verify(make(), *data(), reference=reference, tolerance=1e-12)
        assert found.agrees
        assert found.notes == ()
        assert found.second_order > 0.05
        assert found.loss is not None
        assert found.loss.size == pytest.approx(float(loss.detach()), rel=1e-12)
        for row, (name, p) in zip(found.gradients, model.named_parameters(), strict=True):
            assert row.name == name
            assert row.size == pytest.approx(float(p.grad.abs().max()), rel=1e-10)


def test_keywords_episodes_and_a_reference_in_the_last_place() -> None:
    for loop in (plain, with_learn2learn):
        assert fm.verify(make(), *data(), loop, steps=3, tolerance=1e-12).agrees
    xs, ys, xq, yq = data()
    episodes = fm.Episodes(fm.Batch(xs, ys), fm.Batch(xq, yq))
    maml = fm.MAML(classifier(), lr=LR)

    @maml.per_task
    def run(learner: Any, support: fm.Batch, query: fm.Batch) -> Tensor:
        learner.adapt(F.cross_entropy(learner(support.inputs), support.targets))
        return F.cross_entropy(learner(query.inputs), query.targets)

    def loop(model: nn.Module, episodes: fm.Episodes) -> Tensor:
        given = fm.MAML(model, lr=LR, loss=F.cross_entropy, executor="eager")
        return given(episodes).loss

    assert fm.verify(run, episodes, tolerance=1e-12).agrees
    assert fm.verify(run, episodes, loop, tolerance=1e-12).agrees


@pytest.mark.parametrize(
    ("loop", "note"),
    [
        (lambda m, *given: plain(m, *given, lr=0.4), "compare lr, steps"),
        (lambda m, *given: 3 * plain(m, *given), r"is 3 times this meta-gradient \(3 tasks\)"),
        (lambda m, *given: with_learn2learn(m, *given, steps=1), "compare lr, steps"),
    ],
)
def test_a_wrong_loop_is_told_what_it_looks_like(loop: Any, note: str) -> None:
    found = fm.verify(make(), *data(), reference=loop)
    assert not found.agrees
    assert re.search(note, found.notes[0])


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("rule", RULES)
def test_clones_take_every_rule_and_their_rates_are_compared(rule: str) -> None:
    maml = fm.MAML(classifier(), rule=RULES[rule](), steps=STEPS)
    found = fm.verify(maml.per_task(fast_adapt), *data(), tolerance=1e-9)
    assert found.agrees
    compared = [d for d in found.gradients if d.name.startswith("rates.")]
    assert len(compared) == len(maml.rates)
    assert all(d.size > 0 for d in compared)


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_clones_agree_on_every_problem(problem: Problem) -> None:
    maml = problem.maml(RULES["sgd"]())
    for module in maml.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    inner = maml.loss
    outer = inner if maml.query_loss is None else maml.query_loss

    def called(own: Any, learner: Any, batch: fm.Batch) -> Tensor:
        x = batch.inputs
        many = learner(**x) if isinstance(x, dict) else learner(*x) if type(x) is tuple else None
        return own(learner(x) if many is None else many, batch.targets)

    @maml.per_task
    def run(learner: Any, support: Any, query: fm.Batch) -> Tensor:
        for batch in support if isinstance(support, list) else [support] * 2:
            learner.adapt(called(inner, learner, batch))
        return called(outer, learner, query)

    assert fm.verify(run, problem.episodes, tolerance=1e-9).agrees


@pytest.mark.parametrize(
    "options", [{"first_order": True}, {"scope": "head"}, {"executor": "eager"}]
)
def test_clones_are_as_the_maml_is_set_up(options: dict[str, Any]) -> None:
    found = fm.verify(make(**options), *data(), tolerance=1e-12)
    assert found.agrees
    assert found.notes == ()


def test_a_sub_module_called_by_itself_has_second_derivatives_in_the_plain_loop() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"a": nn.MultiheadAttention(4, 2, batch_first=True), "b": nn.Linear(4, 3)}
    )
    maml = fm.MAML(model, lr=LR)

    @maml.per_task
    def run(learner: Any, x: Tensor, y: Tensor) -> Tensor:
        def loss() -> Tensor:
            return F.cross_entropy(learner.b(learner.a(x, x, x)[0].mean(1)), y)

        learner.adapt(loss())
        return loss()

    labels = torch.arange(6).remainder(3).repeat(TASKS, 1)
    found = fm.verify(run, tensor(TASKS, 6, 5, 4).float(), labels, tolerance=1e-10)
    assert found.agrees
    assert found.second_order > 0.01


def test_the_learner_of_the_plain_loop_has_the_names_of_per_tasks() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(3, 8), nn.Linear(8, 4)
            self.loss = 3.0  # a setting of a MAML's has this name, and head

        def encode(self, x: Tensor) -> Tensor:
            return self.body(x).tanh()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encode(x))

    torch.manual_seed(0)
    maml = fm.MAML(Named(), lr=nn.Parameter(torch.tensor(LR)), scope="head")

    @maml.per_task
    def run(learner: Any, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        learner.train()
        learner.adapt(F.cross_entropy(learner.head(learner.encode(xs)), ys), allow_unused=False)
        other = learner.clone(first_order=True)
        other.adapt(F.cross_entropy(other(xs), ys) * learner.loss)
        both = sum((p**2).sum() for p in learner.parameters())
        both = both + sum(
            (p - q).abs().sum()
            for (_, p), q in zip(
                other.named_parameters(), learner.module.head.parameters(), strict=True
            )
        )
        return F.cross_entropy(other.module(xq), yq) + 0.1 * both + learner.head.weight.sum()

    found = fm.verify(run, *data(), tolerance=1e-12)
    assert found.agrees
    assert found.second_order > 1e-3
    assert [d.name for d in found.gradients][-1] == "rates.rate:lr"


def test_what_a_plain_loop_does_otherwise_is_found() -> None:
    maml = fm.MAML(classifier(), lr=LR)

    @maml.per_task
    def run(learner: Any, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        learner.adapt(F.cross_entropy(learner(xs), ys))
        plainly = type(learner).__name__ == "PlainLearner"
        return F.cross_entropy(learner(xq), yq) * (1.5 if plainly else 1.0)

    found = fm.verify(run, *data())
    assert not found.agrees
    assert found.notes == (
        "the reference is 1.5 times this meta-gradient (3 tasks): does it add up "
        "tasks instead of averaging them?",
    )


def test_nothing_of_the_users_changes() -> None:
    run = make(lr=nn.Parameter(torch.tensor(LR)))
    before = {name: x.clone() for name, x in run.maml.state_dict().items()}
    run(*data()).loss.backward()
    gradients = [p.grad.clone() for p in run.maml.parameters()]
    state = torch.get_rng_state()
    with torch.no_grad():
        assert fm.verify(run, *data()).agrees
    assert torch.equal(torch.get_rng_state(), state)
    assert run.maml.gradient is None
    for p, g in zip(run.maml.parameters(), gradients, strict=True):
        assert torch.equal(p.grad, g)
    for name, x in run.maml.state_dict().items():
        assert torch.equal(x, before[name])


def test_functions_that_refer_to_something_trainable_are_refused() -> None:
    maml, learned = fm.MAML(classifier(), lr=LR), nn.Linear(4, 1)

    def with_a_learned_loss(learner: Any, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        learner.adapt(learned(learner(xs)).mean())
        return F.cross_entropy(learner(xq), yq)

    def near_the_start(learner: Any, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        learner.adapt(F.cross_entropy(learner(xs), ys))
        pairs = zip(learner.parameters(), maml.parameters(), strict=True)
        return F.cross_entropy(learner(xq), yq) + sum(((p - q) ** 2).sum() for p, q in pairs)

    for dtype in (torch.float64, None):
        with pytest.raises(ValueError, match=r"does not fit|is no parameter of this MAML's model"):
            fm.verify(maml.per_task(with_a_learned_loss), *data(), dtype=dtype)
        with pytest.raises(ValueError, match="is no parameter of this MAML's model"):
            fm.verify(maml.per_task(near_the_start), *data(), dtype=dtype)


def test_functions_that_refer_to_modules_of_their_own_need_the_models_dtype() -> None:
    teacher = nn.Linear(3, 4).requires_grad_(False)
    maml = fm.MAML(classifier(), lr=LR)

    @maml.per_task
    def run(learner: Any, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        learner.adapt(F.mse_loss(learner(xs), teacher(xs)))
        return F.cross_entropy(learner(xq), yq)

    with pytest.raises(ValueError, match=r"converts model, data and rates to float64.*dtype=None"):
        fm.verify(run, *data())
    assert fm.verify(run, *data(), dtype=None).agrees


def test_what_is_no_call() -> None:
    maml = fm.MAML(classifier(), lr=LR, loss=F.cross_entropy)
    xs, ys, xq, yq = data()
    with pytest.raises(ValueError, match=r"got Tensor, Tensor: give one fastmaml\.Episodes"):
        fm.verify(maml, xs, ys)
    with pytest.raises(ValueError, match="got nothing"):
        fm.verify(maml)
    with pytest.raises(ValueError, match="got steps=: give one"):
        fm.verify(maml, steps=2)
    with pytest.raises(ValueError, match=r"maml is a function;.*what @maml\.per_task makes"):
        fm.verify(fast_adapt, *data())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="trees of tensors whose first dimension is the tasks"):
        fm.verify(make(), xs[:2], ys, xq, yq)

    @maml.per_task
    def run(learner: Any, x: Tensor, tolerance: float) -> Tensor:
        return learner(x).mean() * tolerance

    with pytest.raises(ValueError, match=r"run\(\.\.\.\) has a parameter 'tolerance'"):
        fm.verify(run, xs, 0.1)
    episodes = fm.Episodes(fm.Batch(xs, ys), fm.Batch(xq, yq))
    assert fm.verify(maml, episodes=episodes).agrees


def test_random_functions_are_refused() -> None:
    maml = fm.MAML(classifier(), lr=LR)

    @maml.per_task
    def run(learner: Any, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        learner.adapt(F.cross_entropy(learner(xs + torch.randn_like(xs)), ys))
        return F.cross_entropy(learner(xq), yq)

    with pytest.raises(ValueError, match=r"two runs of run\(\.\.\.\) give the losses"):
        fm.verify(run, *data())


def test_the_data_stay_as_they_are() -> None:
    """A loop that writes to them writes to copies."""
    torch.manual_seed(0)
    maml = fm.MAML(nn.Linear(3, 2).double(), 0.1, loss=F.mse_loss)
    x, y = torch.randn(2, 4, 5, 3).double(), torch.randn(2, 4, 5, 2).double()
    episodes = fm.Episodes(fm.Batch(x[0], y[0]), fm.Batch(x[1], y[1]))
    before = x.clone()

    def loop(model: nn.Module, episodes: fm.Episodes) -> Tensor:
        episodes.support.inputs.sub_(5.0)
        return sum(model(q).square().mean() for q in episodes.query.inputs)

    assert not fm.verify(maml, episodes, loop).agrees
    assert torch.equal(x, before)
