"""A user's own rule, gradient method, head and loss get what the package's own get.

The same plan, the same memory estimate and law, and a recording of as many operations, with the
same bits. Time follows from these, and is not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from outcomes import recordings
from own_classes import Prototype, Zero, example, facts, outside, problem
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.gradients import Checkpointed, FirstOrder, Reptile, Truncated, Unrolled
from fastmaml.rules import LSLR, SGD, ClipNorm, MetaSGD, Momentum, chain

CaptureFixture = pytest.CaptureFixture[str]
unrolled, checkpointed = outside("gradients/unrolled.py"), outside("gradients/checkpointed.py")
sgd, momentum = outside("rules/sgd.py"), outside("rules/momentum.py")

METHODS: dict[str, tuple[Any, Any]] = {
    "Unrolled": (Unrolled(), unrolled.Unrolled()),
    "Truncated": (Truncated(2), unrolled.Truncated(2)),
    "FirstOrder": (FirstOrder(), unrolled.FirstOrder()),
    "Checkpointed": (Checkpointed(), checkpointed.Checkpointed()),
    "Checkpointed, segments": (Checkpointed(2), checkpointed.Checkpointed(2)),
}


WHERE = ["all", "head", "words"]
PAIRS = [(method, WHERE[i % 3]) for i, method in enumerate([*METHODS, *list(METHODS)[1:]])]
"""Each method in two places but for one, and each place with three of them."""


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize(("method", "where"), PAIRS)
def test_a_gradient_method(method: str, where: str) -> None:
    ours, own = METHODS[method]
    assert type(own).__module__.startswith("outside_")
    expected = facts(*problem(where, gradient=ours))
    facts(*problem(where, gradient=own)).assert_same(expected)
    assert bool(expected.plan["tables"]) == (where == "words")


def test_a_gradient_method_that_gives_no_derivative() -> None:
    own = outside("gradients/reptile.py").Reptile()
    expected = facts(*problem("words", gradient=Reptile()))
    facts(*problem("words", gradient=own)).assert_same(expected)
    assert not expected.plan["tables"]
    with pytest.raises(ValueError, match="Reptile learns only what adapts"):
        problem("head", gradient=own)


def test_the_example_of_a_gradient_method() -> None:
    expected = facts(*problem("head", gradient=FirstOrder()))
    own = facts(*problem("head", gradient=example("gradient_method").ConstantGradients()))
    assert own.plan.pop("gradient") == "ConstantGradients()"
    assert expected.plan.pop("gradient") == "FirstOrder()"
    told = [
        reason.replace("FirstOrder", "ConstantGradients") for reason in expected.plan["reasons"]
    ]
    expected.plan["reasons"] = tuple(told)
    own.assert_same(expected)


def test_what_a_method_says_of_itself_is_what_is_estimated() -> None:
    """Which is how the tests above could fail."""

    @dataclass(frozen=True)
    class SaysNothing(fm.gradients.GradientMethod):
        one_graph: ClassVar[bool] = True

        def meta_gradient(self, loop: Any, meta: Any) -> Any:
            return FirstOrder().meta_gradient(loop, meta)

    expected = facts(*problem("all", gradient=FirstOrder()))
    found = facts(*problem("all", gradient=SaysNothing()))
    assert found.plan["bytes_step"] > 1.5 * expected.plan["bytes_step"]
    assert found.operations == expected.operations


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_method_that_calls_gradient_and_update(share: float) -> None:
    """In place of `step`: it is watched all the same, and its memory is no guess."""

    @dataclass(frozen=True)
    class Damped(fm.gradients.GradientMethod):
        share: float
        exact: ClassVar[bool] = False

        def meta_gradient(self, loop: Any, meta: Any) -> Any:
            with torch.enable_grad():
                meta = fm.gradients.base.leaves_of(meta)
                carry = loop.start(meta)
                for step in range(loop.steps):
                    g = loop.gradient(step, carry, meta, create_graph=True)
                    g = {n: x.detach().lerp(x, self.share) for n, x in g.items()}
                    carry = loop.update(step, carry, g, meta)
                query = loop.query(loop.steps, carry.parameters, meta.shared)
                ones = torch.ones_like(query.value)
                found = fm.gradients.base.pull_back(query.value, ones, meta)
            return fm.gradients.base.MetaGradient(*found), [query.detach()]

    found = facts(*problem("all", gradient=Damped(share)))
    exact = facts(*problem("all", gradient=Unrolled()))
    first = facts(*problem("all", gradient=FirstOrder()))
    assert "guessed" not in " ".join(found.plan["reasons"])
    assert found.plan["law"].per_step >= exact.plan["law"].per_step
    far = [max_difference(found.numbers, x.numbers) for x in (first, exact)]
    assert (far[0] < 1e-7, far[1] < 1e-7) == (share == 0, share == 1)


def max_difference(a: list[Tensor], b: list[Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def test_one_object_is_one_method_and_two_are_two() -> None:
    """Those of users' classes: with equal fields they may do different things."""
    maml, episodes = problem("all")
    one, other = unrolled.FirstOrder(), unrolled.FirstOrder()
    for _ in range(12):
        maml(episodes, gradient=one).loss.backward()
    assert (len(maml._plans), recordings(maml)) == (1, 1)
    for _ in range(3):
        maml(episodes, gradient=other).loss.backward()
        maml(episodes, gradient=one).loss.backward()
    assert (len(maml._plans), recordings(maml)) == (2, 2)


RULES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "SGD": (lambda: SGD(0.1), lambda: sgd.SGD(0.1)),
    "SGD, learned": (lambda: SGD(_rate()), lambda: sgd.SGD(_rate())),
    "Momentum": (lambda: Momentum(0.1), lambda: momentum.Momentum(0.1)),
    "MetaSGD": (lambda: MetaSGD(0.1), lambda: outside("rules/meta_sgd.py").MetaSGD(0.1)),
    "chain": (
        lambda: chain(ClipNorm(0.5), SGD(0.1)),
        lambda: chain(outside("rules/clip.py").ClipNorm(0.5), sgd.SGD(0.1)),
    ),
    "LSLR": (lambda: LSLR(0.1), lambda: outside("rules/lslr.py").LSLR(0.1)),
}


def _rate() -> nn.Parameter:
    return nn.Parameter(torch.tensor(0.1))


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize(
    ("rule", "where"), [(rule, ["words", "all"][i % 2]) for i, rule in enumerate(RULES)]
)
def test_a_rule(rule: str, where: str) -> None:
    ours, own = (make() for make in RULES[rule])
    assert type(getattr(own, "rules", [own])[-1]).__module__.startswith("outside_")
    expected = facts(*problem(where, rule=ours))
    facts(*problem(where, rule=own)).assert_same(expected)
    assert bool(expected.plan["tables"]) == (where == "words" and ours.by_row)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("budget", [2**28, 1])
def test_the_method_and_the_chunk_that_are_chosen(budget: int) -> None:
    """Under a budget that fits all, and one that fits nothing."""
    expected = facts(*problem("all", rule=SGD(0.1), memory_budget=budget))
    facts(*problem("all", rule=sgd.SGD(0.1), memory_budget=budget)).assert_same(expected)
    assert expected.plan["gradient"].startswith("Unrolled" if budget > 1 else "Checkpointed")
    assert expected.plan["chunk"] == (4 if budget > 1 else 1)


def test_the_example_of_a_rule() -> None:
    """It has no kernel of its own, as `Momentum` has: it is held to that on plain PyTorch."""
    plain = {"backend": "reference"}
    expected = facts(*problem("words", rule=Momentum(0.1), **plain))
    own = example("rule").HeavyBall(0.1)
    facts(*problem("words", rule=own, **plain)).assert_same(expected)


HEADS: dict[str, tuple[Any, Any, Any]] = {
    "zero": (fm.heads.Zero(), Zero(), None),
    "zero, first order": (fm.heads.Zero(), Zero(), FirstOrder()),
    "prototype": (fm.heads.Prototype(0.5), Prototype(0.5), None),
    "prototype, walking back": (fm.heads.Prototype(0.5), Prototype(0.5), Checkpointed()),
}


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("head", HEADS)
def test_a_head(head: str) -> None:
    ours, own, method = HEADS[head]
    expected = facts(*problem("all", head=ours, gradient=method))
    facts(*problem("all", head=own, gradient=method)).assert_same(expected)


class Entropy(nn.Module):
    ignore_index = -100

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels)


def test_a_loss() -> None:
    expected = facts(*problem("all"))
    facts(*problem("all", loss=Entropy())).assert_same(expected)
    assert expected.plan["classes"] == (3, 3)


def test_a_loss_that_does_not_say_what_targets_are() -> None:
    """Its labels are not checked before it runs, and that is all."""
    expected = facts(*problem("all"))
    own = facts(*problem("all", loss=lambda y, t: F.cross_entropy(y, t)))
    assert own.plan.pop("classes") == (None, None)
    assert expected.plan.pop("classes") == (3, 3)
    own.assert_same(expected)


def entropy(outputs: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    return F.cross_entropy(outputs, labels, ignore_index=ignore_index)


LABELLED: dict[str, Callable[..., Tensor]] = {
    "PyTorch's": F.cross_entropy,
    "a module": example("loss").Focal(),
    "a partial function": partial(entropy, ignore_index=-100),
}


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("loss", LABELLED)
def test_labels_of_a_loss_that_says_they_are(loss: str) -> None:
    maml, episodes = problem("all", loss=LABELLED[loss])
    maml(episodes)
    episodes.query.targets[1, 2] = -100  # left out
    assert maml(episodes).losses.isfinite().all()
    for label in (3, -1):
        episodes.support.targets[2, 4] = label
        with pytest.raises(ValueError, match=rf"support.* label {label} \(task 2, example 4\)"):
            maml(episodes)


def test_whole_numbers_of_another_loss_are_no_labels() -> None:
    maml, episodes = problem("all", loss=lambda y, t: (y.sum(1) - t).square().mean())
    episodes.query.targets[1, 2] = 17
    assert maml(episodes).losses.isfinite().all()


@pytest.mark.slow
def test_the_example_of_a_loss_is_the_cross_entropy_without_its_focus() -> None:
    def found(loss: Callable[..., Tensor]) -> list[Tensor]:
        maml, episodes = problem("all", loss=loss)
        maml, episodes = maml.double(), episodes.to(torch.float64)
        episodes.support.targets[:, 1] = -100
        out = maml(episodes)
        return [out.losses.detach(), *torch.autograd.grad(out.loss, list(maml.parameters()))]

    expected, focal = found(F.cross_entropy), example("loss").Focal
    assert max_difference(found(focal(0.0)), expected) < 1e-13
    assert max_difference(found(focal(2.0)), expected) > 1e-2
