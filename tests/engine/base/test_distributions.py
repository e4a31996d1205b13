"""Distributions taken apart and put together again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Categorical,
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TanhTransform,
    TransformedDistribution,
)
from torch.func import vmap

from fastmaml.engine.base.distributions import Parts


def mixture(x: Tensor) -> Distribution:
    weights = Categorical(logits=x[..., :2], validate_args=False)
    parts = Independent(Normal(x.unflatten(-1, (2, 2)), 1.5, validate_args=False), 1)
    return MixtureSameFamily(weights, parts, validate_args=False)


def multivariate(x: Tensor) -> Distribution:
    factor = torch.tensor([[1.0, 0.0], [0.4, 0.7]], dtype=x.dtype)
    return MultivariateNormal(x[..., :2], scale_tril=factor, validate_args=False)


def low_rank(x: Tensor) -> Distribution:
    factor = torch.tensor([[1.0], [0.4]], dtype=x.dtype)
    return LowRankMultivariateNormal(x[..., :2], factor, factor[:, 0] ** 2, validate_args=False)


KINDS: dict[str, Callable[[Tensor], Distribution]] = {
    "normal": lambda x: Normal(x, x.new_tensor(0.3), validate_args=False),
    "independent": lambda x: Independent(Normal(x, 0.3, validate_args=False), 1),
    "categorical": lambda x: Categorical(logits=x, validate_args=False),
    "beta": lambda x: Beta(x.exp(), 1 + x.exp(), validate_args=False),
    "tanh": lambda x: TransformedDistribution(
        Normal(x, 0.3), [TanhTransform()], validate_args=False
    ),
    "mixture": mixture,
    "multivariate": multivariate,
    "low-rank": low_rank,
}


@pytest.mark.parametrize("name", KINDS)
def test_a_task_s_distributions_become_one_of_all(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 5, 4, dtype=torch.float64)  # as many tasks as examples: a wrong one fits

    def tensors(one: Tensor) -> tuple[Tensor, ...]:
        found.append(Parts.of(KINDS[name](one)))
        return tuple(found[-1].tensors)

    found: list[Parts] = []
    every = vmap(tensors)(x)
    together, whole = found[-1].like(every).distribution(), KINDS[name](x)
    assert together.batch_shape == whole.batch_shape
    assert together.event_shape == whole.event_shape
    sample = whole.sample()
    assert together.sample().shape == sample.shape
    torch.testing.assert_close(
        together.log_prob(sample), whole.log_prob(sample), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("name", KINDS)
def test_equal_where_the_tensors_are_left_out(name: str) -> None:
    first, second = (Parts.of(KINDS[name](torch.randn(2, 4))) for _ in range(2))
    assert first._frame == second._frame
    assert hash(first._frame) == hash(second._frame)
    assert first._frame != Parts.of(KINDS[name](torch.randn(3, 4)))._frame


def test_steps_are_stacked() -> None:
    parts = [Parts.of(KINDS["independent"](torch.full((2, 3, 4), float(i)))) for i in range(5)]
    whole = parts[0].stacked(parts[1:], 1).distribution()
    assert whole.batch_shape == (2, 5, 3)
    torch.testing.assert_close(whole.mean[0, :, 0, 0], torch.arange(5.0))


def test_what_cannot_be_told_apart() -> None:
    class Odd(Normal):
        def __init__(self) -> None:
            super().__init__(torch.zeros(2), torch.ones(2))
            self.memory = [torch.zeros(2)]

    with pytest.raises(TypeError, match="keeps a list as 'memory'"):
        Parts.of(Odd())


def test_what_is_not_of_the_batch_is_refused() -> None:
    class Narrow(Normal):
        def __init__(self, x: Tensor) -> None:
            super().__init__(x, torch.ones(()), validate_args=False)
            self.factor = torch.ones(4)

    with pytest.raises(TypeError, match=r"keeps 'factor' of shape \[4\]: expand it to the batch"):
        Parts.of(Narrow(torch.zeros(5, 4)))
