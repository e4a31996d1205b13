"""What vmap would run wrongly, or only where tasks happen to agree in shapes: as the plain loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hand_loop import hand_loop
from outcomes import as_by_hand, vectors
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm

Forward = Callable[[nn.Linear, Tensor], Tensor]


class Uses(nn.Linear):
    def __init__(self, forward: Forward) -> None:
        super().__init__(3, 2)
        self.does = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.does(self, x)


def laid_out_flat(layer: nn.Linear, x: Tensor) -> Tensor:
    """After a step a task's weight lies in memory otherwise than the loop's."""
    return x @ layer.weight.as_strided((6,), (1,)).view(2, 3).T + layer.bias


def a_diagonal(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias) * layer.weight.as_strided((2,), (4,))


def as_its_strides_say(layer: nn.Linear, x: Tensor) -> Tensor:
    first = layer.weight.as_strided((1, 3), layer.weight.stride())
    return F.linear(x, layer.weight, layer.bias) + x @ first.T


def windows(layer: nn.Linear, x: Tensor) -> Tensor:
    h = F.linear(x, layer.weight, layer.bias).contiguous()
    return h + h.as_strided((len(x) - 1, 2, 2), (2, 1, 2)).mean()


def so_many_bins(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias) * torch.bincount((9 * x[0].abs()).long()).numel()


def where_positive(layer: nn.Linear, x: Tensor) -> Tensor:
    y = F.linear(x, layer.weight, layer.bias)
    return y * (1 + torch.argwhere(x > 0).double().mean())


def different_ones(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias) * torch.unique((3 * x).round()).numel()


def positive_ones(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)[torch.nonzero(x[:, 0].abs() >= 0).squeeze(1)]


WAYS = [laid_out_flat, a_diagonal, as_its_strides_say, windows]
WAYS += [so_many_bins, where_positive, different_ones, positive_ones]


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("executor", [None, "eager"])
@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_as_the_plain_loop(way: Forward, backend: str | None, executor: str | None) -> None:
    torch.manual_seed(0)
    model = Uses(way).double()
    maml = fm.MAML(model, 0.3, steps=2, loss=F.mse_loss, executor=executor, backend=backend)
    for seed in range(3):
        as_by_hand(maml, vectors(seed=seed))


def test_a_layer_that_is_not_reached_is_nobody_elses() -> None:
    """Its inner gradient is a tensor of zeros that requires a gradient."""
    torch.manual_seed(0)
    model = Uses(positive_ones).double()
    model.unused = nn.Linear(5, 4).double()
    for backend in (None, "reference"):
        maml = fm.MAML(model, 0.3, steps=2, loss=F.mse_loss, backend=backend)
        expected = hand_loop(model, F.mse_loss, vectors(), 0.3, 2)[0]
        torch.testing.assert_close(maml(vectors()).loss.detach(), expected)


class Taught(nn.Linear):
    """Has a teacher that is no part of it, and keeps a value for a log."""

    def __init__(self, teacher: nn.Module, detaches: bool) -> None:
        super().__init__(3, 2)
        self.teachers, self.detaches, self.last = [teacher], detaches, 0.0

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.last = y.sum().item()
        if self.detaches:
            return y + self.teachers[0](x).detach()
        with torch.no_grad():
            taught = self.teachers[0](x)
        return y + taught


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("detaches", [False, True])
def test_a_teacher_outside_of_the_model_that_reads_values(detaches: bool) -> None:
    torch.manual_seed(0)
    model = Taught(nn.Linear(3, 2).double(), detaches).double()
    maml = fm.MAML(model, 0.3, steps=2, loss=F.mse_loss)
    episodes = vectors()
    expected_loss, expected = hand_loop(model, F.mse_loss, episodes, 0.3, 2)
    torch.testing.assert_close(maml.evaluate(episodes).losses.mean(), expected_loss)
    learner: Any = maml.adapt_to(fm.Batch(episodes.support.inputs[0], episodes.support.targets[0]))
    assert learner(episodes.query.inputs[0]).shape == (4, 2)
    if detaches:  # a leaf that takes part in what has a gradient: it might have been meant to learn
        with pytest.raises(ValueError, match="a trainable tensor"):
            maml(episodes)
        return
    maml(episodes).loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-12)
