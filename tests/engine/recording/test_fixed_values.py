"""Values and masks that no input has a part in are recorded; all others are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from odd_models import Odd, odd
from outcomes import agree, pair, recordings, vectors
from torch import Tensor
from torch.nn import functional as F


def fixed_mask(m: Odd, y: Tensor) -> Tensor:
    mask = torch.zeros(len(y), dtype=torch.bool)
    mask[::2] = True
    return torch.cat([y[mask], y[~mask].tanh()]).sin()


def numpys_mask(m: Odd, y: Tensor) -> Tensor:
    import numpy

    mask = numpy.zeros(len(y), dtype=bool)
    mask[numpy.arange(len(y) // 2) * 2] = True
    return torch.cat([y[torch.from_numpy(mask)], y[torch.from_numpy(~mask)].tanh()]).sin()


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("how", [fixed_mask, numpys_mask])
def test_masks_that_depend_on_no_values_are_recorded(how: Callable[[Odd, Tensor], Tensor]) -> None:
    both = pair(odd(how))
    for seed in (1, 4):
        agree(*both, vectors(seed=seed))
    assert recordings(both[0]) == 1


def test_a_mask_from_outside_is_read_live() -> None:
    mask = torch.tensor([True, False, True, False])
    both = pair(odd(lambda m, y: torch.cat([y[mask], 2 * y[~mask]]).sin()))
    agree(*both, vectors())
    for other in ([False, False, True, True], [True, False, False, False]):  # another count, too
        mask.copy_(torch.tensor(other))
        agree(*both, vectors())
    agree(*both, vectors(seed=4))
    assert recordings(both[0]) == 1


def _branch(m: Odd, y: Tensor) -> Tensor:
    positions = torch.arange(len(y))
    return y.sin() if (positions.diff() == 1).all() else y.tanh()


def _scaled(m: Odd, y: Tensor) -> Tensor:
    return y.sin() * float(torch.linspace(0, 1, len(y)).square().sum())


def _listed(m: Odd, y: Tensor) -> Tensor:
    first, second = (torch.arange(len(y)) * 2).tolist()[1:3]
    return y.sin() * first + y[int(torch.tensor(1))] * second


def _compared(m: Odd, y: Tensor) -> Tensor:
    ones = torch.ones(3)
    ones[1] = 2  # written to, and viewed
    return y.sin() if torch.equal(ones[::2], torch.ones(2)) else y.tanh()


@pytest.mark.parametrize("how", [_branch, _scaled, _listed, _compared], ids=lambda f: f.__name__)
def test_values_that_depend_on_no_input_are_read(how: Callable[[Odd, Tensor], Tensor]) -> None:
    """As decoders of transformers look at the positions of tokens."""
    both = pair(odd(how))
    for seed in (1, 4):
        agree(*both, vectors(seed=seed))
    assert recordings(both[0]) == 1


def test_a_value_from_outside_is_read_live() -> None:
    rate = torch.tensor(0.5)
    both = pair(odd(lambda m, y: y.sin() if (rate * 2).item() > 0.7 else y.tanh() * rate.item()))
    found = []
    for other in (0.5, 0.3, 0.2, 0.6):
        rate.fill_(other)
        found.append(agree(*both, vectors()))
    assert recordings(both[0]) == 1
    assert [found[0].same_bits(x) for x in found] == [True, False, False, True]


def test_what_shares_memory_is_looked_at() -> None:
    base = torch.tensor([1.0, 2.0], dtype=torch.float64)
    first, second = base[0], base[1]
    both = pair(odd(lambda m, y: y.sin() * first * second.item()))
    before = agree(*both, vectors())
    second.fill_(5)
    found = agree(*both, vectors())
    assert not found.same_bits(before)
    assert recordings(both[0]) == 1


def _masked(m: Odd, y: Tensor) -> Tensor:
    known = torch.zeros(2, dtype=y.dtype)
    known += y.detach()[0]  # and so it depends on the inputs, too
    return y.sin() * known.sum().item()


def _dropped(m: Odd, y: Tensor) -> Tensor:
    return y.sin() * F.dropout(torch.ones(8), 0.5).sum().item()


@pytest.mark.parametrize("how", [_masked, _dropped], ids=lambda f: f.__name__)
def test_values_that_inputs_were_written_into_are_not(how: Callable[[Odd, Tensor], Tensor]) -> None:
    captured, _ = pair(odd(how))
    with pytest.raises(RuntimeError, match=r"cannot be captured.*reads a value back"):
        captured(vectors())


def test_values_of_other_libraries_operators_are_not() -> None:
    """They may hold tensors of their own."""
    held = torch.tensor(2.0, dtype=torch.float64)

    def times(m: Odd, y: Tensor) -> Tensor:
        one = torch.ones((), dtype=torch.float64)
        return y.sin() * torch.ops.fastmaml_tests.times(one).item()

    with torch.library._scoped_library("fastmaml_tests", "FRAGMENT") as library:
        library.define("times(Tensor x) -> Tensor")
        library.impl("times", lambda x: x * held, "CompositeExplicitAutograd")
        captured, _ = pair(odd(times))
        with pytest.raises(RuntimeError, match=r"cannot be captured.*reads a value back"):
            captured(vectors())
