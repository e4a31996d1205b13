"""The small networks of Omniglot and miniImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from fastmaml.compat.learn2learn.nn import Flatten, Lambda
from fastmaml.compat.learn2learn.vision.models.backbone import Classifier

M = TypeVar("M", bound=nn.Module)


def fc_init_(module: M) -> M:
    """Draw the ``weight`` of `module` from a normal (0.01), cut at 0.02; make ``bias`` zero."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if weight is not None:
        nn.init.trunc_normal_(weight, std=0.01, a=-0.02, b=0.02)
    if bias is not None:
        nn.init.zeros_(bias)
    return module


def maml_init_(module: M) -> M:
    """Draw the ``weight`` of `module` Glorot-uniform; make ``bias`` zero."""
    nn.init.xavier_uniform_(module.weight)  # type: ignore[arg-type]
    nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return module


class LinearBlock(nn.Module):
    """A linear layer, BatchNorm without running statistics, and ReLU."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.normalize = nn.BatchNorm1d(
            output_size, eps=1e-3, momentum=0.999, track_running_stats=False
        )
        self.linear = fc_init_(nn.Linear(input_size, output_size))

    def forward(self, x: Tensor) -> Tensor:
        """From ``[examples, input_size]`` to ``[examples, output_size]``."""
        result: Tensor = self.relu(self.normalize(self.linear(x)))
        return result


class ConvBlock(nn.Module):
    """A convolution, BatchNorm, ReLU, and something that makes the image smaller.

    Args:
        in_channels, out_channels, kernel_size: of the convolution, which is padded by 1.
        max_pool: make it smaller by max-pooling; else by the convolution's stride.
        max_pool_factor: by twice this factor.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        max_pool: bool = True,
        max_pool_factor: float = 1.0,
    ) -> None:
        super().__init__()
        factor = int(2 * max_pool_factor)
        self.max_pool = nn.MaxPool2d(factor) if max_pool else nn.Identity()
        self.normalize = nn.BatchNorm2d(out_channels)
        nn.init.uniform_(self.normalize.weight)
        self.relu = nn.ReLU()
        stride = 1 if max_pool else factor
        self.conv = maml_init_(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """From ``[examples, in_channels, h, w]`` to ``[examples, out_channels, h', w']``."""
        result: Tensor = self.max_pool(self.relu(self.normalize(self.conv(x))))
        return result

    def modules_in_a_row(self) -> list[nn.Module]:
        """What `forward` calls, one after the other, and nobody else sees (`routing.in_a_row`)."""
        return [self.conv, self.normalize, self.relu, self.max_pool]


class ConvBase(nn.Sequential):
    """Several `ConvBlock` with 3x3 convolutions.

    Args:
        hidden: channels of every block.
        channels: of the images.
        max_pool, max_pool_factor: as in `ConvBlock`.
        layers: how many.
    """

    def __init__(
        self,
        hidden: int = 64,
        channels: int = 1,
        max_pool: bool = False,
        layers: int = 4,
        max_pool_factor: float = 1.0,
    ) -> None:
        widths = [channels, *[hidden] * layers]
        super().__init__(
            *(ConvBlock(a, b, (3, 3), max_pool, max_pool_factor) for a, b in pairwise(widths))
        )


class OmniglotFC(Classifier):
    """The fully connected network for Omniglot (Santoro et al. 2016).

    Args:
        input_size: numbers an example, after flattening.
        output_size: classes.
        sizes: widths of the hidden layers; None for 256, 128, 64, 64.
    """

    def __init__(
        self, input_size: int, output_size: int, sizes: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        widths = [input_size, *([256, 128, 64, 64] if sizes is None else sizes)]
        blocks = nn.Sequential(*(LinearBlock(a, b) for a, b in pairwise(widths)))
        self.features = nn.Sequential(Flatten(), blocks)
        self.classifier = fc_init_(nn.Linear(widths[-1], output_size))
        self.input_size = input_size


class OmniglotCNN(Classifier):
    """The convolutional network for Omniglot (Finn et al. 2017), for 784 numbers an example.

    Args:
        output_size: classes.
        hidden_size: channels of every layer.
        layers: how many; each halves the image.
    """

    def __init__(self, output_size: int = 5, hidden_size: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.base = ConvBase(hidden=hidden_size, channels=1, max_pool=False, layers=layers)
        self.features = nn.Sequential(
            Lambda(_as_images), self.base, Lambda(_mean_over_positions), Flatten()
        )
        self.classifier = nn.Linear(hidden_size, output_size)
        nn.init.normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)


class CNN4Backbone(ConvBase):
    """The features of `CNN4`, before its last layer.

    Args:
        hidden_size, layers, channels, max_pool: as of `CNN4`.
        max_pool_factor: None for 4 // layers.
    """

    def __init__(
        self,
        hidden_size: int = 64,
        layers: int = 4,
        channels: int = 3,
        max_pool: bool = True,
        max_pool_factor: float | None = None,
    ) -> None:
        factor = 4 // layers if max_pool_factor is None else max_pool_factor
        super().__init__(hidden_size, channels, max_pool, layers, factor)

    def forward(self, x: Tensor) -> Tensor:
        """From images ``[examples, channels, h, w]`` to features ``[examples, features]``."""
        features: Tensor = super().forward(x)
        return features.flatten(1)


class CNN4(Classifier):
    """The convolutional network for miniImageNet (Ravi and Larochelle 2017).

    Args:
        output_size: classes.
        hidden_size: channels of every layer.
        layers: how many.
        channels: of the images.
        max_pool: make images smaller by max-pooling; else by strides.
        embedding_size: numbers of features; None for those of images of 84x84 pixels.
    """

    def __init__(
        self,
        output_size: int,
        hidden_size: int = 64,
        layers: int = 4,
        channels: int = 3,
        max_pool: bool = True,
        embedding_size: int | None = None,
    ) -> None:
        super().__init__()
        embedding_size = 25 * hidden_size if embedding_size is None else embedding_size
        self.features = CNN4Backbone(hidden_size, layers, channels, max_pool)
        self.classifier = maml_init_(nn.Linear(embedding_size, output_size))
        self.hidden_size = hidden_size


MiniImagenetCNN = CNN4


def _as_images(x: Tensor) -> Tensor:
    return x.reshape(-1, 1, 28, 28)


def _mean_over_positions(x: Tensor) -> Tensor:
    return torch.mean(x, (2, 3))
