"""`FC100`: CIFAR-100 split by super-classes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from fastmaml.compat.learn2learn.vision.datasets.images import RECORD, Split, need, require


class FC100(Split):
    """FC100 (Oreshkin et al. 2018): 600 images of 32x32 pixels of each of 100 classes.

    It is read from ``root/FC100_<split>.pickle`` with the splits train, val and test: pickles that
    must be from a source you trust. Images are float32 ``[3, 32, 32]`` from 0 to 1; a transform is
    given an image of Pillow.

    Args:
        root: the folder of the data.
        mode: "train" (60 classes), "validation" (20) or "test" (20).
        transform: of the images.
        target_transform: of the labels.
        download: changes nothing; the error names the address.

    Raises:
        ValueError: an unknown mode.
        FileNotFoundError: the file is missing.
        ImportError: numpy or pillow is missing.
    """

    def read(self, root: Path, split: str) -> list[int]:
        """Read the images of a split, and return their labels."""
        need("numpy")
        path = root / f"FC100_{split}.pickle"
        data = pickle.loads(require(path, f"{RECORD}/fc100.zip").read_bytes(), encoding="latin1")
        self.images = data["data"]
        return [int(y) for y in data["labels"]]

    def source(self, index: int) -> Any:
        """The image at `index`, as an image of Pillow."""
        return need("PIL.Image").fromarray(self.images[index])
