"""What functions given as `augment=` may return for images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_images import write_classes

import fastmaml as fm

SIZES: dict[str, Any] = {"ways": 2, "shots": 2, "queries": 1, "tasks": 3}


@pytest.mark.parametrize("normalise", [True, False])
def test_a_function_that_returns_floats_is_refused(tmp_path: Path, normalise: bool) -> None:
    photos = write_classes(tmp_path / "photos", 3)

    def scaled(image: torch.Tensor) -> torch.Tensor:
        return image.float() / 255

    source = fm.episodes.images(photos, **SIZES, augment=scaled, normalise=normalise)
    with pytest.raises(ValueError, match=r"augment gives torch\.float32 .* return uint8") as caught:
        source.sample()
    assert "\n" not in str(caught.value)


def test_a_function_may_return_one_buffer_each_time(tmp_path: Path) -> None:
    photos = write_classes(tmp_path / "photos", 3)
    buffer = torch.empty(3, 8, 8, dtype=torch.uint8)
    plain = fm.episodes.images(photos, **SIZES).sample()
    filled = fm.episodes.images(photos, **SIZES, augment=buffer.copy_).sample()
    assert len(plain.support.inputs.flatten(0, 1).unique(dim=0)) > 1
    again = fm.episodes.images(photos, **SIZES, augment=torch.clone).sample()
    assert torch.equal(filled.support.inputs, again.support.inputs)
