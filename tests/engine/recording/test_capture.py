"""Captured execution: what is recorded anew and what is read live; chunks, threads, copies."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from outcomes import Outcome, agree, outcome, pair, recordings, vectors
from places import ROOT
from problems import tensor
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml import ops
from fastmaml.engine.recording.captured import MAX_RECORDINGS
from fastmaml.gradients import Checkpointed, MixedMode
from fastmaml.rules import LSLR, SGD, MetaSGD, Momentum, Rule


class Model(nn.Module):
    """Something of everything: frozen, a buffer, dropout, a number, a list, a function."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3, 6).requires_grad_(False)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(6, 2)
        self.register_buffer("scale", torch.tensor(1.5))
        self.slope = 1.0
        self.shifts = [0.5]
        self.function: Callable[[Tensor], Tensor] = torch.tanh

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.frozen(x) * self.slope + self.shifts[0])
        return self.head(self.drop(y)) * self.scale


class WeightedLoss:
    """A loss with a setting of its own."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return self.weight * F.mse_loss(output, target)


def closed_over(weight: float) -> Any:
    return lambda output, target: weight * F.mse_loss(output, target)


def keyword_only(weight: float) -> Any:
    def loss(output: Tensor, target: Tensor, *, weight: float = weight) -> Tensor:
        return weight * F.mse_loss(output, target)

    return loss


def huber(output: Tensor, target: Tensor, delta: float) -> Tensor:
    return F.huber_loss(output, target, delta=delta)


# ------------------------------------------------------------------ one recording, many values


def learned_rate() -> Rule:
    return SGD(nn.Parameter(torch.tensor(0.3, dtype=torch.float64)))


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("rule", [lambda: SGD(0.3), learned_rate, lambda: MetaSGD(0.3), LSLR])
@pytest.mark.parametrize("backend", ["reference", None])
def test_values_are_read_live(rule: Callable[..., Rule], backend: str | None) -> None:
    """In place or replaced: parameters, frozen ones, buffers, learned rates, episodes."""
    both = pair(Model, rule=partial(rule, 0.3) if rule is LSLR else rule)
    both[0].backend = backend  # the captured one

    def equal() -> Outcome:
        found, expected = (outcome(maml, episodes) for maml in both)
        found.check_close(expected, 0 if backend else 1e-11)
        return found

    episodes = vectors()
    seen = [equal()]
    for change in (
        lambda maml: maml.module.head.weight.mul_(1.1),
        lambda maml: maml.module.frozen.weight.add_(0.1),
        lambda maml: maml.module.scale.fill_(0.7),
        lambda maml: [p.mul_(0.9) for p in maml.parameters()],
        lambda maml: [p.mul_(0.5) for p in maml.rates.parameters()],
        lambda maml: setattr(maml.module.head, "bias", nn.Parameter(tensor(2, seed=8))),
        lambda maml: setattr(maml.module, "scale", torch.tensor(2.0).double()),
        lambda maml: setattr(
            maml.module.frozen, "weight", nn.Parameter(tensor(6, 3), requires_grad=False)
        ),
    ):
        with torch.no_grad():
            for maml in both:
                change(maml)
        seen.append(equal())
    episodes = vectors(seed=7)
    seen.append(equal())
    assert recordings(both[0]) == 1
    fixed = not list(both[0].rates.parameters())
    different = {float(x.losses.sum()) for x in seen}
    assert len(different) == len(seen) - fixed


def test_the_models_code_runs_once() -> None:
    calls = []

    class Noting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            return super().forward(x)

    captured, _ = pair(lambda: Noting(3, 2))
    outcome(captured, vectors())
    outcome(captured, vectors())  # which is checked against an eager run
    calls.clear()
    outcome(captured, vectors())
    assert not calls


# ---------------------------------------------------------------------------- other recordings

CHANGES: dict[str, Callable[[fm.MAML], Any]] = {
    "mode": lambda maml: maml.eval(),
    "submodule's mode": lambda maml: maml.module.drop.eval(),
    "attribute": lambda maml: setattr(maml.module, "slope", 2.0),
    "submodule's attribute": lambda maml: setattr(maml.module.drop, "p", 0.6),
    "function": lambda maml: setattr(maml.module, "function", torch.sin),
    "list": lambda maml: maml.module.shifts.__setitem__(0, 2.0),
    "forward": lambda maml: setattr(maml.module.drop, "forward", torch.sin),
    "submodule": lambda maml: setattr(maml.module, "drop", nn.Softplus()),
    "hook": lambda maml: maml.module.head.register_forward_hook(lambda m, i, y: y.sin()),
    "frozen": lambda maml: maml.module.head.bias.requires_grad_(False),
    "thawed": lambda maml: maml.module.frozen.requires_grad_(),
    "layout": lambda maml: setattr(
        maml.module.head, "weight", nn.Parameter(tensor(6, 2, seed=8).t())
    ),
    "loss": lambda maml: setattr(maml, "loss", F.smooth_l1_loss),
    "loss's closed-over value": lambda maml: setattr(maml, "loss", closed_over(3.0)),
    "rule": lambda maml: setattr(maml, "rule", Momentum(0.2)),
    "rule's setting": lambda maml: setattr(maml, "rule", SGD(0.1)),
    "steps": lambda maml: setattr(maml, "steps", 3),
    "dtype": lambda maml: maml.float(),
}


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_is_seen(name: str) -> None:
    both, episodes = pair(Model, loss=closed_over(2.0)), vectors()
    before = agree(*both, episodes)
    for maml in both:
        CHANGES[name](maml)
    if name == "dtype":
        episodes = fm.Episodes(*(b.map(Tensor.float) for b in (episodes.support, episodes.query)))
    after = agree(*both, episodes)
    assert not torch.equal(before.losses, after.losses) or len(before.gradients) != len(
        after.gradients
    )
    assert recordings(both[0]) == 2
    agree(*both, episodes)
    assert recordings(both[0]) == 2


LOSSES: dict[str, Callable[[Any], Any]] = {  # each with a setting that is then changed
    "closed over": closed_over,
    "keyword-only default": keyword_only,
    "partial": lambda delta: partial(huber, delta=delta),
    "module": lambda beta: nn.SmoothL1Loss(beta=beta),
    "another object": WeightedLoss,
    "method": lambda weight: WeightedLoss(weight).__call__,
}


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("name", LOSSES)
def test_a_changed_setting_of_the_loss_is_seen(name: str) -> None:
    both, episodes = pair(Model, loss=LOSSES[name](0.1)), vectors()
    agree(*both, episodes)
    for maml in both:
        maml.loss = LOSSES[name](0.1)  # an equal one, made anew
    agree(*both, episodes)
    assert recordings(both[0]) <= 2
    for maml in both:
        maml.loss = LOSSES[name](0.7)
    agree(*both, episodes)


def test_an_attribute_of_the_loss_changed_in_place_is_seen() -> None:
    loss, episodes = WeightedLoss(1.0), vectors()
    both = pair(Model, loss=loss)
    agree(*both, episodes)
    loss.weight = 2.0
    agree(*both, episodes)


@pytest.mark.slow
def test_shapes_methods_weights_and_autocast_have_recordings_of_their_own() -> None:
    both = pair(Model)
    kinds: list[Callable[[], Outcome]] = [
        lambda: agree(*both, vectors()),
        lambda: agree(*both, vectors(examples=5)),
        lambda: agree(*both, vectors(tasks=2)),
        lambda: agree(*both, vectors(), gradient=MixedMode()),
        lambda: agree(*both, vectors(), gradient=Checkpointed()),
        lambda: agree(*both, vectors(), step_weights=[0.5, 0.5]),
    ]
    for number, kind in enumerate(kinds, start=1):
        kind()
        assert recordings(both[0]) == number
    for kind in kinds:
        kind()
    assert recordings(both[0]) == len(kinds)
    for maml in both:
        maml.float()
    floats = fm.Episodes(*(b.map(Tensor.float) for b in (vectors().support, vectors().query)))
    plain = agree(*both, floats)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = agree(*both, floats)
    assert not torch.equal(plain.losses, cast.losses)
    assert recordings(both[0]) == len(kinds) + 2


class PartlyCast(nn.Module):
    """A product that stays in float32 under autocast, as those of rotary positions do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        with torch.autocast("cpu", enabled=False):
            h = h.float() @ torch.ones(4, 4) / 3
        return self.last(h)


def test_what_autocast_leaves_alone_is_replayed_as_it_was() -> None:
    captured, eager = (maml.float() for maml in pair(PartlyCast))
    floats = fm.Episodes(*(b.map(Tensor.float) for b in (vectors().support, vectors().query)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = [agree(captured, eager, floats) for _ in range(2)]
    assert recordings(captured) == 1
    assert not torch.equal(cast[0].losses, agree(captured, eager, floats).losses)


@pytest.mark.slow
def test_a_bounded_number_is_kept() -> None:
    both = pair(Model)
    for tasks in range(1, MAX_RECORDINGS + 4):
        agree(*both, vectors(tasks=tasks))
        agree(*both, vectors(tasks=tasks))
    assert recordings(both[0]) == MAX_RECORDINGS
    agree(*both, vectors(tasks=1))  # whose recording went
    assert recordings(both[0]) == MAX_RECORDINGS


@pytest.mark.slow
def test_kinds_that_take_turns_are_not_recorded_again_and_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each of them is met often, so no run of misses shows it."""
    model = Model().double()
    maml = fm.MAML(model, 0.3, steps=1, loss=F.mse_loss, backend="reference")
    recorded = []
    for _ in range(4):
        for tasks in range(1, MAX_RECORDINGS + 3):
            maml(vectors(tasks=tasks))
            maml(vectors(tasks=tasks))
        recorded.append(maml._execute._returned)  # type: ignore[union-attr]
    assert recorded == [0, MAX_RECORDINGS, MAX_RECORDINGS, MAX_RECORDINGS]
    assert sum("take turns" in r.message for r in caplog.records) == 1


# ----------------------------------------------------------------------------- chunks and threads


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_chunks_even_and_uneven(chunk: int) -> None:
    both = pair(Model, tasks_chunk=chunk)
    found = agree(*both, vectors(tasks=5))
    assert recordings(both[0]) == (1 if 5 % chunk == 0 else 2)
    found.check_close(agree(*pair(Model), vectors(tasks=5)), 1e-12)


THREADS = """
import torch, fastmaml as fm
from torch.nn import functional as F
torch.manual_seed(0)
model = fm.models.conv4(5, filters=8, image_size=14, pool="stride")
x = torch.randn(2, 7, 10, 1, 14, 14)
y = torch.arange(5).repeat(7, 2)
data = fm.Episodes(fm.Batch(x[0], y), fm.Batch(x[1], y))
for backend in BACKENDS:
    maml = fm.MAML(model, 0.4, steps=2, loss=F.cross_entropy, tasks_chunk=2,
                   executor="captured", backend=backend)
    results = []
    for threads in (2, 1, 2):
        torch.set_num_threads(threads)
        maml.zero_grad()
        out = maml(data)
        out.loss.backward()
        results.append([out.losses, out.outputs, *(p.grad.clone() for p in maml.parameters())])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True)), backend
print("equal")
"""


@pytest.mark.slow
def test_one_thread_and_two_give_the_same_bits() -> None:
    backends = [b for b in ("reference", "cpp") if ops.status()[b].startswith("available")]
    code = THREADS.replace("BACKENDS", repr(backends))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize("chunk", [1, 3])
def test_errors_of_a_replay_come_through(chunk: int) -> None:
    tokens = torch.tensor([[0, 1], [2, 3], [1, 1]])
    y = tensor(3, 2, 2)

    def episodes(tokens: Tensor) -> fm.Episodes:
        return fm.Episodes(fm.Batch(tokens, y), fm.Batch(tokens, y))

    both = pair(lambda: nn.Embedding(4, 2), tasks_chunk=chunk)
    agree(*both, episodes(tokens))
    for maml in both:
        with pytest.raises(IndexError, match="out of range"):
            maml(episodes(tokens + 3))
    agree(*both, episodes(tokens))
    assert recordings(both[0]) == 1


# ---------------------------------------------------------------------------------------- copies


def test_copies_begin_without_recordings() -> None:
    captured, eager = pair(Model)
    expected = agree(captured, eager, vectors())
    for other in (copy.deepcopy(captured), pickle.loads(pickle.dumps(captured))):
        assert recordings(captured) == 1
        assert recordings(other) == 0
        with torch.no_grad():
            captured.module.scale.add_(1)  # which is not the copy's
        assert outcome(other, vectors()).same_bits(expected)
        assert recordings(other) == 1


@pytest.mark.slow
def test_a_clone_reaches_the_original() -> None:
    captured, eager = pair(Model)
    expected = agree(captured, eager, vectors())
    learner = captured.clone()
    captured.zero_grad()
    torch.manual_seed(5)
    learner(vectors()).loss.backward()
    found = [p.grad for p in captured.parameters() if p.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(found, expected.gradients, strict=True))
    assert recordings(captured) == recordings(learner) == 1
