"""`jittered`: brightness, contrast and saturation, drawn for each image."""

from __future__ import annotations

import torch
from torch import Tensor

STRENGTH = 0.4
GREY = (0.299, 0.587, 0.114)
"""Of red, green and blue, in what an eye sees as bright (ITU-R BT.601)."""


def jittered(images: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, then contrast, then saturation, each times 0.6 to 1.4.

    As in the few-shot literature (Lee et al. 2019), in one fixed order. Contrast is about the mean
    grey of an image, saturation about each pixel's grey; images of one channel have none.

    Args:
        images: uint8 ``[images, channels, height, width]``.
        generator: on their device.
    """
    factors = torch.rand(3, len(images), 1, 1, 1, generator=generator, device=images.device)
    bright, contrast, saturation = 1 + STRENGTH * (2 * factors - 1)
    found = (images.float() * bright).clamp(0, 255)
    mean = _grey(found).mean((-2, -1), keepdim=True)
    found = (mean + contrast * (found - mean)).clamp(0, 255)
    if images.shape[1] == len(GREY):
        grey = _grey(found)
        found = (grey + saturation * (found - grey)).clamp(0, 255)
    return found.round().to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """``[images, 1, height, width]``."""
    if images.shape[1] != len(GREY):
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)
