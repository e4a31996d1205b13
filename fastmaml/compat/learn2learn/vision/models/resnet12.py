"""`ResNet12`: the residual network of few-shot learning, with DropBlock."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmaml.compat.learn2learn.nn import Flatten
from fastmaml.compat.learn2learn.vision.models.backbone import Classifier

SLOPE = 0.1
RAMP = 40000
"""So many training passes take DropBlock's rate from 0 to what it is to be."""


class DropBlock(nn.Module):
    """Sets squares of a feature map to zero while training (Ghiasi et al. 2018).

    Args:
        block_size: the sides of the squares.
    """

    def __init__(self, block_size: int) -> None:
        super().__init__()
        self.block_size = block_size

    def forward(self, x: Tensor, gamma: float) -> Tensor:
        """`x` with squares that begin with probability `gamma` at each place set to zero.

        What remains is scaled up so that the mean stays.
        """
        if not self.training:
            return x
        size = self.block_size
        places = x.new_zeros(*x.shape[:2], x.shape[2] - size + 1, x.shape[3] - size + 1)
        seeds = F.pad(torch.bernoulli(places + gamma), [size - 1] * 4)
        kept = 1 - F.max_pool2d(seeds, size, stride=1)
        return x * kept * (kept.numel() / kept.sum())


class BasicBlock(nn.Module):
    """Three 3x3 convolutions beside a 1x1 convolution, max-pooling, and dropout or DropBlock."""

    def __init__(
        self,
        inplanes: int,
        planes: int,
        drop_rate: float = 0.0,
        drop_block: bool = False,
        block_size: int = 1,
    ) -> None:
        super().__init__()
        for i, width in enumerate((inplanes, planes, planes), start=1):
            self.add_module(f"conv{i}", nn.Conv2d(width, planes, 3, padding=1, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(planes))
        self.relu = nn.LeakyReLU(SLOPE)
        self.maxpool = nn.MaxPool2d(2)
        self.downsample = nn.Sequential(
            nn.Conv2d(inplanes, planes, 1, bias=False), nn.BatchNorm2d(planes)
        )
        self.drop_rate = drop_rate
        self.drop_block = drop_block
        self.block_size = block_size
        self.num_batches_tracked = 0
        self.DropBlock = DropBlock(block_size)

    def forward(self, x: Tensor) -> Tensor:
        """From ``[examples, inplanes, h, w]`` to ``[examples, planes, h // 2, w // 2]``."""
        self.num_batches_tracked += 1
        out = self.relu(self._convolved(x, 1))
        out = self._convolved(self.relu(self._convolved(out, 2)), 3)
        out = self.maxpool(self.relu(out + self.downsample(x)))
        if self.drop_rate > 0 and self.drop_block:
            dropped: Tensor = self.DropBlock(out, self._gamma(out.shape[2]))
            return dropped
        return F.dropout(out, self.drop_rate, self.training)

    def _convolved(self, x: Tensor, i: int) -> Tensor:
        convolved: Tensor = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x))
        return convolved

    def _gamma(self, side: int) -> float:
        """The probability of a square at a place that drops the wanted share of all positions."""
        rate = min(self.drop_rate * self.num_batches_tracked / RAMP, self.drop_rate)
        return rate / self.block_size**2 * side**2 / (side - self.block_size + 1) ** 2


class ResNet12Backbone(nn.Module):
    """The features of `ResNet12`, before its last layer.

    Args:
        avg_pool, wider, channels: as of `ResNet12`.
        embedding_dropout, dropblock_dropout, dropblock_size: as there.
    """

    def __init__(
        self,
        avg_pool: bool = True,
        wider: bool = True,
        embedding_dropout: float = 0.0,
        dropblock_dropout: float = 0.1,
        dropblock_size: int = 5,
        channels: int = 3,
    ) -> None:
        super().__init__()
        filters = (64, 160, 320, 640) if wider else (64, 128, 256, 512)
        self.layers = [f"layer{i}" for i in range(1, 5)]
        for i, (before, after) in enumerate(zip((channels, *filters), filters, strict=False)):
            late = i >= 2
            block = BasicBlock(before, after, dropblock_dropout, late, dropblock_size * late or 1)
            self.add_module(self.layers[i], nn.Sequential(block))
        self.avgpool = nn.AvgPool2d(5, stride=1) if avg_pool else nn.Identity()
        self.flatten = Flatten()
        self.embedding_dropout = embedding_dropout
        self.keep_avg_pool = avg_pool
        self.dropout = nn.Dropout(embedding_dropout)
        self.dropblock_dropout = dropblock_dropout
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        """From images ``[examples, channels, h, w]`` to features ``[examples, features]``."""
        for name in self.layers:
            x = self.get_submodule(name)(x)
        features: Tensor = self.dropout(self.flatten(self.avgpool(x)))
        return features


class ResNet12(Classifier):
    """The residual network of 12 layers (Oreshkin et al. 2018, Lee et al. 2019).

    DropBlock's rate rises with the training passes that a block has made; those of a clone count
    for the clone alone.

    Args:
        output_size: classes.
        hidden_size: numbers of features: 640 for images of 84x84 pixels, 16,000 without `avg_pool`.
        avg_pool: take the mean over the positions.
        wider: 64, 160, 320 and 640 channels; else 64, 128, 256 and 512.
        embedding_dropout: dropout of the features.
        dropblock_dropout: dropout of the first two blocks, and the rate of DropBlock in the others.
        dropblock_size: of its squares.
        channels: of the images.
    """

    def __init__(
        self,
        output_size: int,
        hidden_size: int = 640,
        avg_pool: bool = True,
        wider: bool = True,
        embedding_dropout: float = 0.0,
        dropblock_dropout: float = 0.1,
        dropblock_size: int = 5,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.features = ResNet12Backbone(
            avg_pool, wider, embedding_dropout, dropblock_dropout, dropblock_size, channels
        )
        self.classifier = nn.Linear(hidden_size, output_size)
