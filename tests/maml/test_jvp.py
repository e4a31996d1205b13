"""`maml.jvp`: derivatives along a direction, against the meta-gradient and differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import tensor
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.rules import SGD, MetaSGD, Momentum, Scheduled


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def episodes() -> fm.Episodes:
    def batch(seed: int) -> fm.Batch:
        return fm.Batch(tensor(4, 5, 3, seed=seed), tensor(4, 5, 2, seed=seed + 50))

    return fm.Episodes(batch(1), batch(2))


def direction(model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {n: torch.randn_like(p) for n, p in model.named_parameters()}


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("executor", ["eager", "captured"])
@pytest.mark.parametrize("first_order", [False, True])
def test_it_is_dual_to_the_meta_gradient(steps: int, executor: Any, first_order: bool) -> None:
    """⟨u, J·v⟩ = ⟨Jᵀ·u, v⟩ for the cotangents u of losses and of outputs."""
    model = network()
    rule = Scheduled(SGD(0.3), (1.0, 0.5))
    options = {"steps": steps, "executor": executor, "first_order": first_order}
    maml = fm.MAML(model, rule=rule, loss=F.mse_loss, **options)
    v = direction(model)
    for _ in range(2):
        found = maml.jvp(episodes(), v)
        out = maml(episodes())
        torch.testing.assert_close(found.losses, out.losses, rtol=1e-12, atol=0)
        torch.testing.assert_close(found.outputs, out.outputs, rtol=1e-12, atol=0)
        u, w = tensor(4, seed=7), tensor(4, 5, 2, seed=8)
        for own, given in ((found.losses_along, out.losses), (found.outputs_along, out.outputs)):
            cotangent = u if given is out.losses else w
            slopes = torch.autograd.grad(
                (given * cotangent).sum(), list(model.parameters()), retain_graph=True
            )
            expected = sum((g * x).sum() for g, x in zip(slopes, v.values(), strict=True))
            assert float((own * cotangent).sum()) == pytest.approx(float(expected), rel=1e-9)


def test_it_is_the_limit_of_differences() -> None:
    model = network()
    maml = fm.MAML(model, lr=0.3, steps=2, loss=F.mse_loss)
    v, step = direction(model), 1e-5
    found = maml.jvp(episodes(), v)
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.add_(sign * step * v[n])
        ends.append(maml.evaluate(episodes()))
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.sub_(sign * step * v[n])
    for own, name in ((found.losses_along, "losses"), (found.outputs_along, "outputs")):
        expected = (getattr(ends[0], name) - getattr(ends[1], name)) / (2 * step)
        torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-8)


def test_outputs_that_have_no_derivative() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.net(x)
            return {"y": y, "best": y.argmax(-1), "x": 2 * x}

    maml = fm.MAML(Model(), lr=0.3, loss=lambda out, t: F.mse_loss(out["y"], t))
    found = maml.jvp(episodes(), direction(maml.module))
    assert found.outputs_along["best"].dtype == torch.int64
    assert not found.outputs_along["best"].any()
    assert not found.outputs_along["x"].any()
    assert found.outputs_along["y"].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.1, "scope": "head"}, "needs scope='all'"),
        ({"rule": MetaSGD(0.1)}, "a rule that learns nothing"),
        ({"rule": Momentum(0.1)}, "known for rules.SGD"),
    ],
)
def test_what_it_cannot_do(options: Any, message: str) -> None:
    maml = fm.MAML(network(), loss=F.mse_loss, **options)
    with pytest.raises(ValueError, match=message):
        maml.jvp(episodes(), direction(maml.module))


def test_tangents_that_do_not_fit() -> None:
    maml = fm.MAML(network(), lr=0.1, loss=F.mse_loss)
    v = direction(maml.module)
    with pytest.raises(ValueError, match=r"2\.bias is missing or unknown"):
        maml.jvp(episodes(), {n: x for n, x in v.items() if n != "2.bias"})
    with pytest.raises(ValueError, match=r"the tangent of '0.bias' has shape \[5\]"):
        maml.jvp(episodes(), v | {"0.bias": torch.zeros(5)})
    with pytest.raises(ValueError, match="no loss"):
        fm.MAML(network(), lr=0.1).jvp(episodes(), v)
