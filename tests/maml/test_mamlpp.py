"""`mamlpp`: the inner loop of MAML++ in one call, and the outer loop that belongs to it."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import tensor
from torch import nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.models import PerStepBatchNorm2d
from fastmaml.rules import LSLR, SGD


def images() -> fm.Episodes:
    labels = torch.arange(6).remainder(3).expand(2, 6)
    return fm.Episodes(*(fm.Batch(tensor(2, 6, 1, 8, 8, seed=s), labels) for s in (1, 2)))


def conv() -> nn.Module:
    torch.manual_seed(0)
    return fm.models.conv4(3, filters=4).double()


def test_what_adapts_and_what_is_learned() -> None:
    model = conv()
    before = copy.deepcopy(model.state_dict())
    maml = fm.mamlpp(model, lr=0.2, steps=3)
    norms = [n for n, m in maml.module.named_modules() if isinstance(m, PerStepBatchNorm2d)]
    assert len(norms) == 4
    assert maml.rule == LSLR(0.2)
    assert maml.steps == 3
    rates = [n.removeprefix("rate:").replace("/", ".") for n in maml.rates]
    own = {n for n, _ in model.named_parameters() if n.rpartition(".")[0] not in norms}
    assert set(rates) == own
    assert all(torch.equal(r, torch.full_like(r, 0.2)) for r in maml.rates.values())
    for _ in range(2):
        maml(images(), step_weights=[0.2, 0.3, 0.5]).loss.backward()
    for name in norms:
        table = maml.module.get_parameter(f"{name}.weight")
        assert table.grad is not None
        assert table.grad.norm(dim=1).min() > 0, "each step's row is learned"
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert len(maml._known._kept) == 1, "its scope is known to stay"
    adapted = maml.adapt_to(fm.Batch(*(x[0] for x in images().tree()[0])))
    for name, p in adapted.named_parameters():
        moved = not torch.equal(p, maml.module.get_parameter(name))
        assert moved == (name.rpartition(".")[0] not in norms)


def test_it_agrees_with_a_plain_loop() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))
    maml = fm.mamlpp(model.double(), steps=2)
    assert fm.verify(maml, images()).agrees
    assert fm.verify(copy.deepcopy(maml), images()).agrees


def test_without_batch_norm_and_with_options() -> None:
    maml = fm.mamlpp(nn.Linear(3, 2), steps=2, loss=F.mse_loss, query_loss=F.l1_loss, scope="bias")
    assert maml.query_loss is F.l1_loss
    assert maml.scope == "bias"
    assert set(fm.mamlpp(nn.Linear(3, 2)).rates) == {"rate:weight", "rate:bias"}
    with pytest.raises(ValueError, match=r"rule=SGD\(lr=0.1\): mamlpp learns the rates"):
        fm.mamlpp(nn.Linear(3, 2), rule=SGD(0.1))
    with pytest.raises(ValueError, match="0 is a BatchNorm3d"):
        fm.mamlpp(nn.Sequential(nn.BatchNorm3d(2)))
    with pytest.raises(ValueError, match="steps=0"):
        fm.mamlpp(conv(), steps=0)


def test_the_outer_loop() -> None:
    config = fm.LoopConfig.mamlpp(iterations=200)
    assert (config.schedule, config.multi_step_until, config.first_order_until) == (
        "cosine",
        20,
        100,
    )
    own = fm.LoopConfig.mamlpp(iterations=50, first_order_until=0, meta_lr=0.1)
    assert (own.multi_step_until, own.first_order_until, own.meta_lr) == (5, 0, 0.1)
    assert type(fm.TrainConfig.mamlpp(iterations=10)) is fm.TrainConfig
