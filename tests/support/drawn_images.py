"""Small folders of images, whose pixels say which they are."""

from __future__ import annotations

from pathlib import Path

import pytest

numpy, Image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")


def picture(number: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    """Width and height; the first pixel is `number`, the others noise that hangs on it."""
    width, height = size
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = numpy.random.default_rng(number).integers(0, 256, (height, width, channels))
    pixels[0, 0] = number % 256
    array = pixels.astype("uint8")
    return Image.fromarray(array[..., 0] if channels == 1 else array, mode=None)


def write_classes(
    folder: Path, classes: int = 12, images: int = 6, size: tuple[int, int] = (8, 8), first: int = 0
) -> Path:
    """``folder/class_00/0.png`` and so on; image i of class c is number ``images·c + i``."""
    for c in range(first, first + classes):
        place = folder / f"class_{c:02}"
        place.mkdir(parents=True)
        for i in range(images):
            picture(images * c + i, size).save(place / f"{i}.png")
    return folder
