"""Captured execution of models that are not plain: random, recurrent, in place, aliasing, odd."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from odd_models import Odd, odd
from outcomes import agree, outcome, pair, recordings, vectors
from problems import EXACT, tensor
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.engine.recording.captured import MAX_RECORDINGS
from fastmaml.gradients import Checkpointed, MixedMode, Unrolled
from fastmaml.measure.profile import LiveMemory


@pytest.mark.slow
def test_dropout_is_fresh_and_follows_the_seed() -> None:
    both = pair(lambda: nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.4), nn.Linear(16, 2)))
    captured, episodes = both[0], vectors()
    first = agree(*both, episodes, seed=1)
    assert first.same_bits(agree(*both, episodes, seed=1))
    assert not torch.equal(first.losses, agree(*both, episodes, seed=2).losses)
    torch.manual_seed(1)
    losses = [captured(episodes).losses.detach() for _ in range(3)]
    assert torch.equal(losses[0], first.losses)
    assert len({float(x.sum()) for x in losses}) == 3
    assert recordings(captured) == 1
    for method in EXACT.values():  # a step that runs again draws the same
        found = outcome(captured, episodes, seed=1, gradient=method)
        found.check_close(first, 1e-11)


# -------------------------------------------------------------------------------------- refusals


def draw_again(m: Odd, y: Tensor) -> Tensor:
    return y.sin() + torch.rand(2, generator=torch.Generator().manual_seed(3)).to(y)


REFUSED: dict[str, tuple[Callable[[Odd, Tensor], Tensor], str]] = {
    "branch": (lambda m, y: y.sin() if y.sum() > 0 else y.tanh(), "reads a value back"),
    "item": (lambda m, y: y.sin() * y.detach().max().item(), "reads a value back"),
    "tolist": (lambda m, y: y.sin() * y.detach().tolist()[0][0], "reads a value back"),
    "rand": (lambda m, y: y.sin() + torch.rand(2).to(y), "reads a value back|draws random"),
    "generator": (draw_again, "reads a value back|draws random"),
    "mask": (lambda m, y: torch.cat([y[y[:, 0] > 0], y[y[:, 0] <= 0]]).sin(), "depends on values"),
    "nonzero": (lambda m, y: y.sin() * len(y.detach().nonzero()), "depends on values"),
}


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_replayed_runs_eagerly_or_raises(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    how, reason = REFUSED[name]
    captured, eager = pair(odd(how))
    with pytest.raises(RuntimeError, match=rf"cannot be captured.*({reason}).*executor='eager'"):
        captured(vectors())
    chosen = fm.MAML(captured.module, 0.3, steps=2, loss=F.mse_loss, backend="reference")
    with caplog.at_level(logging.WARNING, "fastmaml"):
        for seed in (1, 4):
            agree(chosen, eager, vectors(seed=seed))
    messages = [r.message for r in caplog.records if "cannot be captured" in r.message]
    assert len(messages) == 1
    assert "it runs eagerly" in messages[0]


def test_pythons_random_numbers_are_not_frozen() -> None:
    captured, _ = pair(odd(lambda m, y: y.sin() * random.random()))
    with pytest.raises(RuntimeError, match=r"cannot be captured.*Python's random"):
        captured(vectors())


def test_numpys_random_numbers_are_not_frozen() -> None:
    numpy = pytest.importorskip("numpy")
    captured, _ = pair(odd(lambda m, y: y.sin() * numpy.random.rand()))
    with pytest.raises(RuntimeError, match=r"cannot be captured.*numpy\.random"):
        captured(vectors())
    with pytest.raises(ValueError, match="cannot be drawn again"):
        fm.MAML(captured.module, 0.3, loss=F.mse_loss, gradient=fm.gradients.Checkpointed())(
            vectors()
        )


def counted(m: Odd, y: Tensor) -> Tensor:
    m.calls += 1
    return y.sin()


def counting(m: Odd, y: Tensor) -> Tensor:
    m.calls += 1
    return y.sin() + 0 * m.calls


def test_what_is_only_counted_is_no_dependency() -> None:
    both = pair(odd(counted))
    for _ in range(3):
        agree(*both, vectors())
    assert recordings(both[0]) == 1


def test_a_model_that_changes_at_every_call_runs_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    captured, eager = pair(odd(counting))
    chosen = fm.MAML(captured.module, 0.3, steps=2, loss=F.mse_loss, backend="reference")
    for _ in range(MAX_RECORDINGS + 2):
        agree(chosen, eager, vectors())
    assert sum("changes whenever it runs" in r.message for r in caplog.records) == 1


def test_models_that_write_to_their_inputs_are_refused() -> None:
    class Doubling(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(2))

    for maml in pair(lambda: Doubling(3, 2)):
        with pytest.raises(ValueError, match="changes its inputs in place"):
            maml(vectors())


# ------------------------------------------------------------------------------- kinds of models


class LastOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x.unsqueeze(1))[0][:, -1, :2]


def written_to(m: Odd, y: Tensor) -> Tensor:
    m.count += 1
    return y * m.count


def in_place(m: Odd, y: Tensor) -> Tensor:
    z = y * 2
    z += 1
    z[:, 0] = y[:, 1]
    z[1:].mul_(0.5).add_(y[:-1])
    return torch.sin_(z)


def by_number(m: Odd, y: Tensor) -> Tensor:
    return y[torch.tensor([1, 0, 3, 2])].sin() + y.flip(0)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "lstm": LastOutput,  # one task at a time
    "in place": odd(in_place),
    "in-place layers": lambda: nn.Sequential(
        nn.Linear(3, 8), nn.Dropout(0.3, inplace=True), nn.ReLU(inplace=True), nn.Linear(8, 2)
    ),
    "writes to a buffer": odd(written_to),
    "indexing": odd(by_number),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
    "fft": odd(lambda m, y: torch.fft.rfft(y.sin(), dim=0).abs()[[0, 1, 2, 1]]),
}


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("method", ["unrolled", "checkpointed-2"])
@pytest.mark.parametrize("name", [n for n in MODELS if n != "fft"])
def test_kinds_of_models(name: str, method: str) -> None:
    both = pair(MODELS[name], gradient=EXACT[method])
    for seed in (1, 4):
        agree(*both, vectors(seed=seed))
    assert recordings(both[0]) == 1


def test_complex_numbers_run_eagerly_where_they_cannot_be_recorded() -> None:
    captured, eager = pair(MODELS["fft"])
    chosen = fm.MAML(captured.module, 0.3, steps=2, loss=F.mse_loss, backend="reference")
    for seed in (1, 4):
        agree(chosen, eager, vectors(seed=seed))


def test_running_statistics() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))

    both = pair(build, batch_norm="module")
    for mode in (True, False, True):
        for maml in both:
            maml.train(mode)
        before = copy.deepcopy(both[0].module[1].state_dict())
        agree(*both, vectors())
        after = both[0].module[1].state_dict()
        assert all(torch.equal(v, both[1].module[1].state_dict()[k]) for k, v in after.items())
        assert torch.equal(before["running_mean"], after["running_mean"]) == (not mode)
    assert recordings(both[0]) == 2


def test_layouts_of_parameters_and_inputs() -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(16, 2))
        model[0].to(memory_format=torch.channels_last)
        model[3].weight = nn.Parameter(tensor(32, 2, seed=5)[::2].t())  # with gaps
        return model

    both = pair(build)
    x = tensor(3, 5, 4, 4, 2, seed=1).permute(0, 1, 4, 2, 3)
    y = tensor(2, 5, 3, seed=2).permute(2, 1, 0)
    for inputs in (x, x.contiguous(), x[:, :, :, ::1].flip(-1), x.expand(3, 5, 2, 4, 4)):
        agree(*both, fm.Episodes(fm.Batch(inputs, y), fm.Batch(inputs[:, ::2], y[:, ::2])))
    assert recordings(both[0]) == 1  # inputs are made contiguous
    assert both[0].module[3].weight.grad.stride() == both[1].module[3].weight.grad.stride()


def test_a_nan_is_found_at_the_recording_and_at_a_replay() -> None:
    both, episodes, bad = pair(lambda: nn.Linear(3, 2)), vectors(), vectors()
    bad.query.inputs[1, 0, 0] = torch.nan
    for batches in (bad, episodes, bad):
        messages = []
        for maml in both:
            if batches is episodes:
                maml(batches)
                continue
            with pytest.raises(fm.NonFiniteLoss) as error:
                maml(batches)
            messages.append((str(error.value), error.value.step, error.value.tasks))
        assert messages[:1] == messages[1:]
    for maml in both:
        maml.check_finite = False
    found, expected = (outcome(maml, bad) for maml in both)
    assert found.losses.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


# --------------------------------------------------------------------------------------- results


def many(m: Odd, y: Tensor) -> dict[str, Any]:
    return {
        "y": y.sin(), "again": y.sin(), "same": y, "view": y.t(), "wide": y[:1].expand(4, 2),
        "constant": torch.zeros(2), "number": 3, "nothing": None,
    }  # fmt: skip


def of_many(output: dict[str, Any], target: Tensor) -> Tensor:
    return F.mse_loss(output["y"], target) + output["view"].square().mean()


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("chunk", [1, 3])
def test_outputs_that_share_memory_or_hold_none(chunk: int) -> None:
    both, episodes = pair(odd(many), of_many, tasks_chunk=chunk), vectors()
    first = agree(*both, episodes)
    out = both[0](episodes)
    assert out.outputs["number"] == 3
    assert out.outputs["nothing"] is None
    with torch.no_grad():
        for x in torch.utils._pytree.tree_leaves(out.outputs):
            if isinstance(x, Tensor) and 0 not in x.stride():
                x.add_(1)  # results are the caller's to change
        out.losses.zero_()
    assert agree(*both, episodes).same_bits(first)


class Echo(nn.Module):
    """Returns its input too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), x


def test_a_model_that_returns_its_input() -> None:
    both = pair(Echo, lambda output, target: F.mse_loss(output[0], target))
    agree(*both, vectors())
    out = both[0](vectors())
    assert torch.equal(out.outputs[1], vectors().query.inputs)
    assert not out.outputs[1].requires_grad or out.outputs[1].grad_fn is not None


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("gradient", [Unrolled(), Checkpointed()])
def test_a_loss_of_ones_own(gradient: fm.gradients.GradientMethod) -> None:
    both = pair(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 2)))
    for seed in (1, 4):
        gradients = []
        for maml in both:
            maml.zero_grad()
            torch.manual_seed(seed)
            out = maml(vectors(seed=seed), gradient=gradient)
            weighted = (out.losses * torch.tensor([0.2, 0.5, 0.3]).double()).sum()
            (weighted + out.outputs.square().mean() + 0.5 * out.loss).backward()
            gradients.append([p.grad for p in maml.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
        assert recordings(both[0]) == 2  # with the outputs' cotangents, and without


def test_the_gradient_is_the_callers() -> None:
    """Accumulating into .grad reaches neither the recording nor the episodes."""

    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.shift).sum(0)

    both = pair(Shift, lambda output, target: output.sum(), steps=1)
    episodes = vectors(tasks=1, examples=1)
    before = [x.clone() for x in episodes.query.tensors()]
    for _ in range(3):
        for maml in both:
            maml.zero_grad(set_to_none=False)
            maml(episodes).losses.sum().backward()
            maml(episodes).losses.sum().backward()
        assert torch.equal(both[0].module.shift.grad, both[1].module.shift.grad)
    assert all(torch.equal(x, y) for x, y in zip(before, episodes.query.tensors(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("gradient", [Checkpointed(), MixedMode()])
def test_a_replayed_step_more_costs_one_copy_of_the_parameters(
    gradient: fm.gradients.GradientMethod,
) -> None:
    def build() -> nn.Module:
        layers = [m for _ in range(4) for m in (nn.Linear(40, 40), nn.Tanh())]
        return nn.Sequential(*layers)

    x = tensor(4, 2, 80, 40)
    episodes = fm.Episodes(fm.Batch(x[0], x[1]), fm.Batch(x[2], x[3]))

    def peak(steps: int) -> float:
        captured, _ = pair(build, steps=steps, gradient=gradient, tasks_chunk=2)
        captured(episodes)  # records
        with LiveMemory() as memory:
            captured(episodes).loss.backward()
        return memory.peak_bytes / (2 * sum(p.nbytes for p in captured.parameters()))

    assert (peak(9) - peak(3)) / 6 <= 1.2
