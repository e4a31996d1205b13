"""`VGGFlower102`: photographs of 102 kinds of flowers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from fastmaml.compat.learn2learn.vision.datasets.images import Root, Transform, need, require
from fastmaml.compat.learn2learn.vision.datasets.pictures import Pictures
from fastmaml.episodes.meta_dataset_splits import ClassSplits

ADDRESS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"


class VGGFlower102(Pictures):
    """Flowers (Nilsback and Zisserman 2008): 8,189 photographs of 102 kinds.

    It is read from ``root/vgg_flower102``: ``jpg/image_<number>.jpg`` and ``imagelabels.mat``, for
    which scipy is needed. Splits are those of Meta-Dataset. Without a transform images are float32
    ``[3, height, width]`` from 0 to 1; a transform is given an image of Pillow.

    Args:
        root: the folder of the data.
        mode: "train" (71 classes), "validation" (15), "test" (16) or "all", where labels are the
            published numbers less 1.
        transform: of the images.
        target_transform: of the labels.
        download: changes nothing; the error names the addresses.

    Raises:
        ValueError: an unknown mode, or files that are not what they should be.
        FileNotFoundError: a file or folder is missing.
        ImportError: numpy, pillow or scipy is missing.
    """

    splits = ClassSplits(71, 15, 16, every=())

    def __init__(
        self,
        root: Root,
        mode: str = "all",
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        download: bool = False,
    ) -> None:
        super().__init__(root, mode, transform, target_transform)

    def find(self, labels: Mapping[int, int]) -> Iterator[tuple[Path, int]]:
        """The images of some classes with their labels, in the order of their numbers."""
        base = self.root / "vgg_flower102"
        file = require(base / "imagelabels.mat", f"{ADDRESS}/imagelabels.mat")
        folder = require(base / "jpg", f"{ADDRESS}/102flowers.tgz")
        published = need("scipy.io", "scipy").loadmat(file)["labels"].ravel().tolist()
        for number, label in enumerate(published, 1):
            if int(label) - 1 in labels:
                yield folder / f"image_{number:05}.jpg", labels[int(label) - 1]
