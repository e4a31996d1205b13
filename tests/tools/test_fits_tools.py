"""Clipping, accumulation, EMA, state dicts, accelerate and Lightning around a `MAML`."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fits import assert_exact, by_hand, classifier, episodes, gradients, make
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastmaml as fm
from fastmaml.compat import higher
from fastmaml.compat import learn2learn as l2l
from fastmaml.rules import LSLR


@pytest.mark.slow
def test_several_calls_equal_one_large_meta_batch() -> None:
    maml, data = make(), episodes()
    for part in (data[:3], data[3:5], data[5:]):
        (maml(part).loss * part.tasks / data.tasks).backward()
    assert_exact(gradients(maml), by_hand())
    maml.zero_grad()
    sum(maml(part).losses.sum() / data.tasks for part in (data[:4], data[4:])).backward()
    assert_exact(gradients(maml), by_hand())


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("foreach", [False, True])
def test_clipping(foreach: bool) -> None:
    maml, whole = make(), by_hand()
    maml(episodes()).loss.backward()
    norm = clip_grad_norm_(maml.parameters(), 0.01, foreach=foreach)
    torch.testing.assert_close(norm, whole.norm(), rtol=1e-12, atol=0)
    assert_exact(gradients(maml), whole * 0.01 / (whole.norm() + 1e-6))
    maml.zero_grad()
    maml(episodes()).loss.backward()
    nn.utils.clip_grad_value_(maml.parameters(), 0.02)
    assert_exact(gradients(maml), whole.clamp(-0.02, 0.02))


@pytest.mark.slow
def test_a_moving_average_of_the_meta_parameters() -> None:
    maml = make(lr=nn.Parameter(torch.tensor(0.5, dtype=torch.float64)))
    average = AveragedModel(maml, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    expected = [p.detach().clone() for p in maml.parameters()]
    optimizer = torch.optim.SGD(maml.parameters(), 0.5)
    for step in range(3):
        optimizer.zero_grad()
        maml(episodes()).loss.backward()
        optimizer.step()
        average.update_parameters(maml)
        for mean, p in zip(expected, maml.parameters(), strict=True):
            mean.copy_(p.detach() if step == 0 else 0.9 * mean + 0.1 * p.detach())
    for mean, p in zip(expected, average.module.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), mean, rtol=1e-12, atol=0)
    twin = copy.deepcopy(maml)
    with torch.no_grad():
        for mean, p in zip(expected, twin.parameters(), strict=True):
            p.copy_(mean)
    found = average.module.evaluate(episodes())  # the rate that was averaged is the one used
    torch.testing.assert_close(found.losses, twin.evaluate(episodes()).losses)
    assert not torch.allclose(found.losses, maml.evaluate(episodes()).losses, rtol=1e-6)


# ---------------------------------------------------------------------------- state dicts


def other() -> nn.Module:
    """The same model with other weights."""
    model = classifier()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    return model


def equal(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def test_names_are_the_models_behind_module_and_the_rates() -> None:
    maml = make(lr=None, rule=LSLR(0.1))
    own = [f"module.{name}" for name in maml.module.state_dict()]
    rates = [name for name in maml.state_dict() if name.startswith("rates.")]
    assert list(maml.state_dict()) == own + rates
    assert "rates.rate:body/weight" in rates
    assert list(make().state_dict()) == own


def test_between_a_plain_model_and_a_maml() -> None:
    maml, plain = make(), other()
    maml.module.load_state_dict(plain.state_dict())
    assert equal(maml.module, plain)
    fresh = classifier()
    fresh.load_state_dict(maml.module.state_dict())
    assert equal(fresh, plain)


def test_learned_rates_are_saved_and_loaded() -> None:
    maml, fresh = (make(lr=None, rule=LSLR(rate)) for rate in (0.2, 0.1))
    file = io.BytesIO()
    torch.save(maml.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file))
    for m in (maml, fresh):
        m(episodes()).loss.backward()
    assert torch.equal(gradients(maml), gradients(fresh))
    with pytest.raises(RuntimeError, match="rates"):
        make().load_state_dict(maml.state_dict())


def test_between_wrappers_that_add_a_prefix() -> None:
    """DistributedDataParallel and AveragedModel put `module.` before a MAML's own names."""
    maml = make(other())
    average = AveragedModel(maml)
    state = average.state_dict()
    assert [n for n in state if n != "n_averaged"] == [f"module.{n}" for n in maml.state_dict()]
    fresh = make()
    nn.modules.utils.consume_prefix_in_state_dict_if_present(state, "module.")
    del state["n_averaged"]
    fresh.load_state_dict(state)
    assert equal(fresh, maml)


def test_between_a_maml_and_the_compat_wrappers() -> None:
    script, maml = l2l.algorithms.MAML(other(), lr=0.1), make()
    maml.load_state_dict(script.state_dict())
    assert equal(maml.module, script.module)
    fresh = l2l.algorithms.MAML(classifier(), lr=0.1)
    fresh.load_state_dict(maml.state_dict())
    assert equal(fresh, maml)
    learned = l2l.algorithms.MetaSGD(other(), lr=0.1)
    maml.module.load_state_dict(learned.module.state_dict())
    assert equal(maml.module, learned.module)


def test_a_functional_model_of_higher_takes_the_models_own_names() -> None:
    maml = make(other())
    inner = torch.optim.SGD(maml.module.parameters(), lr=0.1)
    with higher.innerloop_ctx(maml.module, inner) as (functional, _):
        assert list(functional.state_dict()) == list(classifier().state_dict())


# -------------------------------------------------------------------------- outer frameworks


@pytest.fixture
def make_accelerator() -> Iterator[Callable[..., Any]]:
    """An `Accelerator`, whose settings are shared by all others until they are reset."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    yield partial(accelerate.Accelerator, cpu=True)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def test_accelerate_prepares_clips_and_saves(
    make_accelerator: Callable[..., Any], tmp_path: Path
) -> None:
    accelerator = make_accelerator(gradient_accumulation_steps=2)
    maml = make()
    maml, optimizer = accelerator.prepare(maml, torch.optim.Adam(maml.parameters(), 0.01))
    for part in (episodes()[:3], episodes()[3:]):
        with accelerator.accumulate(maml):
            accelerator.backward(maml(part).loss)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(maml.parameters(), 1e6)
                found = gradients(maml)
            optimizer.step()
            optimizer.zero_grad()
    assert_exact(found, by_hand())
    torch.testing.assert_close(norm, by_hand().norm(), rtol=1e-12, atol=0)
    trained = copy.deepcopy(accelerator.unwrap_model(maml))
    assert isinstance(trained, fm.MAML)
    accelerator.save_state(str(tmp_path))
    with torch.no_grad():
        for p in maml.parameters():
            p.zero_()
    accelerator.load_state(str(tmp_path))
    assert equal(maml, trained)


def test_accelerate_in_bfloat16_is_autocast(make_accelerator: Callable[..., Any]) -> None:
    accelerator = make_accelerator(mixed_precision="bf16")
    data, plain = episodes().to(torch.float32), make(classifier(torch.float32))
    maml = accelerator.prepare(make(classifier(torch.float32)))
    out = maml(data)
    accelerator.backward(out.loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = plain(data)
    expected.loss.backward()
    assert isinstance(out, fm.MetaOutput)
    assert torch.equal(gradients(maml), gradients(plain))
    assert not torch.allclose(gradients(maml).double(), by_hand(), rtol=1e-5)


# Lightning's use of torch's and its own older names, and its advice.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning")
def test_a_lightning_module() -> None:
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Learner(lightning.LightningModule):
        def __init__(self, maml: fm.MAML) -> None:
            super().__init__()
            self.maml = maml

        def training_step(self, batch: fm.Episodes, index: int) -> Tensor:
            out = self.maml(batch)
            self.log("accuracy", out.accuracy, batch_size=batch.tasks)
            return out.loss

        def validation_step(self, batch: fm.Episodes, index: int) -> None:
            self.log("validation", self.maml.evaluate(batch).loss, batch_size=batch.tasks)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.5)

    data = episodes()
    loader = torch.utils.data.DataLoader([data[:3], data[3:]] * 2, batch_size=None)
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        gradient_clip_val=0.05, accumulate_grad_batches=2,
    )  # fmt: skip
    learner = Learner(make())
    trainer.fit(learner, loader, loader)
    plain = make()
    optimizer = torch.optim.SGD(plain.parameters(), 0.5)
    for _ in range(2):
        plain(data).loss.backward()
        clip_grad_norm_(plain.parameters(), 0.05)
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(learner.maml.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
    expected = plain.evaluate(data).loss.detach()
    torch.testing.assert_close(trainer.callback_metrics["validation"], expected)
