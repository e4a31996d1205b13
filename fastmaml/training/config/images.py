"""`ImagesConfig`: runs on a folder of images, and on the image data sets of the literature."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastmaml.episodes.sizes import largest
from fastmaml.training.config.numbers import META_DATASET, number, range_of
from fastmaml.training.config.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class ImagesConfig(RunConfig):
    """A whole run on images: data, model, inner loop and outer loop.

    Raises:
        ValueError: a value of the wrong type or out of range.
    """

    dataset: Literal["images", "cifar-fs", "fc100", "mini-imagenet", "tiered-imagenet", "cub"] = (
        "images"
    )
    """Data set."""
    data: str | None = None
    """Folder of class folders, or a .csv file of paths and labels; of the data sets the folder
    with their files (none: FASTMAML_DATA, else ~/.cache/fastmaml)."""
    fractions: str | None = None
    """Of classes for training, validation and test (none: the folder's own, else 0.64,0.16,0.2)."""
    split_file: str | None = None
    """Names of each split's classes: a .json or .csv file, or a folder with train.txt, ..."""
    splits_seed: int = 0
    """Of the order in which fractions hold classes out."""
    size: int | None = None
    """Side of the images in pixels (none: that of the files, where they are alike)."""
    channels: int | None = None
    """1 for grey, 3 for colour (none: colour where an image has colour)."""
    fit: Literal["crop", "stretch"] = "crop"
    """Of pictures of other proportions the middle, or all of it, deformed."""
    augment: str = ""
    """In training, of each image, divided by commas: flip, crop, jitter, rotate."""
    rotations: bool = False
    """Each class turned by 90, 180 and 270 degrees is three more (in training)."""
    cache: str = "memory"
    """memory, or a folder for the decoded images, where they need more than memory holds."""
    download: bool = True
    """Fetch missing files of the data set, where there is an address with a checksum."""
    ways: int | str = 5
    """Classes an episode, or a range such as 5-20, of which each meta-batch draws its number."""
    shots: int | str = 5
    """Support examples a class, or a range, or meta-dataset: for each class another number."""
    queries: int = 5
    """Query examples a class."""
    outputs: int | None = None
    """Of the network (none: as many as ways, of a range its largest)."""
    model: Literal["conv4", "resnet12"] = "conv4"
    """Network."""
    filters: int = 32
    """Channels of each convolution (conv4)."""
    pool: Literal["stride", "max"] = "max"
    """How conv4 shrinks the image."""

    def __post_init__(self) -> None:
        """As of any run; ``ways="5"`` is 5."""
        super().__post_init__()
        object.__setattr__(self, "ways", number("ways", self.ways))
        object.__setattr__(self, "shots", number("shots", self.shots, META_DATASET))
        if self.outputs is not None and self.outputs < self.most_ways:
            raise ValueError(
                f"outputs={self.outputs} with ways={self.ways}: give as many at least."
            )

    @property
    def most_ways(self) -> int:
        """That an episode can have."""
        return largest(range_of("ways", self.ways))

    @property
    def title(self) -> str:
        """Such as "images, birds, 5-way 1-shot"."""
        name = f", {Path(self.data).name}" if self.dataset == "images" and self.data else ""
        shots = "Meta-Dataset's shots" if self.shots == META_DATASET else f"{self.shots}-shot"
        return f"{self.dataset}{name}, {self.ways}-way {shots}"
