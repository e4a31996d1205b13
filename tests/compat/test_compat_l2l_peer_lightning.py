"""Lightning modules beside learn2learn's own, where it and pytorch_lightning can be imported."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from problems import tensor
from torch import nn

import fastmaml.compat.learn2learn as own

INSTALL = "`make peers` makes an environment that has it"


@pytest.fixture
def peer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("learn2learn", reason=INSTALL, exc_type=ImportError)


def features() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh()).double()


def head() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(6, 4).double()


SIZES = {"train_ways": 4, "train_shots": 2, "train_queries": 1, "test_ways": 4, "test_shots": 1,
         "test_queries": 2, "lr": 0.01}  # fmt: skip
STEPS = {"adaptation_steps": 3, "adaptation_lr": 0.3}
MODULES: dict[str, Any] = {
    "LightningMAML": lambda l2l: l2l.algorithms.LightningMAML(
        nn.Sequential(features(), head()), **SIZES, **STEPS
    ),
    "LightningANIL": lambda l2l: l2l.algorithms.LightningANIL(features(), head(), **SIZES, **STEPS),
    "LightningPrototypicalNetworks": lambda l2l: l2l.algorithms.LightningPrototypicalNetworks(
        features(), **SIZES
    ),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore")  # that nothing is logged without a trainer
def test_losses_gradients_and_hyper_parameters(peer: Any, name: str) -> None:
    x, labels = tensor(12, 3), torch.arange(4).repeat_interleave(3)
    found = []
    for l2l in (own, peer):
        module = MODULES[name](l2l)
        losses = []
        for kind in ("training", "validation", "test"):
            module.zero_grad()
            torch.manual_seed(2)
            loss = getattr(module, f"{kind}_step")((x + len(losses), labels), 0)
            losses.append(loss)
            if kind == "training":
                loss.backward()
                grads = {n: p.grad for n, p in module.named_parameters()}
        (optimizer,), (schedule,) = module.configure_optimizers()
        found.append(
            (
                losses[0].detach(),
                grads,
                dict(module.named_buffers()),
                [(type(optimizer).__name__, optimizer.defaults["lr"], len(optimizer.param_groups))],
                dict(module.hparams),
                type(schedule).__name__,
            )
        )
    ours, theirs = found
    torch.testing.assert_close(ours[:3], theirs[:3], rtol=1e-10, atol=1e-13)
    assert ours[3:] == theirs[3:]
