"""What the image data sets share: items, transforms and missing files."""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

Transform = Callable[[Any], Any]
Root = str | os.PathLike[str]
MODES = {"train": "train", "validation": "val", "test": "test"}
RECORD = "https://zenodo.org/record/7978538/files"


class Images(Dataset[Any], ABC):
    """Items ``(image, label)`` of images with integer labels.

    Without a transform an image is a float32 tensor ``[channels, height, width]``; a transform is
    given what `source` returns.

    Args:
        labels: one an image.
        transform: of the images.
        target_transform: of the labels.
    """

    def __init__(
        self, labels: list[int], transform: Transform | None, target_transform: Transform | None
    ) -> None:
        self.labels: list[int] | Mapping[int, int] = labels
        self.transform = transform
        self.target_transform = target_transform

    @abstractmethod
    def source(self, index: int) -> Any:
        """The image as a transform is given it."""

    def tensor(self, index: int) -> Tensor:
        """The image as a tensor: that of Pillow scaled to numbers from 0 to 1."""
        return to_tensor(self.source(index))

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        plain = self.transform is None
        image = self.tensor(index) if plain else self.transform(self.source(index))  # type: ignore[misc]
        label: Any = self.labels[index]
        return image, label if self.target_transform is None else self.target_transform(label)

    def __len__(self) -> int:
        return len(self.labels)

    def labels_by_index(self) -> Mapping[int, Any] | None:
        """The labels of all items, without reading an image.

        None where a subclass makes items in another way, whose labels it alone knows.
        """
        if type(self).__getitem__ is not Images.__getitem__:
            return None
        rename = self.target_transform
        return dict(enumerate(self.labels if rename is None else map(rename, self.labels)))


class Split(Images):
    """One of three splits of a data set, from files that are fetched by hand.

    Args:
        root: the folder of the data.
        mode: "train", "validation" or "test".
        transform: of the images.
        target_transform: of the labels.
        download: changes nothing; the error names the address.

    Raises:
        ValueError: an unknown mode.
        FileNotFoundError: a file or folder is missing.
        ImportError: numpy or pillow is missing.
    """

    def __init__(
        self,
        root: Root,
        mode: str = "train",
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        download: bool = False,
    ) -> None:
        self.mode, split = mode, mode_name(mode)
        super().__init__(self.read(folder(root), split), transform, target_transform)

    @abstractmethod
    def read(self, root: Path, split: str) -> list[int]:
        """Read the images of a split (train, val or test) and keep them; returns their labels."""


def to_tensor(picture: Any) -> Tensor:
    """An image of Pillow as float32 ``[channels, height, width]`` from 0 to 1."""
    array = torch.from_numpy(need("numpy").array(picture, dtype="uint8"))
    image = array.unsqueeze(-1) if array.dim() == 2 else array
    return image.permute(2, 0, 1).float() / 255


def mode_name(mode: str) -> str:
    """What a mode is called in the names of files.

    Raises:
        ValueError: it is none.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: choose one of {', '.join(MODES)}.")
    return MODES[mode]


def folder(root: Root) -> Path:
    """`root` with the user's home written out."""
    return Path(root).expanduser()


def require(path: Path, address: str) -> Path:
    """`path`, if it exists.

    Raises:
        FileNotFoundError: it does not; the message says where it is to be had, and what else can be
            done.
    """
    if path.exists():
        return path
    raise FileNotFoundError(
        f"there is no {path}, and nothing is downloaded, as there is no checksum to verify. Fetch "
        f"{address} and put it there (unpacked, if it is an archive), name another place "
        "with root=, or use a data set of your own: any torch.utils.data.Dataset of (x, label) in "
        "data.MetaDataset and data.Taskset, or three of them as "
        "vision.benchmarks.get_tasksets(..., datasets=(train, validation, test))."
    )


def need(module: str, install: str = "'fastmaml[vision]'") -> Any:
    """Import an optional package, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"reading images needs {module.split('.')[0]}: pip install {install}."
        ) from error
