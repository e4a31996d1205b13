"""What a table's state holds: its cells, which tasks were trained on, and the scaling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from user_table import source

OTHERS: dict[str, dict[str, Any]] = {
    "seed": {"tasks_seed": 3},
    "test": {"test_tasks": ["u3", "u1"]},
    "validation": {"validation_tasks": 0},
    "all": {"split": "all"},
    "scale": {"scale": False},
    "categorical": {"categorical": ["hour"]},
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_training_tasks_and_scalings_are_refused(case: str) -> None:
    """Or the run would be tested on tasks that it was trained on."""
    state = source().state_dict()
    with pytest.raises(ValueError, match="the state is of other training tasks or another scaling"):
        source(**OTHERS[case]).load_state_dict(state)


def test_a_state_that_does_not_say_is_refused() -> None:
    state = source().state_dict()
    del state["trained"]
    with pytest.raises(ValueError, match="other training tasks"):
        source().load_state_dict(state)


def test_rows_may_be_drawn_otherwise() -> None:
    """Also where small="drop" leaves other tasks out: the scaling has the rows of all."""
    first = source(small="drop")
    for options in ({"shots": 6}, {"queries": 9}, {"unequal": "buckets"}, {"split": "test"}):
        other = source(small="drop", **options)
        other.load_state_dict(first.state_dict())
        assert other.scaling == first.scaling
        assert torch.equal(other.generator.get_state(), first.generator.get_state())
    assert source(small="drop", queries=9).left_out
