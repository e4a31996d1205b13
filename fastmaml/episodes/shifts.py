"""Augmentations that move pixels: flips, shifts and quarter turns, drawn for each image."""

from __future__ import annotations

import torch
from torch import Tensor


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images, left and right exchanged.

    Args:
        images: ``[images, channels, height, width]``.
        generator: on their device.
    """
    half = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(half[:, None, None, None], images.flip(-1), images)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crops of the images' own size, after an eighth of it is added at each edge.

    Pixels at the edge are repeated, so that pictures on white get no black border.

    Args:
        images: ``[images, channels, height, width]``.
        generator: on their device.
    """
    height, width = images.shape[-2:]
    rows = _moved(len(images), height, generator)[:, None, :, None]
    columns = _moved(len(images), width, generator)[:, None, None, :]
    moved = images.gather(2, rows.expand(-1, images.shape[1], -1, width))
    return moved.gather(3, columns.expand(-1, images.shape[1], height, -1))


def turned(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each by 0, 90, 180 or 270 degrees: for what has no up, such as cells seen from above.

    Args:
        images: ``[images, channels, side, side]``.
        generator: on their device.

    Raises:
        ValueError: the images are no squares.
    """
    quarters = torch.randint(4, (len(images),), generator=generator, device=images.device)
    return turned_by(images, quarters)


def turned_by(images: Tensor, quarters: Tensor) -> Tensor:
    """Each counter-clockwise by a number of quarter turns, 0 to 3.

    Raises:
        ValueError: the images are no squares.
    """
    height, width = images.shape[-2:]
    if height != width:
        raise ValueError(
            f"images of {height}x{width} pixels cannot be turned by 90 degrees, as they are no "
            "squares: give size= one number."
        )
    found = images
    for k in (1, 2, 3):
        found = torch.where((quarters == k)[:, None, None, None], images.rot90(k, (-2, -1)), found)
    return found


def _moved(images: int, size: int, generator: torch.Generator) -> Tensor:
    """Which row (or column) of each image comes to each place ``[images, size]``."""
    most, device = size // 8, generator.device
    by = torch.randint(2 * most + 1, (images, 1), generator=generator, device=device) - most
    return (torch.arange(size, device=device) + by).clamp(0, size - 1)
