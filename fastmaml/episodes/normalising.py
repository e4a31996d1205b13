"""`Normalisation`: what is subtracted from images and what they are divided by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

SAMPLED = 2000
"""Images that mean and deviation are found on, evenly spaced over all of the training classes."""


@final
@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel, of pixels from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def found(images: Tensor) -> Normalisation:
        """Of uint8 images ``[images, channels, height, width]``, the same on every machine.

        A channel that never changes is divided by 1.
        """
        values = torch.arange(256, dtype=torch.float64)
        mean, std = [], []
        for channel in images.unbind(1):
            counts = torch.bincount(channel.flatten(), minlength=256).double()
            mean.append(float((counts * values).sum() / counts.sum()))
            variance = float((counts * (values - mean[-1]).square()).sum() / counts.sum())
            std.append(variance**0.5 or 255.0)
        return Normalisation(tuple(x / 255 for x in mean), tuple(x / 255 for x in std))

    @staticmethod
    def given(pair: Any, channels: int) -> Normalisation:
        """The user's ``(mean, std)``: numbers, or one for each channel.

        Raises:
            ValueError: it is no such pair, or its numbers are not of these images.
        """
        try:
            mean, std = (_each(part, channels) for part in pair)
        except (TypeError, ValueError):
            mean, std = (), ()
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise ValueError(
                f"normalise={pair!r}: give (mean, std), each a number or {channels} of them, one a "
                "channel, of pixels from 0 to 1 and std positive; True to find them, or False."
            )
        return Normalisation(mean, std)

    def __call__(self, images: Tensor) -> Tensor:
        """From uint8 ``[..., channels, height, width]`` to float32, on the images' device."""
        mean, std = (images.new_tensor(x, dtype=torch.float32) for x in (self.mean, self.std))
        scale = 1 / (255 * std)
        return images.float() * scale[:, None, None] - (mean / std)[:, None, None]


def _each(part: Sequence[float] | float, channels: int) -> tuple[float, ...]:
    if isinstance(part, int | float):
        return (float(part),) * channels
    return tuple(float(x) for x in part)
