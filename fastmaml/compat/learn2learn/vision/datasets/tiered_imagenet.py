"""`TieredImagenet`: 608 classes of ImageNet in 84x84 pixels."""

from __future__ import annotations

import io
import pickle
from typing import Any

from fastmaml.compat.learn2learn.vision.datasets.images import (
    Images,
    Root,
    Transform,
    folder,
    mode_name,
    need,
    require,
)


class TieredImagenet(Images):
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

    def __init__(
        self,
        root: Root,
        mode: str = "train",
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        download: bool = False,
    ) -> None:
        need("numpy")
        self.mode = mode
        read = {}
        for what in ("images_png", "labels"):
            name = f"{mode_name(mode)}_{what}.pkl"
            path = require(folder(root) / "tiered-imagenet" / name, f"tiered-imagenet-{name}")
            read[what] = pickle.loads(path.read_bytes())
        self.images = read["images_png"]
        labels = [int(y) for y in read["labels"]["label_specific"]]
        super().__init__(labels, transform, target_transform)

    def source(self, index: int) -> Any:
        """The image at `index`, as an RGB image of Pillow."""
        with need("PIL.Image").open(io.BytesIO(bytes(self.images[index]))) as picture:
            return picture.convert("RGB")
