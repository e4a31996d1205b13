"""Loops with clones, and with higher's functional models, through what PyTorch cannot differentiate
twice, or does wrongly.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from every_way import episodes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import utils
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import _get_current_function_mode_stack

import fastmaml as fm
from fastmaml.compat import higher
from fastmaml.compat import learn2learn as l2l

LR = 0.5
GIVEN = episodes()[0]
XS, YS, XQ, YQ = (
    x[0]
    for x in (
        GIVEN.support.inputs,
        GIVEN.support.targets,
        GIVEN.query.inputs,
        GIVEN.query.targets,
    )
)


def norm(function: Callable[..., nn.Module], dim: int | None = 0) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layer = function(nn.Linear(3, 4).double(), dim=dim)
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 2).double())


class Attends(nn.Module):
    """A word for each number of an example."""

    def __init__(self, layer: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.words, self.layer, self.out = nn.Linear(1, 8), layer(), nn.Linear(24, 2)

    def encode(self, x: Tensor) -> Tensor:
        h = self.words(x.unsqueeze(-1))
        more = (h, h) if isinstance(self.layer, nn.MultiheadAttention) else ()
        found = self.layer(h, *more, need_weights=False)[0] if more else self.layer(h)
        return found.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encode(x))


class Direct(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(h, h, h, is_causal=True)


def attends(layer: Callable[..., nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return Attends(layer).double()


def plain(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), *layers, nn.Linear(4, 2)).double()


class ShiftedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(4))

    def forward(self, h: Tensor) -> Tensor:
        return F.layer_norm(h, (4,), None, self.bias)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "weight_norm, parametrized": lambda: norm(utils.parametrizations.weight_norm),
    "weight_norm, by a hook": lambda: norm(utils.weight_norm),
    "weight_norm, over all": lambda: norm(utils.weight_norm, None),
    "attention": lambda: attends(Direct),
    "MultiheadAttention": lambda: attends(lambda: nn.MultiheadAttention(8, 2, batch_first=True)),
    "TransformerEncoderLayer": lambda: attends(
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    ),
    "Hardsigmoid": lambda: plain(nn.Hardsigmoid()),
    "layer_norm with a bias alone": lambda: plain(ShiftedNorm()),
}


def by_clone(make: Callable[[nn.Module], Any], model: nn.Module, body: Any = None) -> Tensor:
    """The query loss after a step; `body` calls the learner."""
    learner = make(model).clone()
    call = body or (lambda learner, x: learner(x))
    learner.adapt(F.mse_loss(call(learner, XS), YS))
    return F.mse_loss(call(learner, XQ), YQ)


def by_higher(model: nn.Module, body: Any = None) -> Tensor:
    inner = torch.optim.SGD(model.parameters(), lr=LR)
    call = body or (lambda learner, x: learner(x))
    with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (fmodel, diffopt):
        diffopt.step(F.mse_loss(call(fmodel, XS), YS))
        return F.mse_loss(call(fmodel, XQ), YQ)


def of_l2l(model: nn.Module, **options: Any) -> Any:
    return l2l.algorithms.MAML(model, lr=LR, **options)


LOOPS: dict[str, Callable[..., Tensor]] = {
    "learn2learn's MAML": lambda m, *body: by_clone(of_l2l, m, *body),
    "MetaSGD": lambda m, *body: by_clone(lambda m: l2l.algorithms.MetaSGD(m, LR), m, *body),
    "GBML": lambda m: by_clone(lambda m: l2l.algorithms.GBML(m, lambda p: None, lr=LR), m),
    "higher": by_higher,
    "fastmaml's clone": lambda m: by_clone(lambda m: fm.MAML(m, lr=LR), m),
}


def gradient(loss: Tensor, model: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.sampled(together=1)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", MODELS)
def test_as_the_meta_step(name: str, loop: str) -> None:
    model = MODELS[name]()
    one = fm.Episodes(fm.Batch(XS[None], YS[None]), fm.Batch(XQ[None], YQ[None]))
    out = fm.MAML(model, lr=LR, loss=F.mse_loss, executor="eager")(one)
    expected = gradient(out.loss, model)
    loss = LOOPS[loop](model)
    torch.testing.assert_close(loss, out.loss)
    torch.testing.assert_close(gradient(loss, model), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loop", LOOPS)
def test_weight_norm_by_differences(loop: str) -> None:
    model = norm(utils.parametrizations.weight_norm)
    own = list(model.parameters())
    draw = torch.Generator().manual_seed(1)
    along = [torch.randn(p.shape, generator=draw, dtype=p.dtype) for p in own]
    pairs = zip(torch.autograd.grad(LOOPS[loop](model), own), along, strict=True)
    slope = sum(float((g * v).sum()) for g, v in pairs)
    values = []
    for step in (1e-5, -2e-5):
        torch._foreach_add_([p.data for p in own], along, alpha=step)
        values.append(LOOPS[loop](model).item())
    assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-7)


@pytest.mark.parametrize("loop", ["learn2learn's MAML", "MetaSGD", "higher"])
def test_methods_and_parts_of_the_model(loop: str) -> None:
    """A method of the module is seen; a sub-module's weight normalisation is right by itself."""
    model = attends(lambda: nn.MultiheadAttention(8, 2, batch_first=True))
    found = LOOPS[loop](model, lambda learner, x: learner.out(learner.encode(x)))
    assert torch.equal(gradient(found, model), gradient(LOOPS[loop](model), model))

    model = norm(utils.parametrizations.weight_norm)

    def by_parts(learner: Any, x: Tensor) -> Tensor:
        first, second, third = (getattr(learner, name) for name in "012")
        return third(second(first(x)))

    found = LOOPS[loop](model, by_parts)
    assert torch.equal(gradient(found, model), gradient(LOOPS[loop](model), model))


def test_the_model_itself_stays_as_it_is() -> None:
    model = norm(utils.weight_norm)
    hooks = dict(model[0]._forward_pre_hooks)
    before = model(XS)
    by_clone(of_l2l, model)
    by_higher(model)
    assert dict(model[0]._forward_pre_hooks) == hooks
    assert torch.equal(model(XS), before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        utils.remove_weight_norm(of_l2l(model).clone().module[0])


def test_first_order_keeps_pytorchs_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so do the meta-learner's own calls, and those without gradients."""
    seen: list[bool] = []

    class Looks(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            seen.append(any(mode.second_order for mode in _get_current_function_mode_stack()))
            return F.scaled_dot_product_attention(h, h, h)

    model = attends(Looks)
    gradient(by_clone(lambda m: of_l2l(m, first_order=True), model), model)
    of_l2l(model)(XS)
    fm.MAML(model, lr=LR)(XS)
    with torch.no_grad():
        of_l2l(model).clone()(XS)
    assert seen == [False] * 5
    by_clone(of_l2l, model)
    assert seen == [False] * 5 + [True] * 2


def test_dropout_and_batch_norm_are_pytorchs() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    model = model.double()
    learner = of_l2l(model).clone()
    torch.manual_seed(5)
    found, statistics = learner(XS), model[1].running_mean.clone()
    model[1].reset_running_stats()
    torch.manual_seed(5)
    assert torch.equal(model(XS), found)
    assert torch.equal(model[1].running_mean, statistics)


def test_dropout_inside_attention_draws_as_pytorch() -> None:
    model = attends(lambda: nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True))
    learner = of_l2l(model).clone()
    torch.manual_seed(5)
    found = learner(XS)
    torch.manual_seed(5)
    with sdpa_kernel(SDPBackend.MATH):
        torch.testing.assert_close(model(XS), found)
