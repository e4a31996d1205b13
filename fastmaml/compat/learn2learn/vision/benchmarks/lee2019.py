"""`Lee2019`: the augmentation of MetaOptNet, for images of 84x84 pixels."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from fastmaml.compat.learn2learn.vision.datasets.images import need, to_tensor

MEAN = torch.tensor([120.39586422 / 255, 115.59361427 / 255, 104.54012653 / 255]).view(3, 1, 1)
STD = torch.tensor([70.68188272 / 255, 68.27635443 / 255, 72.54505529 / 255]).view(3, 1, 1)
SIDE, PADDING, STRENGTH = 84, 8, 0.4


@final
class Lee2019:
    """Images for training and testing as Lee et al. (2019, MetaOptNet) prepare them.

    For training: a random crop of 84x84 pixels of the image with 8 black ones around it;
    brightness, contrast and saturation times numbers from 0.6 to 1.4, in random order; mirrored
    every other time. Then, as for testing, colours less their mean and over their standard
    deviation. Random numbers come from torch, anew for every call, in the order in which
    torchvision's RandomCrop, ColorJitter and RandomHorizontalFlip draw them: one seed gives the
    same images as these give of images of Pillow.

    Args:
        training: whether to draw.
        largest: what white is in tensors, 1 or 255.

    Raises:
        ImportError: numpy or pillow is missing.
    """

    def __init__(self, training: bool, largest: float = 1.0) -> None:
        self.training = training
        self.largest = largest

    def __call__(self, image: Any) -> Tensor:
        """Float32 ``[3, height, width]`` of such a tensor, on its device, or of Pillow's image."""
        device = image.device if isinstance(image, Tensor) else None
        if self.training:
            picture = _picture(image, self.largest) if isinstance(image, Tensor) else image
            unit = to_tensor(_flip(_jitter(_crop(picture))))
        else:
            unit = image / self.largest if isinstance(image, Tensor) else to_tensor(image)
        return ((unit.cpu() - MEAN) / STD).to(device)


def _picture(image: Tensor, largest: float) -> Any:
    pixels = (image * (255 / largest)).round().byte().cpu()
    return need("PIL.Image").fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _crop(picture: Any) -> Any:
    upper = int(torch.randint(picture.height + 2 * PADDING - SIDE + 1, (1,))) - PADDING
    left = int(torch.randint(picture.width + 2 * PADDING - SIDE + 1, (1,))) - PADDING
    return picture.crop((left, upper, left + SIDE, upper + SIDE))  # black beyond the edges


def _jitter(picture: Any) -> Any:
    enhance = need("PIL.ImageEnhance")
    order = torch.randperm(4).tolist()  # the fourth is the hue, which stays
    low, high = 1 - STRENGTH, 1 + STRENGTH
    factors = [float(torch.empty(1).uniform_(low, high)) for _ in range(3)]
    kinds = (enhance.Brightness, enhance.Contrast, enhance.Color)
    for i in order:
        if i < len(kinds):
            picture = kinds[i](picture).enhance(factors[i])
    return picture


def _flip(picture: Any) -> Any:
    return need("PIL.ImageOps").mirror(picture) if float(torch.rand(1)) < 0.5 else picture
