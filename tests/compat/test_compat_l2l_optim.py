"""learn2learn's differentiable optimisation: transforms, updates, and a learnable optimizer."""

from __future__ import annotations

import pytest
import torch
from problems import Tied, relative, tensor
from torch import nn
from torch.nn import functional as F

import fastmaml.compat.learn2learn as l2l


def random_(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return module


def test_meta_curvature_is_a_matrix_for_every_dimension() -> None:
    bias, matrix, weight = tensor(4), tensor(4, 3), tensor(4, 3, 2, 5)
    for p in (bias, matrix, weight):
        start = l2l.optim.MetaCurvatureTransform(p, lr=0.5)
        torch.testing.assert_close(start(p), 0.5 * p)  # it begins as the identity
    transform = random_(l2l.optim.MetaCurvatureTransform(bias))
    torch.testing.assert_close(transform(bias), transform.mc * bias)
    transform = random_(l2l.optim.MetaCurvatureTransform(matrix))
    torch.testing.assert_close(transform(matrix), transform.mc_in @ matrix @ transform.mc_out)
    transform = random_(l2l.optim.MetaCurvatureTransform(weight))
    expected = torch.einsum(
        "ax,xyp,yb,qp->abq", transform.mc_in, weight.flatten(2), transform.mc_out, transform.mc_f
    )
    torch.testing.assert_close(transform(weight), expected.view_as(weight))
    with pytest.raises(ValueError, match=r"shape \[2, 2, 2\]"):
        l2l.optim.MetaCurvatureTransform(torch.zeros(2, 2, 2))


@pytest.mark.parametrize("psd", [False, True])
def test_kronecker_transforms_by_their_full_matrix(psd: bool) -> None:
    make = l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear, psd=psd)
    for shape, n, m in (((4, 3), 4, 3), ((4,), 4, 1), ((5, 4, 2, 3), 4, 6)):
        g = tensor(*shape)
        transform = random_(make(g))
        left, right = transform.transform.left, transform.transform.right
        assert (left.shape, right.shape) == ((n, n), (m, m))
        if psd:
            left, right = left.t() @ left, right.t() @ right
        full = torch.kron(right.t().contiguous(), left)  # on the columns of a matrix
        columns = g.reshape(-1, n, m).transpose(1, 2).reshape(-1, n * m)
        expected = (columns @ full.t()).view(-1, m, n).transpose(1, 2).reshape(shape)
        torch.testing.assert_close(transform(g), expected)
    with pytest.raises(ValueError, match="no factors for a parameter of shape"):
        make(torch.zeros(2, 2, 2))


def test_module_transforms_see_rows() -> None:
    g = tensor(3, 2).t()  # not contiguous
    transform = l2l.optim.ModuleTransform(nn.Linear)(g).double()
    expected = transform.transform(g.reshape(1, 6)).view(2, 3)
    assert torch.equal(transform(g), expected)
    reshaped = l2l.optim.transforms.ReshapedTransform(nn.Identity(), (-1, 2))
    assert torch.equal(reshaped(g), g)


def test_a_dictionary_of_transforms() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    chosen = l2l.optim.TransformDictionary(
        {
            model[0]: l2l.optim.MetaCurvatureTransform,
            model[0].bias: l2l.optim.ModuleTransform(nn.Linear),
        }
    )
    update = l2l.optim.ParameterUpdate(model.parameters(), chosen)
    kinds = [type(m).__name__ for m in update.transforms_modules]
    assert kinds == ["MetaCurvatureTransform", "ReshapedTransform"]
    assert update.transforms_indices == [0, 1, None, None]
    with pytest.raises(ValueError, match="not a str"):
        l2l.optim.TransformDictionary({"weight": l2l.optim.MetaCurvatureTransform})
    with pytest.raises(ValueError, match="returned a Tensor"):
        l2l.optim.ParameterUpdate(model.parameters(), lambda p: p.detach())


def test_parameter_update_is_like_grad() -> None:
    model = nn.Linear(3, 2).double()
    model.bias.requires_grad_(False)
    update = l2l.optim.ParameterUpdate(model.parameters(), lambda p: None)
    loss = model(tensor(4, 3)).square().mean()
    with pytest.raises(RuntimeError, match=r"parameter 1 \[2\]"):
        update(loss, model.parameters())
    weight, bias = update(loss, model.parameters(), allow_nograd=True, retain_graph=True)
    (expected,) = torch.autograd.grad(loss, [model.weight])
    assert torch.equal(weight, expected)
    assert bias is None
    with pytest.raises(ValueError, match="1 parameters for 2 transforms"):
        update(loss, [model.weight])


def test_differentiable_sgd() -> None:
    model = nn.Linear(3, 2).double()
    weight, bias = model.weight, model.bias
    grads = torch.autograd.grad(
        model(tensor(4, 3)).square().sum(), list(model.parameters()), create_graph=True
    )
    l2l.optim.DifferentiableSGD(0.1)(model, [grads[0], None])
    assert torch.equal(model.weight, weight - 0.1 * grads[0])
    assert model.bias is bias
    model(tensor(4, 3)).sum().backward()
    assert weight.grad is not None
    with pytest.raises(ValueError, match="1 gradients for 2 parameters"):
        l2l.optim.DifferentiableSGD(0.1)(model, [None])
    other = nn.Linear(2, 1)
    before = other.weight.detach().clone()
    other(torch.ones(1, 2)).sum().backward()
    l2l.optim.DifferentiableSGD(0.5)(other)
    torch.testing.assert_close(other.weight, before - 0.5)


class Rate(nn.Module):
    def __init__(self, elements: int, _: int) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.full((elements,), 0.2, dtype=torch.float64))

    def forward(self, g: torch.Tensor) -> torch.Tensor:
        return self.rate * g


def test_a_learnable_optimizer_equals_hypergradient_descent_by_hand() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    w = [p.detach().clone() for p in model.parameters()]
    rates = [torch.full((n,), 0.2, dtype=torch.float64) for n in (3, 1)]
    metaopt = l2l.optim.LearnableOptimizer(model, l2l.optim.ModuleTransform(Rate), lr=0.5)
    assert len(list(metaopt.parameters())) == 2  # the model's are not its own
    opt = torch.optim.SGD(metaopt.parameters(), 0.1)
    x, y = tensor(6, 3), tensor(6, 1, seed=1)
    previous: list[torch.Tensor] | None = None
    for _ in range(4):
        metaopt.zero_grad()
        opt.zero_grad()
        F.mse_loss(model(x), y).backward()
        opt.step()
        metaopt.step()

        leaves = [p.clone().requires_grad_() for p in w]
        loss = F.mse_loss(x @ leaves[0].t() + leaves[1], y)
        grads = torch.autograd.grad(loss, leaves)
        if previous is not None:  # d loss / d rate = −lr · g · (the gradient before)
            for rate, g, before in zip(rates, grads, previous, strict=True):
                rate += 0.1 * 0.5 * (g * before).flatten()
        w = [p - 0.5 * r * g for p, r, g in zip(w, rates, grads, strict=True)]
        previous = list(grads)
        for own, p in zip(model.parameters(), w, strict=True):
            torch.testing.assert_close(own, p, rtol=1e-12, atol=1e-14)
    found = torch.cat([p.detach() for p in metaopt.parameters()])
    assert relative(found, torch.cat(rates)) < 1e-12
    assert (found - 0.2).abs().max() > 1e-3


def test_a_learnable_optimizer_keeps_ties_and_what_has_no_gradient() -> None:
    torch.manual_seed(0)
    model = Tied()
    optimizer = l2l.optim.LearnableOptimizer(model, lambda p: None, lr=0.1)
    before = model.out.weight
    loss = F.cross_entropy(model(torch.randint(6, (5, 3))), torch.arange(5))
    loss.backward()
    optimizer.step(closure=lambda: None)
    assert model.out.weight is model.embed.weight
    torch.testing.assert_close(model.out.weight, before - 0.1 * before.grad)
    optimizer.zero_grad()
    after = model.out.weight
    optimizer.step()  # it has no gradient
    assert model.out.weight is after
    with pytest.raises(ValueError, match="model is a list"):
        l2l.optim.LearnableOptimizer([], lambda p: None)
