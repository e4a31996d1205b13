"""`WRN28`: the wide residual network of 28 layers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fastmaml.compat.learn2learn.vision.models.backbone import Classifier

DEPTH, WIDTH = 28, 10


class WideBlock(nn.Module):
    """Twice BatchNorm, ReLU and a 3x3 convolution, beside a shortcut."""

    def __init__(self, before: int, after: int, dropout: float, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.bn2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, stride=stride, padding=1)
        needed = stride != 1 or before != after
        self.shortcut = nn.Sequential(
            *([nn.Conv2d(before, after, 1, stride=stride)] if needed else [])
        )

    def forward(self, x: Tensor) -> Tensor:
        """From ``[examples, before, h, w]`` to ``[examples, after, h / stride, w / stride]``."""
        out = self.dropout(self.conv1(F.relu(self.bn1(x))))
        result: Tensor = self.conv2(F.relu(self.bn2(out))) + self.shortcut(x)
        return result


class WRN28Backbone(nn.Module):
    """The features of `WRN28`, for images of 3x84x84.

    Args:
        dropout: between the convolutions of a block.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        widths = [16, 16 * WIDTH, 32 * WIDTH, 64 * WIDTH]
        blocks = (DEPTH - 4) // 6
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                WideBlock(widths[i], widths[i + 1], dropout, 1 if i == 0 else 2),
                *(WideBlock(widths[i + 1], widths[i + 1], dropout, 1) for _ in range(blocks - 1)),
            )
            for i in range(3)
        )
        self.bn1 = nn.BatchNorm2d(widths[3], momentum=0.9)

    def forward(self, x: Tensor) -> Tensor:
        """From images ``[examples, 3, 84, 84]`` to features ``[examples, 640]``."""
        out = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return F.avg_pool2d(F.relu(self.bn1(out)), 21).flatten(1)


class WRN28(Classifier):
    """A wide residual network, 28 layers deep and 10 times wide (Zagoruyko and Komodakis 2016).

    As few-shot learning uses it (Dhillon et al. 2020), with biases in its convolutions.

    Args:
        output_size: classes.
        hidden_size: numbers of features: 640 for images of 84x84 pixels.
        dropout: between the convolutions of a block.
    """

    def __init__(self, output_size: int, hidden_size: int = 640, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = WRN28Backbone(dropout)
        self.classifier = nn.Linear(hidden_size, output_size)
