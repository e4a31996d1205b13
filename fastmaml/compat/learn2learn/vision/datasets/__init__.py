"""Data sets of few-shot image classification, read from local files."""

from fastmaml.compat.learn2learn.vision.datasets.cifarfs import CIFARFS
from fastmaml.compat.learn2learn.vision.datasets.cu_birds200 import CUBirds200
from fastmaml.compat.learn2learn.vision.datasets.describable_textures import DescribableTextures
from fastmaml.compat.learn2learn.vision.datasets.fc100 import FC100
from fastmaml.compat.learn2learn.vision.datasets.fgvc_aircraft import FGVCAircraft
from fastmaml.compat.learn2learn.vision.datasets.fgvc_fungi import FGVCFungi
from fastmaml.compat.learn2learn.vision.datasets.full_omniglot import FullOmniglot
from fastmaml.compat.learn2learn.vision.datasets.mini_imagenet import MiniImagenet
from fastmaml.compat.learn2learn.vision.datasets.quickdraw import Quickdraw
from fastmaml.compat.learn2learn.vision.datasets.tiered_imagenet import TieredImagenet
from fastmaml.compat.learn2learn.vision.datasets.vgg_flowers import VGGFlower102

__all__ = [
    "CIFARFS",
    "FC100",
    "CUBirds200",
    "DescribableTextures",
    "FGVCAircraft",
    "FGVCFungi",
    "FullOmniglot",
    "MiniImagenet",
    "Quickdraw",
    "TieredImagenet",
    "VGGFlower102",
]
