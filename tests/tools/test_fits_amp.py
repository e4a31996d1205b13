"""autocast and GradScaler around ``maml(episodes)``, in bfloat16 and float16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fits import LR, STEPS, by_hand, classifier, episodes, gradients, make
from hand_loop import hand_loop
from problems import relative
from torch import Tensor
from torch.nn import functional as F

import fastmaml as fm

HALVES = [torch.bfloat16, torch.float16]


def data() -> fm.Episodes:
    return episodes().to(torch.float32)


def single(**options: Any) -> fm.MAML:
    return make(classifier(torch.float32), **options)


def tiny(output: Tensor, targets: Tensor) -> Tensor:
    """A loss whose gradients are below what float16 can hold."""
    return F.cross_entropy(output, targets) * 1e-5


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_autocast_is_as_near_as_a_plain_loop(dtype: torch.dtype) -> None:
    maml, model = single(), classifier(torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        out = maml(data())
        hand = hand_loop(model, F.cross_entropy, data(), LR, STEPS)[1]
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    exact = by_hand()
    plain = relative(torch.cat([g.double().flatten() for g in hand.values()]), exact)
    assert 0 < relative(gradients(maml).double(), exact) <= 2 * plain


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_scaler_changes_no_step_that_is_finite(dtype: torch.dtype) -> None:
    scaled, plain = single(check_finite=False), single()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizers = [torch.optim.SGD(m.parameters(), 0.5) for m in (scaled, plain)]
    for _ in range(3):
        for maml, optimizer in zip((scaled, plain), optimizers, strict=True):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                loss = maml(data()).loss
            (scaler.scale(loss) if maml is scaled else loss).backward()
        scaler.unscale_(optimizers[0])
        scaler.step(optimizers[0])
        scaler.update()
        optimizers[1].step()
    assert scaler.get_scale() == 2.0**10
    for a, b in zip(scaled.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)  # the factor is a power of two


def test_a_scaler_meets_infinities_and_skips_the_step() -> None:
    huge = fm.Episodes(*(fm.Batch(b.inputs * 1e6, b.targets) for b in (data().support,) * 2))
    maml = single(check_finite=False)
    before = [p.detach().clone() for p in maml.parameters()]
    optimizer = torch.optim.SGD(maml.parameters(), 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with torch.autocast("cpu", dtype=torch.float16):
        out = maml(huge)
        with pytest.raises(fm.NonFiniteLoss, match="support loss of task 0"):
            single()(huge)
    scaler.scale(out.loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    for a, b in zip(before, maml.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_scalers_factor_reaches_the_meta_step_through_losses_alone() -> None:
    """Documented: `loss` brings a gradient that was computed without the factor."""
    exact = make(loss=tiny, steps=1)
    exact(episodes()).loss.backward()
    errors = {}
    for name in ("loss", "losses"):
        maml = single(loss=tiny, steps=1, check_finite=False)
        optimizer = torch.optim.SGD(maml.parameters(), 0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
        with torch.autocast("cpu", dtype=torch.float16):
            out = maml(data())
        scaler.scale(getattr(out, name).mean()).backward()
        scaler.unscale_(optimizer)
        errors[name] = relative(gradients(maml).double(), gradients(exact))
    assert errors["loss"] > 0.3
    assert errors["losses"] < 2e-3
