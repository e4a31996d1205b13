"""`verify`: a loop of one's own beside ``maml(episodes)``, and what it says where they differ."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hand_loop import batch_loss, sgd_step
from problems import PROBLEMS, RULES, Problem, tensor
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
import fastmaml.compat.higher as higher
from fastmaml.gradients import FirstOrder, Reptile, Truncated
from fastmaml.measure.verify import verify

LR, STEPS = 0.5, 2


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))


def episodes() -> fm.Episodes:
    labels = torch.arange(4).repeat(5, 2)
    return fm.Episodes(*(fm.Batch(tensor(5, 8, 3, seed=s).float(), labels) for s in (1, 2)))


def make(model: nn.Module | None = None, **options: Any) -> fm.MAML:
    options = {"lr": LR, "steps": STEPS, "loss": F.cross_entropy, **options}
    return fm.MAML(classifier() if model is None else model, **options)


def losses(
    model: nn.Module, data: fm.Episodes, first_order: bool = False, lr: float = LR
) -> list[Tensor]:
    """A plain loop: the query loss of each task, connected to the model's parameters."""
    found = []
    for task in data:
        adapted = dict(model.named_parameters())
        for _ in range(STEPS):
            loss = batch_loss(model, F.cross_entropy, adapted, task.support)
            adapted = sgd_step(adapted, loss, lr, first_order)
        found.append(batch_loss(model, F.cross_entropy, adapted, task.query))
    return found


def mean_loss(model: nn.Module, data: fm.Episodes, **options: Any) -> Tensor:
    return torch.stack(losses(model, data, **options)).mean()


def with_higher(model: nn.Module, data: fm.Episodes, **options: Any) -> Tensor:
    found = []
    for task in data:
        inner = torch.optim.SGD(model.parameters(), LR)
        with higher.innerloop_ctx(model, inner, **options) as (fmodel, diffopt):
            for _ in range(STEPS):
                loss = F.cross_entropy(fmodel(task.support.inputs[0]), task.support.targets[0])
                diffopt.step(loss)
            found.append(F.cross_entropy(fmodel(task.query.inputs[0]), task.query.targets[0]))
    return torch.stack(found).mean()


def backward_inside(model: nn.Module, data: fm.Episodes) -> None:
    for loss in losses(model, data):
        (loss / data.tasks).backward()


def with_clones(model: nn.Module, data: fm.Episodes) -> Tensor:
    """learn2learn's verbs, as a script would have them."""
    learners = fm.MAML(model, LR)
    found = []
    for task in data:
        learner = learners.clone()
        for _ in range(STEPS):
            learner.adapt(F.cross_entropy(learner(task.support.inputs[0]), task.support.targets[0]))
        found.append(F.cross_entropy(learner(task.query.inputs[0]), task.query.targets[0]))
    return sum(found) / len(found)


def with_higher_for_maml(model: nn.Module, data: fm.Episodes) -> Tensor:
    return with_higher(model, data, copy_initial_weights=False)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("loop", [mean_loss, backward_inside, with_clones, with_higher_for_maml])
def test_a_right_loop_agrees(loop: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    found = verify(make(), episodes(), reference=loop, tolerance=1e-12)
    assert found.agrees
    assert found.worst.relative < 1e-12
    assert {d.name for d in found.gradients} == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert (found.loss is None) == (loop is backward_inside)
    assert found.second_order > 0.05
    assert found.notes == ()
    assert capsys.readouterr().out == f"{found}\n"
    assert "equal: the largest relative difference is" in str(found)


def test_the_differences_are_those_of_the_gradients() -> None:
    found = verify(make(), episodes(), reference=lambda m, e: mean_loss(m, e, lr=0.4))
    assert not found.agrees
    ours, theirs = classifier().double(), classifier().double()
    make(ours)(episodes().to(torch.float64)).loss.backward()
    mean_loss(theirs, episodes().to(torch.float64), lr=0.4).backward()
    whole = max(float(p.grad.abs().max()) for p in theirs.parameters())
    for each, a, b in zip(found.gradients, ours.parameters(), theirs.parameters(), strict=True):
        assert each.size == pytest.approx(float(b.grad.abs().max()), rel=1e-12)
        assert each.absolute == pytest.approx(float((a.grad - b.grad).abs().max()), rel=1e-9)
        assert each.relative == pytest.approx(each.absolute / whole, rel=1e-9)
    assert found.worst == max(found.gradients, key=lambda d: d.relative)


def detached_bias(model: nn.Module, data: fm.Episodes) -> Tensor:
    own = {n: p.detach() if n == "2.bias" else p for n, p in model.named_parameters()}
    found = [batch_loss(model, F.cross_entropy, own, task.query) for task in data]
    return torch.stack(found).mean()


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize(
    ("loop", "note"),
    [
        (lambda m, e: mean_loss(m, e, first_order=True), "first-order meta-gradient"),
        (lambda m, e: sum(losses(m, e)), r"is 5 times this meta-gradient \(5 tasks\): does it add"),
        (lambda m, e: mean_loss(m, e) / 4, r"is 0.25 times this meta-gradient \(5 tasks\)$"),
        (lambda m, e: mean_loss(m, e, lr=0.4), "compare lr, steps"),
        (detached_bias, "no gradient to 2.bias"),
    ],
)
def test_a_wrong_loop_is_told_what_it_looks_like(loop: Callable[..., Tensor], note: str) -> None:
    found = verify(make(), episodes(), reference=loop)
    assert not found.agrees
    assert len(found.notes) == 1
    assert re.search(note, found.notes[0])
    assert "DIFFERENT" in str(found)


def test_a_difference_in_the_derivatives_alone() -> None:
    def scaled_backward(model: nn.Module, data: fm.Episodes) -> Tensor:
        loss = mean_loss(model, data)
        next(model.parameters()).register_hook(lambda g: 2 * g)
        return loss

    found = verify(make(), episodes(), reference=scaled_backward)
    assert found.loss is not None
    assert found.loss.relative < 1e-12
    assert found.worst.name == "0.weight"
    assert found.notes == (
        "the losses agree, and so the inner steps: the difference is in their derivatives",
    )


@pytest.mark.slow
def test_normalisation_in_eval_mode_is_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    model(tensor(16, 3).float())  # running statistics of their own
    assert verify(make(model), episodes(), reference=mean_loss).agrees
    model.eval()
    found = verify(make(model), episodes(), reference=mean_loss)
    assert not found.agrees
    assert 'use batch_norm="module"' in found.notes[0]
    assert verify(make(model, batch_norm="module"), episodes(), reference=mean_loss).agrees


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_the_plain_loop_agrees_on_every_problem(problem: Problem) -> None:
    maml = problem.maml(RULES["sgd"]())
    for module in maml.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    assert verify(maml, problem.episodes, tolerance=1e-9).agrees


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("rule", RULES)
def test_the_plain_loop_takes_every_rule_and_compares_its_rates(rule: str) -> None:
    maml = make(lr=None, rule=RULES[rule]())
    found = verify(maml, episodes(), tolerance=1e-9)
    assert found.agrees
    compared = [d for d in found.gradients if d.name.startswith("rates.")]
    assert len(compared) == len(maml.rates)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("gradient", [FirstOrder(), Truncated(1)])
def test_the_plain_loop_is_as_approximate_as_the_maml(gradient: Any) -> None:
    found = verify(make(gradient=gradient), episodes(), tolerance=1e-12)
    assert found.agrees
    assert found.notes == ()


def test_the_plain_loop_with_scopes_frozen_parameters_and_another_executor() -> None:
    maml = make(scope="head", executor="eager")
    maml.module[0].bias.requires_grad_(False)
    found = verify(maml, episodes(), tolerance=1e-12)
    assert found.agrees
    assert [d.name for d in found.gradients] == ["0.weight", "2.weight", "2.bias"]


def test_learned_rates_are_said_not_to_be_compared_with_ones_own_loop() -> None:
    maml = make(lr=nn.Parameter(torch.tensor(LR)))
    found = verify(maml, episodes(), reference=mean_loss)
    assert found.agrees
    assert "rates.rate:lr" in found.notes[0]


def test_a_check_that_cannot_tell_second_order_says_so() -> None:
    found = verify(make(lr=1e-12), episodes(), reference=lambda m, e: mean_loss(m, e, lr=1e-12))
    assert found.agrees
    assert found.notes == (
        "first order gives the same here: take a larger lr or more steps for a sharper check",
    )


def test_dtype_none_keeps_the_models_and_its_tolerance() -> None:
    found = verify(make(), episodes(), reference=mean_loss, dtype=None)
    assert found.agrees
    assert found.dtype == torch.float32
    assert found.tolerance == pytest.approx(torch.finfo(torch.float32).eps ** 0.5)
    assert 1e-12 < found.worst.relative < found.tolerance


def test_nothing_of_the_users_changes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    maml = make(model, batch_norm="module")
    maml(episodes()).loss.backward()
    gradients = [p.grad.clone() for p in maml.parameters()]
    before = {n: x.clone() for n, x in maml.state_dict().items()}
    torch.manual_seed(3)
    random.seed(3)
    state, python_state = torch.get_rng_state(), random.getstate()

    def loop(copy: nn.Module, data: fm.Episodes) -> Tensor:
        assert copy is not model
        assert copy[0].weight.dtype == data.query.inputs.dtype == torch.float64
        random.random()
        torch.rand(2)
        loss = mean_loss(copy, data)
        copy.eval()
        return loss

    with torch.no_grad():
        assert verify(maml, episodes(), reference=loop).agrees
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state
    assert all(m.training for m in model.modules())
    for p, g in zip(maml.parameters(), gradients, strict=True):
        assert torch.equal(p.grad, g)
    for name, x in maml.state_dict().items():
        assert x.dtype == before[name].dtype
        assert torch.equal(x, before[name])


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize(
    ("loop", "message"),
    [
        (lambda m, e: mean_loss(m, e).detach(), "a tensor that requires no gradient"),
        (lambda m, e: mean_loss(m, e).item(), "returned [0-9.]+ and set no gradient"),
        (lambda m, e: None, "returned None and set no gradient"),
        (lambda m, e: torch.stack(losses(m, e)), r"a tensor of shape \[5\]; return the mean"),
        (lambda m, e: mean_loss(classifier().double(), e), "reaches no parameter of `model`"),
        (lambda m, e: (backward_inside(m, e), mean_loss(m, e))[1], "still connected"),
        (lambda m, e: with_higher(m, e), "copy_initial_weights=False"),
        (lambda m, e: with_higher(m, e).backward(), "copy_initial_weights=False"),
    ],
)
def test_loops_that_cannot_be_compared(loop: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verify(make(), episodes(), reference=loop)


def test_a_loop_over_the_users_own_model_leaves_its_gradients_alone() -> None:
    maml = make()
    with pytest.raises(ValueError, match="set no gradient of the model's"):
        verify(
            maml,
            episodes(),
            reference=lambda m, e: backward_inside(maml.module, episodes()),
        )
    assert all(p.grad is None for p in maml.parameters())


def test_random_models_are_refused_with_their_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    with pytest.raises(ValueError, match=r"draws random numbers.*1 \(Dropout\).*\.eval\(\)"):
        verify(make(model), episodes(), reference=mean_loss)
    model[1].eval()
    assert verify(make(model), episodes(), reference=mean_loss).agrees

    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn_like(x))

    with pytest.raises(ValueError, match=r"\(dropout, noise\)"):
        verify(make(Noisy(3, 4)), episodes())


@pytest.mark.slow
def test_what_there_is_no_plain_loop_for() -> None:
    with pytest.raises(ValueError, match=r"no plain loop to compare Reptile\(\) with"):
        verify(make(gradient=Reptile()), episodes())
    with pytest.raises(ValueError, match="no plain loop to compare Zero"):
        verify(make(head=fm.heads.Zero()), episodes())
    with pytest.raises(ValueError, match=r"maml is a Sequential; give the fastmaml\.MAML itself"):
        verify(classifier(), episodes())  # type: ignore[arg-type]


def test_not_a_number_is_no_agreement() -> None:
    found = verify(make(), episodes(), reference=lambda m, e: mean_loss(m, e) * torch.nan)
    assert not found.agrees
    assert "DIFFERENT" in str(found)


@pytest.mark.slow
def test_a_long_table_shows_the_worst_and_keeps_its_columns() -> None:
    torch.manual_seed(0)
    deep = nn.Sequential(*(nn.Linear(3, 3) for _ in range(9)), nn.Linear(3, 4))
    deep.add_module("a_head_with_quite_a_long_name_of_its_own", nn.Linear(4, 4))
    found = verify(make(deep), episodes())
    lines = str(found).splitlines()
    assert "(14 more parameters, which differ less)" in lines
    assert lines[2].startswith(found.worst.name)
    assert len({len(line) for line in lines[:10]}) == 1
