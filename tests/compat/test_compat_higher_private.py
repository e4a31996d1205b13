"""What public code takes from inside higher, and the last bits of its arithmetic."""

from __future__ import annotations

import typing
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml.compat.higher as higher


def test_the_class_that_scripts_annotate_with() -> None:
    def adapted(fmodel: higher.patch._MonkeyPatchBase) -> list[higher.patch._MonkeyPatchBase]:
        return [fmodel]

    assert typing.get_type_hints(adapted)["fmodel"] is higher.patch._MonkeyPatchBase
    model = nn.Linear(3, 2)
    for fmodel in (higher.monkeypatch(model), higher.patch.make_functional(model)):
        assert isinstance(fmodel, higher.patch._MonkeyPatchBase)
        assert isinstance(fmodel, nn.Linear)
    assert not isinstance(model, higher.patch._MonkeyPatchBase)


def test_a_sum_with_two_and_three_arguments() -> None:
    p, g = torch.randn(5), torch.randn(5)
    rate = torch.tensor(0.3, requires_grad=True)
    add = higher.optim._add
    assert torch.equal(add(p, g), p + g)
    assert torch.equal(add(tensor=p, a1=-0.3, a2=g), p - 0.3 * g)
    assert torch.equal(torch.autograd.grad(add(p, rate, g).sum(), rate)[0], g.sum())


def test_a_mask_for_gradients() -> None:
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    y = x + torch.tensor([1.0, 0.0, 4.0])
    y.register_hook(higher.optim._get_mask_closure(y == 0))
    (g,) = torch.autograd.grad(y.sqrt().sum(), x, create_graph=True)
    assert g.tolist() == [0.5, 0.0, 0.25]
    (h,) = torch.autograd.grad(g.sum(), x)
    assert h[[0, 2]].tolist() == [-0.25, -0.03125]


def test_an_optimizer_of_ones_own_as_public_code_writes_it() -> None:
    class Half(torch.optim.SGD):
        """Half of SGD's steps."""

    class DifferentiableHalf(higher.optim.DifferentiableOptimizer):
        def _update(self, grouped_grads: higher.optim._GroupedGradsType, **kwargs: object) -> None:
            state: higher.optim._StateType = self.state
            for i, (group, grads) in enumerate(zip(self.param_groups, grouped_grads, strict=True)):
                for j, (p, g) in enumerate(zip(group["params"], grads, strict=True)):
                    state[i][j]["steps"] = state[i][j].get("steps", 0) + 1
                    group["params"][j] = higher.optim._add(p, -group["lr"] / 2, g)

    model, x = nn.Linear(3, 1), torch.randn(4, 3)
    rate: higher.optim._OverrideType = {"lr": [torch.tensor(0.5, requires_grad=True)]}
    keep: higher.optim._GradCallbackType = list
    fmodel = higher.monkeypatch(model)
    opt = DifferentiableHalf(Half(model.parameters(), lr=1.0), model.parameters(), fmodel)
    before = [p.detach() for p in fmodel.parameters()]
    loss = fmodel(x).square().sum()
    grads = torch.autograd.grad(loss, list(fmodel.parameters()), retain_graph=True)
    after = opt.step(loss, override=rate, grad_callback=keep)
    for a, b, g in zip(after, before, grads, strict=True):
        assert torch.equal(a, b - 0.25 * g)
    assert opt.state[0][1]["steps"] == 1
    assert sum(p.sum() for p in after).requires_grad


def test_copies_and_maps() -> None:
    t = torch.randn(3, requires_grad=True)
    shared, own = (higher.utils._copy_tensor(t, safe_copy=s) for s in (False, True))
    assert shared.data_ptr() == t.data_ptr() != own.data_ptr()
    assert own.is_leaf
    assert own.requires_grad
    assert torch.equal(own, t)
    assert higher.utils._copy_tensor(t.detach(), True, torch.device("meta")).is_meta
    tree = {"a": [1, (2, {3})], "b": OrderedDict(c=4)}
    twice = higher.utils._recursive_map(tree, lambda x: 2 * x)
    assert twice == {"a": [2, (4, {6})], "b": OrderedDict(c=8)}
    assert type(twice["b"]) is OrderedDict


def test_letting_go_of_all_parameters() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    params = higher.utils.get_func_params(model)
    fmodel = higher.patch.make_functional(model)
    fmodel.track_higher_grads = False
    fmodel._fast_params = [[]]  # so do several public repositories, before the first call
    assert fmodel.fast_params is fmodel._fast_params is None
    assert torch.equal(fmodel(x, params=params), model(x))

    fmodel = higher.monkeypatch(model)
    fmodel.update_params([2 * p for p in params])
    assert len(fmodel._fast_params) == 2
    latest = [p.detach() for p in fmodel._fast_params[-1]]
    fmodel._fast_params = fmodel._fast_params[-1:]
    assert torch.equal(fmodel(x), 2 * model(x))
    del fmodel._fast_params
    with pytest.raises(ValueError, match="no parameters yet"):
        fmodel(x)
    fmodel._fast_params = None
    fmodel.fast_params = latest
    assert torch.equal(fmodel(x), 2 * model(x))
    assert len(fmodel._fast_params) == 1
    assert not hasattr(model, "_fast_params")


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"weight_decay": 0.1}])
def test_the_bits_of_a_loop_by_hand(settings: dict[str, float]) -> None:
    """In float32: p - lr·g rounds twice there. One bit becomes many in a deep model's unroll."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    x, y = torch.randn(2, 12, 8)
    y = y[:, :4]
    momentum, decay = settings.get("momentum", 0.0), settings.get("weight_decay", 0.0)
    opt = torch.optim.SGD(model.parameters(), lr=0.3, **settings)
    names = [n for n, _ in model.named_parameters()]
    by_hand: list[Tensor] = [p.detach() for p in model.parameters()]
    buffers: list[Tensor] = []
    with higher.innerloop_ctx(model, opt) as (fmodel, diffopt):
        for _ in range(5):
            diffopt.step(F.mse_loss(fmodel(x), y))
            leaves = [p.requires_grad_() for p in by_hand]
            named = dict(zip(names, leaves, strict=True))
            loss = F.mse_loss(torch.func.functional_call(model, named, (x,)), y)
            grads = list(torch.autograd.grad(loss, leaves))
            if decay:
                grads = [g + decay * p for g, p in zip(grads, leaves, strict=True)]
            if momentum:
                moved = zip(buffers or grads, grads, strict=True)
                buffers = [momentum * b + g for b, g in moved] if buffers else grads
                grads = buffers
            by_hand = [(p - 0.3 * g).detach() for p, g in zip(leaves, grads, strict=True)]
        for a, b in zip(fmodel.parameters(), by_hand, strict=True):
            assert torch.equal(a, b)


def test_integers_that_were_not_learned_stay_integers() -> None:
    opt = torch.optim.Adam(nn.Linear(1, 1).parameters(), lr=1)
    override = higher.optim.get_trainable_opt_params(opt)
    kinds = {name: type(value) for name, value in opt.param_groups[0].items()}
    higher.optim.apply_trainable_opt_params(opt, override)
    assert {name: type(value) for name, value in opt.param_groups[0].items()} == kinds
    higher.optim.apply_trainable_opt_params(opt, {"lr": [torch.tensor(0.75)]})
    assert opt.param_groups[0]["lr"] == 0.75
