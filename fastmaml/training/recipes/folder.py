"""The recipe of a folder of images and of the image data sets: networks made from scratch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmaml import episodes, models
from fastmaml.episodes import ImageSampler
from fastmaml.episodes.image_sampler import Shots
from fastmaml.heads import Head
from fastmaml.training.config import ImagesConfig
from fastmaml.training.config.numbers import META_DATASET, range_of
from fastmaml.training.metrics import Choice
from fastmaml.training.recipes.base import Recipe

SIDES = {"cifar-fs": 32, "fc100": 32, "mini-imagenet": 84, "tiered-imagenet": 84, "cub": 84}
SETS: dict[str, Callable[..., ImageSampler]] = {
    "cifar-fs": episodes.cifar_fs,
    "fc100": episodes.fc100,
    "mini-imagenet": episodes.mini_imagenet,
    "tiered-imagenet": episodes.tiered_imagenet,
    "cub": episodes.cub,
}

DOWNLOADED = ("cifar-fs", "fc100", "cub")


@final
@dataclass(frozen=True)
class Folder(Recipe):
    """Images of classes."""

    config: ImagesConfig

    def model(self) -> nn.Module:
        """A network for images of the shape that the data has."""
        config = self.config
        channels, height, width = self._geometry
        outputs = config.outputs or config.most_ways
        if config.model == "resnet12":
            return models.resnet12(outputs, channels)
        if config.pool == "max" and height != width:
            raise ValueError(
                f"the images have {width}x{height} pixels, and conv4 with pool='max' takes "
                "squares: give size=, or pool='stride'."
            )
        return models.conv4(outputs, channels, config.filters, pool=config.pool, image_size=height)

    def loss(self) -> Callable[[Any, Any], Tensor]:
        """Cross-entropy."""
        return F.cross_entropy

    def scope(self, model: nn.Module) -> str:
        """What adapts, as the configuration says."""
        return self.config.scope

    def head(self) -> Head | None:
        """None: the model keeps its own last layer."""
        return None

    def metrics(self) -> Choice:
        """Nothing else."""
        return Choice()

    @cached_property
    def validated(self) -> bool:
        """Where classes are held out for it."""
        if self.config.dataset != "images":
            return True
        return bool(episodes.image_splits(self._folder(), **self._splits())["validation"])

    def episodes(self, split: str, seed: int, device: torch.device) -> ImageSampler:
        """The meta-batches of a split; augmented in training only."""
        config = self.config
        training = split == "train"
        settings: dict[str, Any] = {
            "ways": range_of("ways", config.ways),
            "shots": self._shots,
            "queries": config.queries,
            "tasks": config.tasks,
            "size": self._geometry[1:],
            "fit": config.fit,
            "augment": config.augment if training else None,
            "rotations": config.rotations and training,
            "cache": config.cache,
            "seed": seed,
            "device": device,
        }
        if config.dataset == "images" or config.channels is not None:
            settings["channels"] = self._geometry[0]
        if config.dataset == "images":
            return episodes.images(self._folder(), split=split, **self._splits(), **settings)
        if config.dataset in DOWNLOADED:
            settings["download"] = config.download
        return SETS[config.dataset](split, root=config.data, **settings)

    def check_source(self, source: Any, state: Any, moved: bool) -> None:
        """Whether it was held out in the run of that state, too, and is normalised as there.

        Of other data it is known alone that none of its classes has the files of one trained on.
        """
        if isinstance(source, ImageSampler) and isinstance(state, Mapping):
            (source.check_other if moved else source.check_trained)(state)

    @property
    def _shots(self) -> Shots:
        given = self.config.shots
        return "meta-dataset" if given == META_DATASET else range_of("shots", given)

    def _folder(self) -> str:
        if self.config.data is None:
            raise ValueError(
                "data is not given: name the folder of images with --data FOLDER, which has a "
                "folder of images for each class."
            )
        return self.config.data

    def _splits(self) -> dict[str, Any]:
        """As of `episodes.images`."""
        config = self.config
        if config.fractions is not None and config.split_file is not None:
            raise ValueError(
                f"fractions={config.fractions!r} and split_file={config.split_file!r}: give one."
            )
        if config.dataset != "images" and (config.fractions or config.split_file):
            raise ValueError(
                f"{config.dataset} has splits of its own: leave out fractions and split_file."
            )
        splits: Any = config.split_file
        if config.fractions is not None:
            try:
                splits = tuple(float(part) for part in config.fractions.split(","))
            except ValueError:
                raise ValueError(
                    f"fractions={config.fractions!r}: give three, such as 0.64,0.16,0.2."
                ) from None
        return {"splits": splits, "splits_seed": config.splits_seed}

    @cached_property
    def _geometry(self) -> tuple[int, int, int]:
        """Channels, height and width: the first bytes of all files are read for it, once."""
        config = self.config
        if config.dataset != "images":
            self._splits()
            side = config.size or SIDES[config.dataset]
            return config.channels or 3, side, side
        return episodes.image_shape(self._folder(), config.size, config.channels)
