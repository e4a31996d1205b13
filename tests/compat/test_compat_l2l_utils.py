"""learn2learn's helpers for modules, tensors, distributions and scripts."""

from __future__ import annotations

import argparse
import dataclasses

import pytest
import torch
from problems import Tied, tensor
from torch import nn
from torch.distributions import Independent, Normal
from torch.nn import functional as F

import fastmaml.compat.learn2learn as l2l


class Odd(nn.Module):
    """A None inside, a buffer that learns, a shared layer, and a class that pickles its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.same = self.layer
        self.missing = None
        self.register_module("nothing", None)
        self.register_buffer("learned", torch.ones(3, requires_grad=True))
        self.register_buffer("constant", torch.ones(3))

    def __getstate__(self) -> dict[str, object]:
        raise AssertionError("cloning is not pickling")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.same(self.layer(x)) * self.learned + self.constant


def test_clone_module() -> None:
    model = Odd()
    clone = l2l.clone_module(model)
    assert type(clone) is Odd
    assert clone.nothing is None
    assert clone.layer is clone.same
    assert clone.layer is not model.layer
    assert clone.constant is model.constant
    assert clone.learned is not model.learned
    x = torch.randn(2, 3)
    assert torch.equal(clone(x), model(x))
    clone(x).sum().backward()
    for tensor_ in (model.layer.weight, model.layer.bias, model.learned):
        assert tensor_.grad.abs().sum() > 0
    for other in (None, 3, "module", [1]):
        assert l2l.clone_module(other) is other


def test_a_memo_keeps_what_modules_share() -> None:
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    memo: dict[object, object] = {}
    clone_a, clone_b = l2l.clone_module(a, memo), l2l.clone_module(b, memo)
    assert clone_a.weight is clone_b.weight
    assert l2l.clone_module(b).weight is not clone_a.weight
    updates: dict[object, object] = {}
    for clone in (clone_a, clone_b):
        l2l.update_module(clone, [torch.ones(3, 3), None], memo=updates)
    assert clone_a.weight is clone_b.weight
    assert torch.equal(clone_a.weight, a.weight + 1)


def test_parametrised_layers_and_graph_modules() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 2), nn.Tanh()))
    for model in (normed, traced):
        clone = l2l.clone_module(model)
        x = torch.randn(4, 3)
        torch.testing.assert_close(clone(x), model(x))  # weight_norm by its formula
        loss = clone(x).square().mean()
        grads = torch.autograd.grad(loss, list(clone.parameters()), create_graph=True)
        l2l.update_module(clone, [-g for g in grads])
        assert not torch.equal(clone(x), model(x))
        clone(x).sum().backward()
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("keep", [False, True])
def test_detach_module(keep: bool) -> None:
    model = Tied()
    model.out.bias.requires_grad_(False) if model.out.bias is not None else None
    clone = l2l.clone_module(model)
    assert l2l.detach_module(clone, keep_requires_grad=keep) is None
    assert all(p.is_leaf and p.requires_grad == keep for p in clone.parameters())
    assert clone.out.weight is clone.embed.weight
    assert all(p.requires_grad for p in model.parameters())
    odd = l2l.clone_module(Odd())
    l2l.detach_module(odd, keep_requires_grad=keep)
    assert odd.learned.is_leaf
    assert odd.learned.requires_grad == keep
    assert l2l.detach_module(None) is None


def test_update_module_with_the_tensors_own_updates() -> None:
    model = Odd()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    for owner in (model.layer.weight, model.constant):
        owner.update = torch.ones_like(owner)
    weight = model.layer.weight
    assert l2l.update_module(model) is model
    assert torch.equal(model.layer.weight, before["layer.weight"] + 1)
    assert torch.equal(model.layer.bias, before["layer.bias"])
    assert torch.equal(model.constant, before["constant"] + 1)
    assert weight.update is None  # used up: a second call changes nothing
    l2l.update_module(model)
    assert torch.equal(model.layer.weight, before["layer.weight"] + 1)
    with pytest.raises(ValueError, match="there are 3 updates for 2 parameters"):
        l2l.update_module(nn.Linear(2, 2), [None] * 3)


def test_recurrent_modules_run_with_their_new_weights() -> None:
    torch.manual_seed(0)
    lstm, x = nn.LSTM(3, 4).double(), tensor(5, 2, 3)
    clone = l2l.clone_module(lstm)
    grads = torch.autograd.grad(
        clone(x)[0].square().sum(), list(clone.parameters()), create_graph=True
    )
    l2l.update_module(clone, [-0.5 * g for g in grads])
    by_hand = {n: p - 0.5 * g for (n, p), g in zip(lstm.named_parameters(), grads, strict=True)}
    torch.testing.assert_close(clone(x)[0], torch.func.functional_call(lstm, by_hand, x)[0])


def test_magic_box() -> None:
    x = tensor(4).requires_grad_()
    box = l2l.magic_box(x)
    assert torch.equal(box, torch.ones(4).double())
    (first,) = torch.autograd.grad(box.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(first, torch.ones(4).double())
    assert torch.equal(second, torch.ones(4).double())
    assert l2l.magic_box(3) == 3


def test_clones_of_tensors() -> None:
    w = torch.ones(2, requires_grad=True)
    clones = [*l2l.clone_parameters([w]), *l2l.clone_named_parameters({"w": w}).values()]
    sum(c.sum() for c in clones).backward()
    assert torch.equal(w.grad, torch.full((2,), 2.0))


def test_accuracy() -> None:
    logits = F.one_hot(torch.tensor([0, 1, 2, 2]), 3).float()
    assert l2l.accuracy(logits, torch.tensor([0, 1, 2, 1])) == 0.75
    assert l2l.utils.accuracy(logits, torch.tensor([0.0, 1, 2, 2])).dtype == torch.float32


def test_distributions() -> None:
    mean = torch.zeros(3, requires_grad=True)
    dist = Independent(Normal(mean, torch.ones(3)), 1)
    clone = l2l.clone_distribution(dist)
    assert clone.base_dist.loc is not mean
    clone.log_prob(torch.ones(3)).backward()
    assert torch.equal(mean.grad, torch.ones(3))
    assert l2l.detach_distribution(clone) is clone
    assert not clone.base_dist.loc.requires_grad
    assert dist.base_dist.loc.requires_grad


def test_flatten_config() -> None:
    @dataclasses.dataclass
    class Inner:
        lr: float = 0.1

    args = argparse.Namespace(model={"width": 3, "opt": Inner()}, seed=1)
    flat = {"model.width": 3, "model.opt.lr": 0.1, "seed": 1}
    assert l2l.utils.flatten_config(args) == flat
