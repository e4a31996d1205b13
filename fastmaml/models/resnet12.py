"""`resnet12`: the residual network of few-shot learning."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from fastmaml.episodes.checks import check_positive

SLOPE = 0.1


class Residual(nn.Module):
    """Three 3x3 convolutions beside a 1x1 convolution, then 2x2 max-pooling."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(channels, filters, 3),
            nn.LeakyReLU(SLOPE),
            *_convolution(filters, filters, 3),
            nn.LeakyReLU(SLOPE),
            *_convolution(filters, filters, 3),
        )
        self.shortcut = nn.Sequential(*_convolution(channels, filters, 1))
        self.end = nn.Sequential(nn.LeakyReLU(SLOPE), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        """From ``[examples, channels, h, w]`` to ``[examples, filters, h // 2, w // 2]``."""
        result: Tensor = self.end(self.body(x) + self.shortcut(x))
        return result


def resnet12(
    ways: int, channels: int = 3, filters: Sequence[int] = (64, 160, 320, 640)
) -> nn.Sequential:
    """Residual blocks of three convolutions, the mean over positions and a linear classifier.

    The ResNet-12 of few-shot learning (Oreshkin et al. 2018) in the wide form of Lee et al. 2019,
    without DropBlock. It maps float32 ``[examples, channels, h, w]``, with h and w at least 2 to
    the power of the number of blocks (16 by default), to ``[examples, ways]``. BatchNorm keeps no
    running statistics, as in `conv4`. Convolutions start He-normal. ``features`` is all but the
    classifier, ``classifier`` the last layer.

    Args:
        ways: classes, the number of outputs.
        channels: of the images.
        filters: channels of each block.

    Raises:
        ValueError: no blocks, or a number that is not positive.
    """
    check_positive(
        ways=ways,
        channels=channels,
        blocks=len(filters),
        **{f"filters[{i}]": n for i, n in enumerate(filters)},
    )
    pairs = zip((channels, *filters[:-1]), filters, strict=True)
    blocks = [Residual(before, after) for before, after in pairs]
    features = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, SLOPE, "fan_out", "leaky_relu")
    return nn.Sequential(OrderedDict(features=features, classifier=nn.Linear(filters[-1], ways)))


def _convolution(channels: int, filters: int, size: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, filters, size, padding=size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(filters, track_running_stats=False)]
