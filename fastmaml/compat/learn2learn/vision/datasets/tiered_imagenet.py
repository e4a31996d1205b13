"""`TieredImagenet`: 608 classes of ImageNet in 84x84 pixels."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from fastmaml.compat.learn2learn.vision.datasets.images import RECORD, Split, need, require


class TieredImagenet(Split):
    """tieredImageNet (Ren et al. 2018), whose splits differ in kind, not only in class.

    It is read from ``root/tiered-imagenet/<split>_images_png.pkl`` and ``<split>_labels.pkl`` with
    the splits train, val and test: pickles that must be from a source you trust. Images are float32
    ``[3, 84, 84]`` from 0 to 1; a transform is given an image of Pillow.

    Args:
        root: the folder of the data.
        mode: "train" (351 classes), "validation" (97) or "test" (160).
        transform: of the images.
        target_transform: of the labels.
        download: changes nothing; the error names the address.

    Raises:
        ValueError: an unknown mode.
        FileNotFoundError: a file is missing.
        ImportError: numpy or pillow is missing.
    """

    def read(self, root: Path, split: str) -> list[int]:
        """Read the images of a split, and return their labels."""
        need("numpy")
        read = {}
        for what in ("images_png", "labels"):
            name = f"{split}_{what}.pkl"
            path = require(root / "tiered-imagenet" / name, f"{RECORD}/tiered-imagenet-{name}")
            read[what] = pickle.loads(path.read_bytes())
        self.images = read["images_png"]
        return [int(y) for y in read["labels"]["label_specific"]]

    def source(self, index: int) -> Any:
        """The image at `index`, as an RGB image of Pillow."""
        with need("PIL.Image").open(io.BytesIO(bytes(self.images[index]))) as picture:
            return picture.convert("RGB")
