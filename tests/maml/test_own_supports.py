"""A support set for each inner step: ``maml(supports, query)``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from every_way import LR, held_to_loop
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.episodes import NamedEpisodes

TASKS, CLASSES = 3, 4


def batch(examples: int, seed: int, tasks: int = TASKS) -> fm.Batch:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(tasks, examples, 5, generator=draw, dtype=torch.float64)
    return fm.Batch(x, torch.randint(CLASSES, (tasks, examples), generator=draw))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()


SUPPORTS, QUERY = [batch(3, 1), batch(6, 2)], batch(4, 3)
EPISODES = fm.Episodes.of_steps(SUPPORTS, QUERY)


def maml(model: nn.Module, **options: Any) -> fm.MAML:
    return fm.MAML(model, **{"lr": LR, "steps": 2, "loss": F.cross_entropy} | options)


@pytest.mark.parametrize("trained", [slice(0, 3), slice(2, 3)], ids=["all", "head"])
def test_every_way_equals_the_loop(model: nn.Sequential, trained: slice) -> None:
    """With a frozen body what inner steps share must not be shared: each sees other inputs."""
    model.requires_grad_(False)
    model[trained].requires_grad_(True)
    held_to_loop(model, EPISODES, F.cross_entropy)


def test_the_order_of_the_sets_matters(model: nn.Module) -> None:
    learner = maml(model)
    found = learner(SUPPORTS, QUERY).loss.item()
    assert found == learner(SUPPORTS, query=QUERY).loss.item() == learner(EPISODES).loss.item()
    assert abs(learner(SUPPORTS[::-1], QUERY).loss.item() - found) > 1e-4
    assert abs(learner(fm.Episodes(SUPPORTS[0], QUERY)).loss.item() - found) > 1e-4


def test_one_recording_for_all_steps_is_replayed_with_other_data(model: nn.Module) -> None:
    learner, eager = maml(model, executor="captured"), maml(model, executor="eager")
    for seed in range(4):
        sets = [batch(3, 10 + seed), batch(6, 20 + seed)]
        out, expected = learner(sets, batch(4, seed)), eager(sets, batch(4, seed))
        assert out.loss.item() == pytest.approx(expected.loss.item(), rel=1e-12)
    sets = [batch(5, 1), batch(2, 2)]  # of other sizes
    assert learner(sets, QUERY).loss.item() == pytest.approx(eager(sets, QUERY).loss.item())


def test_curves_products_and_steps_by_hand_agree(model: nn.Module) -> None:
    learner = maml(model)
    curve = learner.evaluate_each_step(EPISODES)
    assert len(curve) == 3
    adapted = learner.adapted(SUPPORTS[0], steps=1)
    outputs = adapted.step(SUPPORTS[1], steps=1)(QUERY.inputs)
    torch.testing.assert_close(curve[-1].outputs, outputs, rtol=1e-10, atol=1e-12)
    assert learner.evaluate(EPISODES, steps=1).loss.item() == pytest.approx(curve[1].loss.item())

    torch.manual_seed(1)
    v = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    along = learner.jvp(EPISODES, v).losses_along
    for task in range(TASKS):
        learner.zero_grad()
        learner(EPISODES).losses[task].backward()
        expected = sum((p.grad * v[n]).sum() for n, p in model.named_parameters())
        torch.testing.assert_close(along[task], expected, rtol=1e-9, atol=1e-12)


def test_verify_and_explain_know_of_them(model: nn.Sequential) -> None:
    model[0].requires_grad_(False)
    learner = maml(model)
    assert fm.verify(learner, EPISODES).agrees
    assert "each inner step has its own" in str(learner.explain(EPISODES))
    assert "runs once" in str(learner.explain(fm.Episodes(SUPPORTS[0], QUERY)))


def test_tables_of_which_rows_are_looked_up_adapt_whole() -> None:
    """What a later set looks up was not looked for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5000, 3), nn.Flatten(), nn.Linear(6, CLASSES)).double()
    draw = torch.Generator().manual_seed(4)
    sets = [
        fm.Batch(torch.randint(5000, (TASKS, n, 2), generator=draw), batch(n, n).targets)
        for n in (3, 4, 5)
    ]
    held_to_loop(model, fm.Episodes.of_steps(sets[:2], sets[2]), F.cross_entropy)


def test_tasks_are_taken_and_moved_with_all_their_sets() -> None:
    part = EPISODES[1]
    assert [x.shape[:2] for x in part.named()["support set of inner step 1"]] == [(1, 6), (1, 6)]
    assert torch.equal(part.later[0].inputs, SUPPORTS[1].inputs[1:2])
    moved = EPISODES.to(torch.float32)
    assert moved.later[0].inputs.dtype == torch.float32
    assert moved.later[0].targets.dtype == torch.int64
    named = NamedEpisodes(SUPPORTS[0], QUERY, ("a", "b", "c"), later=(SUPPORTS[1],))
    assert torch.equal(named[2].later[0].inputs, SUPPORTS[1].inputs[2:])
    assert named.map(torch.clone).names == named.names
    assert named.to(torch.float32).later[0].inputs.dtype == torch.float32


Make = Callable[[fm.MAML], Any]
WRONG: dict[str, tuple[Make, str]] = {
    "too few": (
        lambda m: m([*SUPPORTS, SUPPORTS[0]], QUERY),
        "3 support sets for 2 inner steps: give one for each",
    ),
    "too many": (
        lambda m: m.evaluate(EPISODES, steps=3),
        "2 support sets for 3 inner steps: give one for each",
    ),
    "none": (lambda m: m([], QUERY), "supports is empty: give a support set for each inner step"),
    "tasks": (
        lambda m: m([SUPPORTS[0], batch(6, 2, tasks=2)], QUERY),
        "different numbers of tasks: [2, 3]",
    ),
    "no batch": (
        lambda m: m([SUPPORTS[0], torch.ones(3, 2)], QUERY),
        "support of inner step 1 is a Tensor; give a Batch",
    ),
    "device": (
        lambda m: m([SUPPORTS[0], SUPPORTS[1].to("meta")], QUERY),
        "the support set of inner step 1 is on meta",
    ),
    "labels": (
        lambda m: m([SUPPORTS[0], fm.Batch(SUPPORTS[1].inputs, SUPPORTS[1].targets + 9)], QUERY),
        "support of inner step 1.targets holds the label",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named(model: nn.Module, name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        call(maml(model))


def test_a_nan_in_a_later_set_is_reported(model: nn.Module) -> None:
    broken = SUPPORTS[1].map(lambda x: x * float("nan") if x.is_floating_point() else x)
    with pytest.raises(fm.NonFiniteLoss, match="at inner step 1"):
        maml(model)([SUPPORTS[0], broken], QUERY)


def test_per_task_functions_get_a_list_of_them(model: nn.Module) -> None:
    learner = maml(model)

    @learner.per_task
    def run(learner: Any, supports: list[fm.Batch], query: fm.Batch, scale: float = 1.0) -> Tensor:
        for given in supports:
            learner.adapt(F.cross_entropy(learner(given.inputs), given.targets))
        return scale * F.cross_entropy(learner(query.inputs), query.targets)

    expected = learner(EPISODES).loss.item()
    assert run(EPISODES).loss.item() == pytest.approx(expected, rel=1e-12)
    assert run(EPISODES, scale=2.0).loss.item() == pytest.approx(2 * expected, rel=1e-12)
