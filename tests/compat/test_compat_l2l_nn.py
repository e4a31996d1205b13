"""learn2learn's modules."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from problems import tensor
from torch import nn
from torch.nn import functional as F

import fastmaml.compat.learn2learn as l2l
from fastmaml.compat.learn2learn.nn.quadratic import solve


def test_small_modules() -> None:
    x = torch.randn(2, 3, 4)
    assert torch.equal(l2l.nn.Flatten()(x.transpose(1, 2)), x.transpose(1, 2).reshape(2, 12))
    assert torch.equal(l2l.nn.Lambda(lambda x, k=1: x.mean(k))(x, k=2), x.mean(2))
    assert torch.equal(l2l.nn.Scale(4, alpha=0.5)(x), 0.5 * x)
    shapes = [l2l.nn.Scale(s).alpha.shape for s in (None, 3, (2, 3))]
    assert shapes == [(1,), (3,), (2, 3)]


def test_freeze_and_unfreeze() -> None:
    model = nn.Linear(3, 2)
    assert l2l.nn.freeze(model) is model
    assert not any(p.requires_grad for p in model.parameters())
    assert l2l.nn.unfreeze(model) is model
    assert all(p.requires_grad for p in model.parameters())
    clone = l2l.nn.freeze(l2l.clone_module(model))
    assert all(p.is_leaf for p in clone.parameters())


@pytest.mark.parametrize("psd", [False, True])
def test_kronecker_linear_by_its_full_matrix(psd: bool) -> None:
    layer = l2l.nn.KroneckerLinear(3, 2, psd=psd).double()
    x = tensor(6)
    assert torch.equal(layer(x), x)  # it begins as the identity
    for i, p in enumerate(layer.parameters()):
        p.data = tensor(*p.shape, seed=i)
    left, right = layer.left, layer.right
    if psd:
        left, right = left.t() @ left, right.t() @ right
    expected = torch.kron(right.t().contiguous(), left) @ x + layer.bias.t().flatten()
    torch.testing.assert_close(layer(x), expected)
    batch = tensor(4, 3, 2)
    torch.testing.assert_close(layer(batch)[1], left @ batch[1] @ right + layer.bias)
    with pytest.raises(ValueError, match=r"not \[2, 3\]"):
        layer(tensor(2, 3))
    assert l2l.nn.KroneckerLinear(2, 2, bias=False).bias is None


@pytest.mark.parametrize("bias", [None, tensor(3, 2, seed=3)])
def test_kronecker_addmm_by_its_full_matrix(bias: torch.Tensor | None) -> None:
    """Values, and first and second derivatives in the factors and the scale."""
    factors = [tensor(3, 3), tensor(2, 2, seed=1), tensor(3, 2, seed=2), tensor(1, seed=4)]
    given = [x.requires_grad_() for x in factors]

    def full(left: Any, right: Any, x: Any, alpha: Any) -> torch.Tensor:
        # The columns one after another are what the transpose has as its rows.
        y = alpha * torch.kron(right.t().contiguous(), left) @ x.t().flatten()
        return y.view(2, 3).t() + (0 if bias is None else 0.5 * bias)

    def short(left: Any, right: Any, x: Any, alpha: Any) -> torch.Tensor:
        return l2l.nn.kronecker_addmm(left, right, x, bias, alpha=alpha, beta=0.5)

    derived = []
    for function in (full, short):
        value = function(*given)
        first = torch.autograd.grad(value.pow(3).sum(), given, create_graph=True)
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), given)
        derived.append([value, *first, *second])
    for by_hand, found in zip(*derived, strict=True):
        torch.testing.assert_close(found, by_hand, rtol=1e-10, atol=1e-10)
    assert torch.equal(
        l2l.nn.kronecker_addmm(*given[:3], bias),
        given[0] @ given[2] @ given[1] + (0 if bias is None else bias),
    )


def test_kronecker_recurrent_layers() -> None:
    x, h, c = tensor(3, 2), tensor(3, 2, seed=1), tensor(3, 2, seed=2)
    rnn = l2l.nn.KroneckerRNN(3, 2).double()
    y, new = rnn(x, h)
    torch.testing.assert_close(new, torch.tanh(x + h))
    assert torch.equal(y, new)
    lstm = l2l.nn.KroneckerLSTM(3, 2).double()
    y, (new_h, new_c) = lstm(x, (h, c))
    gate = torch.sigmoid(x + h)
    torch.testing.assert_close(new_c, gate * c + gate * torch.tanh(x + h))
    torch.testing.assert_close(new_h, gate * torch.tanh(new_c))
    assert y is new_h
    assert len(list(lstm.parameters())) == 24


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("normalize", [False, True])
def test_prototypes(distance: str, normalize: bool) -> None:
    support = tensor(6, 4).requires_grad_()
    labels, queries = torch.tensor([3, 1, 1, 3, 7, 7]), tensor(5, 4, seed=1)
    classifier = l2l.nn.PrototypicalClassifier(support, labels, distance, normalize)
    means = torch.stack([support[labels == y].mean(0) for y in (1, 3, 7)])
    if distance == "cosine" or normalize:
        means, queries_ = F.normalize(means), F.normalize(queries)
    else:
        queries_ = queries
    euclidean = distance == "euclidean"
    expected = -torch.cdist(queries_, means).square() if euclidean else queries_ @ means.t()
    torch.testing.assert_close(classifier(queries), expected, rtol=1e-6, atol=1e-7)
    classifier(queries).sum().backward()
    assert support.grad.abs().sum() > 0


def test_prototypes_need_a_fit_and_a_known_distance() -> None:
    with pytest.raises(RuntimeError, match="call fit_"):
        l2l.nn.PrototypicalClassifier()(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="distance='manhattan'"):
        l2l.nn.PrototypicalClassifier(distance="manhattan")
    own = l2l.nn.PrototypicalClassifier(
        torch.eye(2), torch.arange(2), distance=lambda p, q: torch.cdist(q, p, p=1)
    )
    assert torch.equal(own(torch.eye(2)), torch.tensor([[-0.0, -2.0], [-2.0, -0.0]]))


def test_quadratic_programs_meet_their_optimality_conditions() -> None:
    root = tensor(12, 12)
    matrix, linear = root @ root.t() + torch.eye(12).double(), tensor(12, seed=1)
    upper = tensor(12, seed=2).abs()
    z = solve(matrix, linear, upper, groups=4, steps=50)
    assert (z <= upper + 1e-9).all()
    assert z.view(4, 3).sum(1).abs().max() < 1e-9
    # The multipliers: of the sums from the entries inside the bounds, of the bounds from the rest.
    slope = (matrix @ z + linear).view(4, 3)
    inside = (z < upper - 1e-6).view(4, 3)
    assert inside.any(1).all()
    level = torch.where(inside, slope, torch.inf).amin(1, keepdim=True)
    assert (slope - level)[inside].abs().max() < 1e-8
    assert (slope - level).max() < 1e-8  # at a bound more would only lower the objective


def test_the_derivatives_of_quadratic_programs() -> None:
    def objective(root: torch.Tensor, linear: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        matrix = root @ root.t() + torch.eye(6).double()
        return solve(matrix, linear, upper.exp(), groups=2, steps=50)

    given = (tensor(6, 6), tensor(6, seed=4), tensor(6, seed=5) - 1)
    assert torch.autograd.gradcheck(objective, [x.requires_grad_() for x in given], atol=1e-6)


def test_support_vector_machines() -> None:
    torch.manual_seed(0)
    centres = 3 * torch.randn(3, 8)
    labels = torch.arange(3).repeat(5)
    support = (centres[labels] + torch.randn(15, 8)).requires_grad_()
    queries = centres[labels] + torch.randn(15, 8)
    for normalize in (False, True):
        classifier = l2l.nn.SVClassifier(support, labels, normalize=normalize)
        logits = classifier(queries)
        assert logits.dtype == torch.float32
        assert l2l.accuracy(logits, labels) > 0.9
        F.cross_entropy(logits, labels).backward()
        assert support.grad.isfinite().all()
    with pytest.raises(RuntimeError, match="nothing was fitted yet"):
        l2l.nn.SVClassifier()(queries)


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 2)))


def test_meta_modules_replace_layers_and_give_them_back() -> None:
    model, x = layers(), torch.randn(5, 3)
    before = model(x)
    inner = [model[0], model[2][0]]
    meta = l2l.nn.MetaModule(
        model,
        {
            nn.Linear: lambda linear: l2l.nn.ParameterTransform(
                linear, lambda p: l2l.nn.Scale(alpha=2.0)
            )
        },
    )
    assert not any(p.requires_grad for linear in inner for p in linear.parameters())
    assert len(list(meta.meta_parameters())) == 4
    expected = F.linear(
        torch.tanh(F.linear(x, 2 * inner[0].weight, 2 * inner[0].bias)),
        2 * inner[1].weight,
        2 * inner[1].bias,
    )
    torch.testing.assert_close(meta(x), expected)
    meta(x).sum().backward()
    assert all(p.grad is not None for p in meta.meta_parameters())
    learner = l2l.algorithms.MAML(meta, 0.1, allow_nograd=True).clone()
    learner.adapt(learner(x).square().mean())
    assert not torch.equal(learner(x), meta(x))
    original = meta.module()
    assert [original[0], original[2][0]] == inner
    assert torch.equal(original(x), before)


def test_transformed_layers_that_share_get_back_what_they_held() -> None:
    linear, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.weight = linear.weight
    module = nn.Sequential(linear, linear, other)  # one layer twice, and a tied weight
    layer = l2l.nn.ParameterTransform(module, lambda p: l2l.nn.Scale(alpha=2.0))
    assert len(list(layer.meta_parameters())) == 3
    x = torch.randn(3, 2)
    doubled = copy.deepcopy(module)
    with torch.no_grad():
        for p in doubled.parameters():
            p.mul_(2)
    for _ in range(2):
        torch.testing.assert_close(layer(x), doubled(x))
        assert module[0] is linear
        assert other.weight is linear.weight
        assert all(isinstance(p, nn.Parameter) for p in module.parameters())


def test_substitutes_may_begin_as_copies_and_learn() -> None:
    meta = l2l.nn.MetaModule(layers(), {nn.Linear: copy.deepcopy})
    assert all(p.requires_grad for p in meta.parameters())
    kept = l2l.nn.MetaModule(layers(), {nn.Tanh: lambda t: nn.ReLU()}, freeze_module=False)
    assert all(p.requires_grad for p in kept.parameters())
    assert isinstance(kept.wrapped_module[1], nn.ReLU)
    layer = l2l.nn.MetaLayer(nn.Linear(2, 2))
    layer.more = nn.Parameter(torch.ones(1))
    assert list(layer.meta_parameters()) == [layer.more]
    assert layer(torch.ones(1, 2)).shape == (1, 2)
