"""`conv4`: the four-layer convolutional network of few-shot learning."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fastmaml.episodes.checks import check_choice, check_positive

LAYERS = 4


def conv4(
    ways: int, channels: int = 1, filters: int = 64, pool: str = "stride", image_size: int = 28
) -> nn.Sequential:
    """Four blocks of 3x3 convolution, BatchNorm and ReLU, then a linear classifier.

    It maps float32 ``[examples, channels, image_size, image_size]`` to ``[examples, ways]``. How
    each block halves the image is `pool`:

    - "stride": a stride of 2, and the mean over the positions that remain: the MAML paper's
      Omniglot network (Finn et al. 2017), for images of any size.
    - "max": 2x2 max-pooling, and every remaining position is a feature (Vinyals et al. 2016);
      with ``channels=3, filters=32, image_size=84`` the MAML paper's miniImageNet network.

    BatchNorm keeps no running statistics: as in the paper, images are normalised by the batch they
    come in, in training and in evaluation. Convolutions and classifier start Glorot-uniform with
    zero biases. ``features`` is all but the classifier, ``classifier`` the last layer.

    Args:
        ways: classes, the number of outputs.
        channels: of the images.
        filters: channels of each block.
        pool: "stride" or "max".
        image_size: height and width of the images, in pixels.

    Raises:
        ValueError: an unknown `pool`, a number that is not positive, or images too small for four
            rounds of max-pooling (less than 16 pixels).
    """
    check_positive(ways=ways, channels=channels, filters=filters, image_size=image_size)
    check_choice("pool", pool, ("stride", "max"))
    side = image_size // 2**LAYERS
    if pool == "max" and side == 0:
        raise ValueError(
            f"image_size={image_size} is too small for pool='max', which halves it {LAYERS} times: "
            f"use images of {2**LAYERS} pixels or more, or pool='stride'."
        )
    blocks: list[nn.Module] = [
        _block(channels if i == 0 else filters, filters, pool) for i in range(LAYERS)
    ]
    if pool == "stride":
        blocks.append(nn.AdaptiveAvgPool2d(1))
    features = nn.Sequential(*blocks, nn.Flatten())
    width = filters if pool == "stride" else filters * side**2
    model = nn.Sequential(OrderedDict(features=features, classifier=nn.Linear(width, ways)))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model


def _block(channels: int, filters: int, pool: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, filters, 3, stride=2 if pool == "stride" else 1, padding=1),
        nn.BatchNorm2d(filters, track_running_stats=False),
        nn.ReLU(),
        *([nn.MaxPool2d(2)] if pool == "max" else []),
    )
