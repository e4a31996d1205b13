"""What does not depend on adapted parameters is computed once for all inner steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from anil import ALL_PATHS, STEPS, Body, Count, learner, same_as_whole_passes, vectors
from language_models import bert
from language_models import episodes as texts
from outcomes import outcome, require
from problems import tensor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import fastmaml as fm
from fastmaml.gradients import Checkpointed, FirstOrder, Truncated, Unrolled
from fastmaml.gradients.base import GradientMethod

METHODS = [Unrolled(), Truncated(2), FirstOrder()]


# ------------------------------------------------------------------ how often


@pytest.mark.sampled(at_most=3)
@pytest.mark.parametrize("gradient", METHODS, ids=str)
@pytest.mark.parametrize("chunk", [1, 3])
def test_the_body_runs_once_on_the_support_set(gradient: GradientMethod, chunk: int) -> None:
    maml = learner(Body(), gradient, executor="eager", backend="reference", tasks_chunk=chunk)
    episodes = vectors()
    maml(episodes)  # tries things out
    with Count(F.linear) as linear, Count(torch.tanh) as tanh:
        maml(episodes)
    # Support and query; where steps are held constant and where they are not, Truncated's differ.
    passes = 2 + isinstance(gradient, Truncated)
    assert tanh.calls * chunk == 3 * passes
    assert linear.calls * chunk == 3 * (2 * passes + STEPS + 1)


def test_the_meta_gradient_goes_back_through_it_once() -> None:
    """More inner steps cost the head's work alone."""

    def flops(steps: int) -> int:
        maml = learner(Body(), Unrolled(), executor="eager", backend="reference", steps=steps)
        maml(vectors())
        with FlopCounterMode(display=False) as counter:
            maml(vectors())
        return counter.get_total_flops()

    one, two, ten = map(flops, (1, 2, 10))
    head = 3 * 2 * 6 * 6 * 3  # of one pass: tasks, multiply and add, examples, widths
    assert two - one <= 6 * head
    assert ten - two == 8 * (two - one)


def test_methods_that_run_steps_again_share_nothing() -> None:
    """They are there to keep little."""
    maml = learner(Body(), Checkpointed(), executor="eager", backend="reference", tasks_chunk=3)
    maml(vectors())
    with Count(torch.tanh) as tanh:
        maml(vectors())
    assert tanh.calls == 2 * STEPS + 1


def test_everything_adapts_so_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("a pass of which nothing can be shared is watched")

    monkeypatch.setattr("fastmaml.engine.step.forward.SharedPass", fail)
    learner(Body(), Unrolled(), scope="all")(vectors())
    learner(Body(), Unrolled(), steps=1)(vectors())


@pytest.mark.slow
def test_explain_says_so() -> None:
    def said(gradient: GradientMethod, **options: Any) -> str:
        lines = str(learner(Body(), gradient, **options).explain(vectors())).splitlines()
        return " ".join(line for line in lines if line.startswith("support set:"))

    assert said(Unrolled()) == (
        "support set: what no adapted parameter reaches runs once, not at every inner step "
        "(but what is random, checkpointed or written through views, and all after it)"
    )
    assert "every inner step runs whole" in said(Checkpointed())
    assert said(Unrolled(), steps=1) == said(Unrolled(), scope="all") == ""


def test_evaluation_and_adaptation_share_too() -> None:
    maml = learner(Body(), Checkpointed(), executor="eager", backend="reference", tasks_chunk=3)
    episodes = vectors()
    support = episodes[0].support.map(lambda x: x.squeeze(0))
    for run, queries in (
        (lambda: maml.evaluate(episodes, STEPS), 1),
        (lambda: maml.adapt_to(support), 0),
    ):
        run()  # tries things out
        with Count(torch.tanh) as tanh:
            run()
        assert tanh.calls == 1 + queries


def test_a_later_layer_alone() -> None:
    """Everything below it is shared, and it is not."""
    maml = learner(Body(), Unrolled(), executor="eager", backend="reference", scope="second.*")
    maml(vectors())
    with Count(F.linear) as linear, Count(torch.relu) as relu:
        maml(vectors())
    assert relu.calls == 2
    assert linear.calls == 2 + 2 * (STEPS + 1)


# ------------------------------------------------------------------ the same numbers


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("path", ALL_PATHS)
@pytest.mark.parametrize("gradient", METHODS, ids=str)
@pytest.mark.parametrize("scope", ["head", "second.*", "*.bias"])
def test_numbers(
    monkeypatch: pytest.MonkeyPatch, path: str, gradient: GradientMethod, scope: str
) -> None:
    require(path)
    for chunk in (1, 2, 3):
        torch.manual_seed(0)
        how = {"scope": scope, "tasks_chunk": chunk, **ALL_PATHS[path]}
        same_as_whole_passes(monkeypatch, Body(), gradient, vectors(), **how)


def test_equals_the_textbook() -> None:
    """ANIL by hand: features once, an inner loop on the head, one backward pass."""
    torch.manual_seed(0)
    model = Body().double()
    maml = learner(model, Unrolled(), backend="reference")
    found = outcome(maml, vectors())
    features = nn.Sequential(model.first, nn.ReLU(), model.second, nn.Tanh())
    losses = []
    for task in vectors():
        (x, y), (a, b) = ((s.inputs[0], s.targets[0]) for s in (task.support, task.query))
        weight, bias = model.head.weight, model.head.bias
        known = features(x)
        for _ in range(STEPS):
            loss = F.cross_entropy(F.linear(known, weight, bias), y)
            gw, gb = torch.autograd.grad(loss, (weight, bias), create_graph=True)
            weight, bias = weight - 0.5 * gw, bias - 0.5 * gb
        losses.append(F.cross_entropy(F.linear(features(a), weight, bias), b))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(model.parameters()))
    torch.testing.assert_close(
        found.gradient, torch.cat([g.flatten() for g in expected]), rtol=0, atol=1e-13
    )


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("path", ALL_PATHS)
@pytest.mark.parametrize("chunk", [1, 3])
def test_functions_of_a_task_share_too(path: str, chunk: int) -> None:
    """Calls with the same inputs; those in between with others do not disturb."""
    require(path)
    torch.manual_seed(0)
    maml = learner(Body(), Unrolled(), tasks_chunk=chunk, **ALL_PATHS[path])

    @maml.per_task
    def adapt(learner: Any, support: fm.Batch, query: fm.Batch) -> Any:
        for _ in range(STEPS):
            learner.adapt(F.cross_entropy(learner(support.inputs), support.targets))
            learner(query.inputs)
        first = F.cross_entropy(learner(query.inputs), query.targets)
        with torch.no_grad():
            x = query.inputs * 1
            before = learner(x)
            x.mul_(2)  # the same tensor with other numbers
            more = (learner(x) - before).square().sum()
        return first * more

    def gradient() -> Tensor:
        maml.zero_grad()
        adapt(vectors()).loss.backward()
        return torch.cat([p.grad.flatten() for p in maml.parameters()])  # type: ignore[union-attr]

    gradient()
    if path == "eager-reference":
        with Count(torch.tanh) as tanh:
            found = gradient()
        assert tanh.calls * chunk == 3 * 4
    else:  # which runs eagerly inside of a mode
        found = gradient()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GradientMethod, "steps_once", False)
        maml = learner(copy.deepcopy(maml.module), Unrolled(), executor="eager", tasks_chunk=chunk)
        adapt = maml.per_task(adapt.function)
        assert float((found - gradient()).norm() / found.norm()) < 1e-12


def test_prototypes_use_the_first_pass() -> None:
    """Their features are those of the first inner step."""
    model = Body()
    plain = {"head": fm.heads.Prototype(), "executor": "eager", "backend": "reference"}
    maml = learner(model, Unrolled(), **plain)
    episodes = fm.Episodes(
        fm.Batch(tensor(3, 6, 5, seed=1), torch.tensor([0, 1, 2, 0, 1, 2]).expand(3, 6)),
        fm.Batch(tensor(3, 6, 5, seed=2), torch.tensor([0, 1, 2, 0, 1, 2]).expand(3, 6)),
    )
    found = outcome(maml, episodes)
    with Count(torch.tanh) as tanh:
        outcome(maml, episodes)
    assert tanh.calls == 2
    found.check_close(outcome(learner(model, Checkpointed(), **plain), episodes), 1e-12)


# ------------------------------------------------------------------ transformers


def _loss(output: Any, labels: Tensor) -> Tensor:
    return F.cross_entropy(output.logits, labels)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("path", ["eager-reference", "captured-cpp"])
@pytest.mark.parametrize("scope", ["head", "*layer.1.*"])
def test_bert(monkeypatch: pytest.MonkeyPatch, path: str, scope: str) -> None:
    require(path)
    same_as_whole_passes(
        monkeypatch, bert(), Unrolled(), texts(), scope=scope, loss=_loss, **ALL_PATHS[path]
    )


def test_lower_layers_of_bert_run_once() -> None:
    how = {"scope": "*layer.1.*", "executor": "eager", "backend": "reference", "loss": _loss}
    maml = learner(bert(), Unrolled(), **how)
    episodes = texts()
    maml(episodes)
    with Count(F.layer_norm) as norms, Count(F.embedding) as lookups:
        maml(episodes)
    # Embeddings and the two halves of each layer have a norm.
    chunks = -(-episodes.tasks // maml.explain(episodes).chunk)
    assert lookups.calls == chunks * 2 * 3
    assert norms.calls == chunks * (2 * 3 + 2 * (STEPS + 1))


@pytest.mark.slow
def test_checkpointed_layers_are_run_again_and_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bert()
    name = "activation_checkpointing_enable"  # transformers' name of it since 5.20 or so
    getattr(model, name, getattr(model, "gradient_checkpointing_enable", None))()
    given = (model.train(), Unrolled(), texts())
    same_as_whole_passes(monkeypatch, *given, scope="*layer.1.*", loss=_loss)
