"""Networks of few-shot image classification, each with ``features`` and ``classifier``.

Parameters have the names that they have in learn2learn, so its checkpoints can be loaded.
"""

from fastmaml.compat.learn2learn.vision.models.cnn4 import (
    CNN4,
    CNN4Backbone,
    ConvBase,
    ConvBlock,
    MiniImagenetCNN,
    OmniglotCNN,
    OmniglotFC,
    fc_init_,
    maml_init_,
)
from fastmaml.compat.learn2learn.vision.models.pretrained import get_pretrained_backbone
from fastmaml.compat.learn2learn.vision.models.resnet12 import ResNet12, ResNet12Backbone
from fastmaml.compat.learn2learn.vision.models.wrn28 import WRN28, WRN28Backbone

__all__ = [
    "CNN4",
    "WRN28",
    "CNN4Backbone",
    "ConvBase",
    "ConvBlock",
    "MiniImagenetCNN",
    "OmniglotCNN",
    "OmniglotFC",
    "ResNet12",
    "ResNet12Backbone",
    "WRN28Backbone",
    "fc_init_",
    "get_pretrained_backbone",
    "maml_init_",
]
