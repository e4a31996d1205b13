"""`Quickdraw`: 50 million drawings of 345 things."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmaml.compat.learn2learn.data.runs import Runs
from fastmaml.compat.learn2learn.vision.datasets.images import (
    Images,
    Root,
    Transform,
    folder,
    need,
    require,
)
from fastmaml.compat.learn2learn.vision.datasets.pictures import complete
from fastmaml.episodes.meta_dataset_splits import ClassSplits

ADDRESS = "https://storage.googleapis.com/quickdraw_dataset/full/numpy_bitmap/<class>.npy"
SIDE = 28


class Quickdraw(Images):
    """Quick, Draw! (Ha and Eck 2017): drawings of 28x28 pixels of 345 things.

    It is read from ``root/quickdraw/<class>.npy``, all 345 of them (39 GB), a drawing at a time.
    Splits are those of Meta-Dataset. Without a transform images are float32 ``[1, 28, 28]``, 0
    paper and 1 ink; a transform is given a uint8 array of numpy, ``[28, 28]``.

    Args:
        root: the folder of the data.
        mode: "train" (241 classes), "validation" (52), "test" (52) or "all".
        transform: of the images.
        target_transform: of the labels.
        download: changes nothing; the error names the addresses.

    Raises:
        ValueError: an unknown mode, or files that are not what they should be.
        FileNotFoundError: the folder is missing.
        ImportError: numpy is missing.
    """

    splits = ClassSplits(241, 52, 52)

    def __init__(
        self,
        root: Root,
        mode: str = "all",
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        download: bool = False,
    ) -> None:
        self.root, self.mode = folder(root), mode
        numbers = self.splits.of(mode)
        base = require(self.root / "quickdraw", ADDRESS)
        files = sorted(base.glob("*.npy"), key=lambda path: path.stem)
        complete(files, self.splits.classes, f"files of drawings in {base}")
        self.files = [files[number] for number in numbers]
        heads = [_head(file) for file in self.files]
        self.begins = [begin for begin, _ in heads]
        super().__init__([], transform, target_transform)
        self.labels: Runs = Runs([length for _, length in heads])

    def labels_by_index(self) -> Mapping[int, Any] | None:
        """The labels of all items, without reading one."""
        if type(self).__getitem__ is not Images.__getitem__:
            return None
        rename = self.target_transform
        if rename is None:
            return self.labels
        return {index: rename(label) for index, label in self.labels.items()}

    def source(self, index: int) -> Any:
        """The drawing at `index`, as a uint8 array of numpy, ``[28, 28]``, 255 ink."""
        if not 0 <= index < len(self):
            raise IndexError(f"drawing {index} of {len(self)}.")
        label = self.labels[index]
        numpy, begin = need("numpy"), self.begins[label]
        offset = begin + SIDE * SIDE * (index - self.labels.by_label[label][0])
        drawing = numpy.fromfile(self.files[label], "uint8", SIDE * SIDE, offset=offset)
        return drawing.reshape(SIDE, SIDE)


def _head(file: Path) -> tuple[int, int]:
    """Where the drawings of a file begin, in bytes, and how many there are."""
    drawings = need("numpy").load(file, mmap_mode="r")
    rows = drawings.flags.c_contiguous
    if drawings.dtype != "uint8" or drawings.shape[1:] != (SIDE * SIDE,) or not rows:
        raise ValueError(
            f"{file} is an array of {drawings.dtype} {list(drawings.shape)}, not of uint8 "
            f"[drawings, {SIDE * SIDE}] row by row: fetch it from {ADDRESS}."
        )
    return drawings.offset, len(drawings)
