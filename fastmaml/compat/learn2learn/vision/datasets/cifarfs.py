"""`CIFARFS`: CIFAR-100 split at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastmaml.compat.learn2learn.vision.datasets.images import RECORD, Split, need, require

ADDRESS = f"{RECORD}/cifar100.zip"


class CIFARFS(Split):
    """CIFAR-FS (Bertinetto et al. 2019): 600 images of 32x32 pixels of each of 100 classes.

    It is read from ``root/cifarfs/cifar100/data/<class>/*.png``, of which
    ``root/cifarfs/cifar100/splits/bertinetto/<split>.txt`` names the classes of a split (train, val
    and test). Images are float32 ``[3, 32, 32]`` from 0 to 1; a transform is given an image of
    Pillow. Labels follow the names of the classes.

    Args:
        root: the folder of the data.
        mode: "train" (64 classes), "validation" (16) or "test" (20).
        transform: of the images.
        target_transform: of the labels.
        download: changes nothing; the error names the address.

    Raises:
        ValueError: an unknown mode.
        FileNotFoundError: a file or folder is missing.
        ImportError: numpy or pillow is missing.
    """

    def read(self, root: Path, split: str) -> list[int]:
        """Read the images of a split, and return their labels."""
        base = root / "cifarfs" / "cifar100"
        names = base / "splits" / "bertinetto" / f"{split}.txt"
        classes = sorted(require(names, ADDRESS).read_text().split())
        self.paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = sorted(require(base / "data" / name, ADDRESS).glob("*.png"))
            self.paths += found
            labels += [label] * len(found)
        return labels

    def source(self, index: int) -> Any:
        """The image at `index`, as an RGB image of Pillow."""
        with need("PIL.Image").open(self.paths[index]) as picture:
            return picture.convert("RGB")
