"""`Pictures`: files of images of any size, in the class splits of Meta-Dataset."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from fastmaml.compat.learn2learn.vision.datasets.images import (
    Images,
    Root,
    Transform,
    folder,
    need,
    require,
)
from fastmaml.episodes.meta_dataset_splits import ClassSplits

Box = tuple[int, int, int, int]
"""Left, upper, right and lower edge, in pixels."""


class Pictures(Images):
    """Files of images, read when they are asked for.

    Their sizes differ, so that tasks need a transform that makes tensors of one shape.

    Args:
        root: the folder of the data.
        mode: "train", "validation", "test" or "all".
        transform: of the images, given RGB images of Pillow.
        target_transform: of the labels.

    Raises:
        ValueError: an unknown mode, or files that are not what they should be.
        FileNotFoundError: a file or folder is missing.
        ImportError: numpy or pillow is missing.
    """

    splits: ClassVar[ClassSplits]

    def __init__(
        self, root: Root, mode: str, transform: Transform | None, target_transform: Transform | None
    ) -> None:
        self.root, self.mode = folder(root), mode
        numbers = self.splits.of(mode)
        found = list(self.find({number: label for label, number in enumerate(numbers)}))
        if not found:
            raise ValueError(f"there are no images of mode={mode!r} in {self.root}.")
        self.paths = [path for path, _ in found]
        self.boxes: list[Box] | None = None  # what the images are cropped to
        super().__init__([label for _, label in found], transform, target_transform)

    @abstractmethod
    def find(self, labels: Mapping[int, int]) -> Iterator[tuple[Path, int]]:
        """The images of some classes with their labels; `labels` has them by class number."""

    def source(self, index: int) -> Any:
        """The image at `index`, as an RGB image of Pillow."""
        with need("PIL.Image").open(self.paths[index]) as picture:
            return picture.convert("RGB").crop(None if self.boxes is None else self.boxes[index])


def class_folders(base: Path, classes: int, address: str) -> list[Path]:
    """The folders of all classes, in the order of their names.

    Raises:
        FileNotFoundError: there is no `base`.
        ValueError: there are more or fewer; splits, which number classes, would then be wrong.
    """
    found = sorted(path for path in require(base, address).iterdir() if path.is_dir())
    return complete(found, classes, f"folders of classes in {base}")


def complete(found: list[Any], classes: int, what: str) -> list[Any]:
    """`found`, if it has all classes.

    Raises:
        ValueError: there are more or fewer.
    """
    if len(found) != classes:
        raise ValueError(
            f"there are {len(found)} {what}, and {classes} are needed, since the splits number the "
            "classes in the order of their names. Unpack the archive anew, whole."
        )
    return found


def boxes_of(names: list[str], boxes: Mapping[str, Box], file: Path) -> list[Box]:
    """The boxes of these images.

    Raises:
        ValueError: one has none.
    """
    missing = [name for name in names if name not in boxes]
    if missing:
        raise ValueError(
            f"{file} has no box of {missing[0]}: give bounding_box_crop=False, or unpack the "
            "archive anew."
        )
    return [boxes[name] for name in names]
