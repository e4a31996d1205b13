"""Gradient methods by the names that configurations and the command line have for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fastmaml.gradients import Checkpointed, MixedMode, Unrolled
from fastmaml.gradients.names import OFFLOADING, named
from fastmaml.training.presets import PRESETS
from fastmaml.training.recipes.parts import gradient_of


def test_methods_that_offload_by_name() -> None:
    assert OFFLOADING == ("checkpointed", "mixed-mode")
    assert named("checkpointed", offload=True) == Checkpointed(offload=True)
    assert named("mixed-mode", 3, offload=True) == MixedMode(3, offload=True)
    with pytest.raises(ValueError, match="offload with gradient unrolled: only checkpointed and"):
        named("unrolled", offload=True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"gradient": "auto"}, None),
        ({"gradient": "unrolled"}, Unrolled()),
        ({"gradient": "checkpointed", "offload": True}, Checkpointed(offload=True)),
        ({"gradient": "mixed-mode", "segments": 2, "offload": True}, MixedMode(2, True)),
    ],
)
def test_configurations_name_a_method(changes: dict[str, Any], expected: Any) -> None:
    assert gradient_of(replace(PRESETS["digits"], **changes)) == expected


def test_offload_without_such_a_method_is_refused() -> None:
    config = replace(PRESETS["digits"], offload=True)
    with pytest.raises(ValueError, match="offload=True with gradient='auto': say which"):
        gradient_of(replace(config, gradient="auto"))
    with pytest.raises(ValueError, match="offload with gradient first-order"):
        gradient_of(replace(config, gradient="first-order"))
