"""The meta-gradients of fastmaml against a plain loop written by hand, learn2learn and higher.

The two libraries are compared where they can be imported; `make peers` makes an environment that
has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hand_loop import Loss, Parameters, hand_loop
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm

Reference = Callable[..., tuple[Tensor, Parameters]]
INSTALL = "`make peers` makes an environment that has it"


class Problem(NamedTuple):
    model: nn.Module
    loss: Loss
    episodes: fm.Episodes
    lr: float


def conv4(channels: int = 6, ways: int = 5) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs in (1, channels, channels, channels):
        layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.BatchNorm2d(channels)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, ways)).double()


def images() -> Problem:
    """5-way 1-shot, three tasks, conv4 with BatchNorm."""
    torch.manual_seed(0)
    model = conv4()
    labels = torch.arange(5).expand(3, 5)
    support = fm.Batch(torch.randn(3, 5, 1, 28, 28).double(), labels)
    query = fm.Batch(torch.randn(3, 10, 1, 28, 28).double(), labels.repeat(1, 2))
    return Problem(model, F.cross_entropy, fm.Episodes(support, query), lr=0.4)


def regression() -> Problem:
    """Ten support and seven query points, four tasks, an MLP with two hidden layers."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(1, 20), nn.ReLU(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1)
    ).double()
    x = torch.linspace(-5, 5, 17).double().expand(4, 17)[:, torch.randperm(17), None]
    y = 3 * torch.sin(x + torch.arange(4).view(4, 1, 1))
    support, query = fm.Batch(x[:, :10], y[:, :10]), fm.Batch(x[:, 10:], y[:, 10:])
    return Problem(model, F.mse_loss, fm.Episodes(support, query), lr=0.05)


def with_learn2learn(
    model: nn.Module, loss: Loss, episodes: fm.Episodes, lr: float, steps: int, first_order: bool
) -> tuple[Tensor, Parameters]:
    l2l = pytest.importorskip("learn2learn", reason=INSTALL, exc_type=ImportError)
    maml = l2l.algorithms.MAML(model, lr, first_order=first_order)
    total = torch.zeros(())
    for task in episodes:
        learner = maml.clone()
        for _ in range(steps):
            learner.adapt(loss(learner(task.support.inputs[0]), task.support.targets[0]))
        total = total + loss(learner(task.query.inputs[0]), task.query.targets[0])
    return backward(total / episodes.tasks, model)


def with_higher(
    model: nn.Module, loss: Loss, episodes: fm.Episodes, lr: float, steps: int, first_order: bool
) -> tuple[Tensor, Parameters]:
    higher = pytest.importorskip("higher", reason=INSTALL, exc_type=ImportError)
    constant = (lambda gradients: [g.detach() for g in gradients]) if first_order else None
    sgd = torch.optim.SGD(model.parameters(), lr)
    total = torch.zeros(())
    for task in episodes:
        # Without copy_initial_weights=False nothing arrives at the model's own parameters.
        with higher.innerloop_ctx(model, sgd, copy_initial_weights=False) as (learner, optimizer):
            for _ in range(steps):
                support_loss = loss(learner(task.support.inputs[0]), task.support.targets[0])
                optimizer.step(support_loss, grad_callback=constant)
            total = total + loss(learner(task.query.inputs[0]), task.query.targets[0])
    return backward(total / episodes.tasks, model)


def with_fastmaml(
    model: nn.Module, loss: Loss, episodes: fm.Episodes, lr: float, steps: int, first_order: bool
) -> tuple[Tensor, Parameters]:
    gradient = fm.gradients.FirstOrder() if first_order else None
    maml = fm.MAML(model, lr, steps=steps, loss=loss, gradient=gradient)
    return backward(maml(episodes).loss, model)


def backward(loss: Tensor, model: nn.Module) -> tuple[Tensor, Parameters]:
    """The loss, and what its backward() puts into the model's ``.grad``."""
    model.zero_grad()
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), grads


def relative_difference(a: Parameters, b: Parameters) -> float:
    """Of the whole gradients: a bias before BatchNorm has a gradient of zero up to rounding."""
    assert a.keys() == b.keys()
    flat_a, flat_b = (torch.cat([g[name].flatten() for name in b]) for g in (a, b))
    return float((flat_a - flat_b).norm() / flat_b.norm())


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("problem", [images, regression])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("first_order", [False, True], ids=["second-order", "first-order"])
@pytest.mark.parametrize("reference", [hand_loop, with_learn2learn, with_higher])
def test_same_meta_gradient(
    problem: Callable[[], Problem], steps: int, first_order: bool, reference: Reference
):
    given = problem()
    loss, gradient = reference(*given, steps=steps, first_order=first_order)
    own_loss, own_gradient = with_fastmaml(*given, steps=steps, first_order=first_order)
    torch.testing.assert_close(own_loss, loss, rtol=1e-9, atol=0)
    assert relative_difference(own_gradient, gradient) <= 1e-9


@pytest.mark.parametrize("problem", [images, regression])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_second_order_term_is_large(problem: Callable[[], Problem], steps: int):
    """Otherwise the comparison above would not tell second order from first."""
    _, exact = hand_loop(*problem(), steps=steps)
    _, first_order = hand_loop(*problem(), steps=steps, first_order=True)
    assert relative_difference(first_order, exact) > 0.1
