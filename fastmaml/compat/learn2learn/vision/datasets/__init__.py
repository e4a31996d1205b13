"""Data sets of few-shot image classification, read from local files."""

from fastmaml.compat.learn2learn.vision.datasets.cifarfs import CIFARFS
from fastmaml.compat.learn2learn.vision.datasets.fc100 import FC100
from fastmaml.compat.learn2learn.vision.datasets.full_omniglot import FullOmniglot
from fastmaml.compat.learn2learn.vision.datasets.mini_imagenet import MiniImagenet
from fastmaml.compat.learn2learn.vision.datasets.tiered_imagenet import TieredImagenet

__all__ = ["CIFARFS", "FC100", "FullOmniglot", "MiniImagenet", "TieredImagenet"]
