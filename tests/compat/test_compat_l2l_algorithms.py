"""learn2learn's MAML, MetaSGD and GBML: what scripts rely on, and defects that are not copied."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from hand_loop import batch_loss, hand_loop
from l2l_script import LR, episodes, gradient, mlp, script
from problems import Tied, relative, tensor
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml.compat.learn2learn as l2l


def expected(first_order: bool = False) -> Tensor:
    grads = hand_loop(mlp(), F.mse_loss, episodes(), LR, 2, first_order)[1]
    return torch.cat([g.flatten() for g in grads.values()])


def test_an_update_is_one_operation_in_the_graph() -> None:
    """As cheap as learn2learn's own, or cheaper; a learned rate needs the product."""
    for lr, name in ((LR, "AddBackward0"), (nn.Parameter(torch.tensor(LR)), "SubBackward0")):
        learner = l2l.algorithms.MAML(mlp(), lr).clone()
        learner.adapt(learner(tensor(5, 3)).square().mean())
        update = learner.module[0].weight.grad_fn
        assert update.name() == name
        nodes = {node.name() for node, _ in update.next_functions if node is not None}
        assert ("MulBackward0" in nodes) == isinstance(lr, nn.Parameter)


@pytest.mark.parametrize("first_order", [False, True])
def test_maml_equals_the_plain_loop(first_order: bool) -> None:
    maml = l2l.algorithms.MAML(mlp(), LR, first_order=first_order)
    assert relative(gradient(maml, script(maml)), expected(first_order)) < 1e-12
    other = l2l.algorithms.MAML(mlp(), LR, first_order=not first_order)
    found = gradient(other, script(other, first_order=first_order))  # for one step only
    assert relative(found, expected(first_order)) < 1e-12
    assert relative(expected(first_order), expected(not first_order)) > 0.01


def test_maml_update_and_update_module_by_hand() -> None:
    model = mlp()
    losses = []
    for task in episodes():
        learner = l2l.clone_module(model)
        for _ in range(2):
            loss = F.mse_loss(learner(task.support.inputs[0]), task.support.targets[0])
            grads = torch.autograd.grad(loss, list(learner.parameters()), create_graph=True)
            assert l2l.algorithms.maml_update(learner, LR, grads) is learner
        losses.append(F.mse_loss(learner(task.query.inputs[0]), task.query.targets[0]))
    assert relative(gradient(model, torch.stack(losses).mean()), expected()) < 1e-12
    with pytest.raises(ValueError, match="1 updates for 4 parameters"):
        l2l.algorithms.maml_update(model, LR, [None])


def test_names_attributes_and_state_dict() -> None:
    model = mlp()
    model.tag = "mine"
    maml = l2l.algorithms.MAML(model, LR)
    assert maml.module is model
    assert list(maml.state_dict()) == [f"module.{k}" for k in model.state_dict()]
    assert (maml.tag, maml.clone().tag) == ("mine", "mine")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = maml.nothing
    twin = copy.deepcopy(maml)
    twin.load_state_dict(maml.state_dict())
    assert twin.module[0].weight is not model[0].weight
    x = tensor(5, 3)
    assert torch.equal(maml(x), model(x))
    empty = l2l.algorithms.BaseLearner()
    with pytest.raises(AttributeError, match="nothing"):
        _ = empty.nothing
    with pytest.raises(RuntimeError, match="wraps no module yet"):
        empty(x)


def test_the_arguments_of_construction_clone_and_adapt() -> None:
    maml = l2l.algorithms.MAML(mlp(), LR, allow_nograd=True)
    assert maml.allow_unused  # None: as allow_nograd
    assert not l2l.algorithms.MAML(mlp(), LR, allow_unused=False, allow_nograd=True).allow_unused
    clone = maml.clone(first_order=True, allow_unused=False, allow_nograd=False)
    assert type(clone) is l2l.algorithms.MAML
    assert (clone.first_order, clone.allow_unused, clone.allow_nograd) == (True, False, False)
    again = clone.clone()
    assert (again.first_order, again.allow_unused, again.allow_nograd) == (True, False, False)
    assert not maml.first_order


def test_running_statistics_are_the_originals_own() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    learner = l2l.algorithms.MAML(model, 0.1).clone()
    assert learner.module[1].running_mean is model[1].running_mean
    by_hand = copy.deepcopy(model)
    for seed in range(2):  # support and query of every task write into them
        learner(tensor(5, 3, seed=seed))
        by_hand(tensor(5, 3, seed=seed))
    assert torch.equal(model[1].running_mean, by_hand[1].running_mean)
    assert model[1].num_batches_tracked == 2


def test_a_clone_of_a_clone_stays_connected() -> None:
    maml = l2l.algorithms.MAML(mlp(), LR)
    learner = maml.clone()
    x = tensor(5, 3)
    learner.adapt(learner(x).square().mean())
    second = learner.clone()
    before = learner.module[0].weight
    second.adapt(second(x).square().mean())
    assert learner.module[0].weight is before
    second(x).square().mean().backward()
    theta = {n: p.detach().clone().requires_grad_() for n, p in maml.module.named_parameters()}
    adapted: Any = theta
    for _ in range(2):
        loss = torch.func.functional_call(maml.module, adapted, x).square().mean()
        grads = torch.autograd.grad(loss, list(adapted.values()), create_graph=True)
        adapted = {n: p - LR * g for (n, p), g in zip(adapted.items(), grads, strict=True)}
    torch.func.functional_call(maml.module, adapted, x).square().mean().backward()
    for name, p in maml.module.named_parameters():
        torch.testing.assert_close(p.grad, theta[name].grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_modules(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    maml = l2l.algorithms.MAML(kind(3, 4, num_layers=2, batch_first=True).double(), LR)
    learner, x = maml.clone(), tensor(2, 5, 3)
    before = learner(x)[0]
    learner.adapt(before.square().mean())
    assert not torch.equal(learner(x)[0], before)
    learner(x)[0].square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in maml.parameters())


@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_rate_may_be_a_parameter_and_learns(shape: tuple[int, ...]) -> None:
    rate = nn.Parameter(torch.full(shape, LR, dtype=torch.float64))
    maml = l2l.algorithms.MAML(mlp(), rate)
    assert any(p is rate for p in maml.parameters())
    script(maml).backward()
    step = 1e-5
    ends = []
    for sign in (1, -1):
        other = l2l.algorithms.MAML(mlp(), LR + sign * step)
        ends.append(script(other).item())
    assert rate.grad.item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-7)
    by_tensor = l2l.algorithms.MAML(mlp(), torch.tensor(LR, dtype=torch.float64))
    assert relative(gradient(by_tensor, script(by_tensor)), expected()) < 1e-12


@pytest.mark.parametrize("algorithm", ["MAML", "MetaSGD", "GBML"])
def test_tied_weights_move_once_and_stay_tied(algorithm: str) -> None:
    torch.manual_seed(0)
    meta = make(algorithm, Tied().double())
    learner = meta.clone()
    assert learner.module.out.weight is learner.module.embed.weight
    tokens = torch.randint(6, (5, 3))
    loss = F.cross_entropy(learner(tokens), torch.arange(5))
    weight = learner.module.embed.weight
    (grad,) = torch.autograd.grad(loss, [weight], retain_graph=True)
    learner.adapt(loss)
    assert learner.module.out.weight is learner.module.embed.weight
    torch.testing.assert_close(learner.module.out.weight, weight - LR * grad, rtol=0, atol=1e-15)


def make(algorithm: str, model: nn.Module, **options: Any) -> Any:
    if algorithm == "GBML":
        transform = l2l.optim.MetaCurvatureTransform
        return l2l.algorithms.GBML(model, transform, lr=LR, **options)
    return getattr(l2l.algorithms, algorithm)(model, LR, **options)


@pytest.mark.parametrize("algorithm", ["MAML", "MetaSGD", "GBML"])
@pytest.mark.parametrize("first_order", [False, True])
def test_a_failing_adapt_says_why_and_leaves_the_loss_usable(
    algorithm: str, first_order: bool
) -> None:
    meta = make(algorithm, mlp(), first_order=first_order)
    learner = meta.clone()
    loss = learner.module[0](tensor(5, 3)).square().mean()
    with pytest.raises(RuntimeError, match=r"does not depend on .*allow_unused=True"):
        learner.adapt(loss)
    learner.allow_unused = True
    before = learner.module[2].weight
    learner.adapt(loss)  # the same loss again
    assert learner.module[2].weight is before
    learner(tensor(5, 3)).sum().backward()
    assert meta.module[2].weight.grad is not None  # through its later use

    meta = make(algorithm, mlp(), first_order=first_order)
    meta.module[0].weight.requires_grad_(False)
    learner = meta.clone()
    loss = learner(tensor(5, 3)).square().mean()
    with pytest.raises(RuntimeError, match=r"do not require a gradient.*allow_nograd=True"):
        learner.adapt(loss)
    learner.allow_nograd = True
    learner.adapt(loss)
    assert torch.equal(learner.module[0].weight, meta.module[0].weight)
    assert not torch.equal(learner.module[0].bias, meta.module[0].bias)


def test_losses_that_cannot_be_adapted_to() -> None:
    learner = l2l.algorithms.MAML(mlp(), LR).clone()
    with pytest.raises(RuntimeError, match=r"shape \[5, 2\]"):
        learner.adapt(learner(tensor(5, 3)))
    with pytest.raises(RuntimeError, match="this one has float"):
        learner.adapt(0.5)
    with torch.no_grad():
        loss = learner(tensor(5, 3)).sum()
    with pytest.raises(RuntimeError, match="has no graph"):
        learner.adapt(loss)


def test_a_model_without_anything_to_adapt_or_a_none_inside() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).double()
    model.register_module("nothing", None)
    model.register_parameter("none", None)
    model.forward = lambda x: model[0](x)  # Sequential's own does not expect None
    learner = l2l.algorithms.MAML(model, LR).clone()
    assert learner.module.nothing is None
    assert learner.module.none is None
    frozen = nn.Linear(3, 2).double().requires_grad_(False)
    learner = l2l.algorithms.MAML(frozen, LR, allow_nograd=True).clone()
    x = tensor(5, 3).requires_grad_()
    learner.adapt(learner(x).sum())
    assert torch.equal(learner.module.weight, frozen.weight)


def test_meta_sgd_learns_rates() -> None:
    meta = l2l.algorithms.MetaSGD(mlp(), lr=LR)
    assert isinstance(meta.lrs, nn.ParameterList)
    assert [tuple(r.shape) for r in meta.lrs] == [tuple(p.shape) for p in meta.module.parameters()]
    assert [k for k in meta.state_dict() if k.startswith("lrs")] == [f"lrs.{i}" for i in range(4)]
    found = gradient(meta, script(meta))
    theta = dict(mlp().named_parameters())
    rates = {n: torch.full_like(p, LR).requires_grad_() for n, p in theta.items()}
    losses = []
    for task in episodes():
        adapted = dict(theta)
        for _ in range(2):
            loss = batch_loss(meta.module, F.mse_loss, adapted, task.support)
            grads = torch.autograd.grad(loss, list(adapted.values()), create_graph=True)
            pairs = zip(adapted.items(), grads, strict=True)
            adapted = {n: p - rates[n] * g for (n, p), g in pairs}
        losses.append(batch_loss(meta.module, F.mse_loss, adapted, task.query))
    torch.stack(losses).mean().backward()
    by_hand = torch.cat([p.grad.flatten() for p in (*theta.values(), *rates.values())])
    assert relative(found, by_hand) < 1e-12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner = meta.clone()
        learner.adapt(learner(tensor(5, 3)).sum(), first_order=True)
        learner.clone()(tensor(5, 3)).sum().backward()
    assert isinstance(learner.lrs, list)
    with pytest.raises(ValueError, match="1 rates and 4 gradients for 4 parameters"):
        l2l.algorithms.meta_sgd_update(mlp(), [torch.ones(1)], [None] * 4)


class Elementwise(nn.Module):
    """One rate an element."""

    def __init__(self, elements: int, _: int) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.full((elements,), 0.7, dtype=torch.float64))

    def forward(self, g: Tensor) -> Tensor:
        return self.rate * g


@pytest.mark.parametrize("first_order", [False, True])
def test_gbml_equals_the_plain_loop(first_order: bool) -> None:
    transform = l2l.optim.ModuleTransform(Elementwise)
    gbml = l2l.algorithms.GBML(mlp(), transform, lr=LR, first_order=first_order)
    found = gradient(gbml, script(gbml))
    sgd = l2l.algorithms.MetaSGD(mlp(), 0.7 * LR, first_order=first_order)
    of_sgd = gradient(sgd, script(sgd))
    rates = sum(p.numel() for p in mlp().parameters())
    of_sgd[rates:] *= LR  # d(rate)/d(transform's rate)
    assert relative(found, of_sgd) < 1e-12
    assert [k for k in gbml.state_dict() if not k.startswith("module.")] == [
        f"compute_update.transforms_modules.{i}.transform.rate" for i in range(4)
    ]


@pytest.mark.parametrize("first_order", [False, True])
def test_gbml_can_adapt_its_transforms(first_order: bool) -> None:
    model = nn.Linear(2, 1, bias=False).double()
    transform = l2l.optim.ModuleTransform(Elementwise)
    gbml = l2l.algorithms.GBML(model, transform, LR, True, first_order)
    x, y = tensor(4, 2), tensor(4, 1, seed=1)
    learner = gbml.clone()
    for _ in range(2):
        learner.adapt(F.mse_loss(learner(x), y))
    F.mse_loss(learner(x), y).backward()

    w = model.weight.detach().clone().requires_grad_()
    rate = torch.full((2,), 0.7, dtype=torch.float64, requires_grad=True)

    def by(loss: Tensor, x: Tensor, create: bool = True) -> Tensor:
        return torch.autograd.grad(loss, x, create_graph=create, retain_graph=True)[0]

    w1 = w - LR * rate * by(F.mse_loss(x @ w.t(), y), w)
    loss = F.mse_loss(x @ w1.t(), y)
    rate1 = rate - LR * by(loss, rate, not first_order)
    w2 = w1 - LR * rate1 * by(loss, w1)
    F.mse_loss(x @ w2.t(), y).backward()
    own = gbml.compute_update.transforms_modules[0].transform.rate.grad
    torch.testing.assert_close(model.weight.grad, w.grad, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(own, rate.grad, rtol=1e-11, atol=1e-14)


def test_gbml_argument_orders() -> None:
    transform = l2l.optim.MetaCurvatureTransform
    gbml = l2l.algorithms.GBML(mlp(), transform, 0.1, True, True, True, False)
    names = ("lr", "adapt_transform", "first_order", "allow_unused", "allow_nograd")
    assert [getattr(gbml, n) for n in names] == [0.1, True, True, True, False]
    clone = gbml.clone(False, False, True, False)
    assert [getattr(clone, n) for n in names] == [0.1, False, False, False, True]
    learner = l2l.algorithms.GBML(mlp(), transform, 0.1).clone()
    loss = learner.module[0](tensor(5, 3)).sum()
    with pytest.raises(RuntimeError, match="allow_unused"):
        learner.adapt(loss, False, True, False)  # first_order, allow_nograd, allow_unused
    learner.adapt(loss, False, False, True)


def test_what_is_not_there_says_so() -> None:
    for module in (l2l, l2l.algorithms, l2l.utils):
        with pytest.raises(AttributeError, match=r"no attribute 'nothing'$"):
            _ = module.nothing
