"""Models that take many derivatives in one call of autograd's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from outcomes import EAGER, require
from potential import Field, by_hand, episodes, learner
from problems import meta_gradient, relative
from torch import Tensor

from fastmaml.gradients import MixedMode


def many_at_once(m: Field, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    y = m.u(x).squeeze(1)
    basis = torch.diag(torch.ones_like(y))
    found = torch.autograd.grad(y, x, basis, create_graph=True, is_grads_batched=True)[0]
    return m.u(x) + found.sum(0)


def vectorised(m: Field, x: Tensor) -> Tensor:
    first = lambda t: m.u(t).sum(0)  # noqa: E731
    found = torch.autograd.functional.jacobian(first, x, create_graph=True, vectorize=True)[0]
    return m.u(x) + found


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("function", [many_at_once, vectorised])
def test_many_derivatives_at_once(function: Callable[[Field, Tensor], Tensor]) -> None:
    """Their own derivatives are lost through ops that are not PyTorch's."""
    model = Field(function)
    value, gradient = by_hand(model)
    maml = learner(model, executor="eager")
    assert relative(meta_gradient(maml, episodes()), gradient) < 1e-10
    torch.testing.assert_close(maml.evaluate(episodes()).loss, value, rtol=1e-12, atol=0)
    require("cpp")
    with pytest.raises(RuntimeError, match="takes many derivatives at once"):
        learner(model, executor="eager", backend="cpp")(episodes())
    with pytest.raises(ValueError, match="through which MixedMode cannot differentiate"):
        learner(model, gradient=MixedMode(), **EAGER)(episodes())
