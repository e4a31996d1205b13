"""`DescribableTextures`: photographs of 47 kinds of textures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from fastmaml.compat.learn2learn.vision.datasets.images import Root, Transform
from fastmaml.compat.learn2learn.vision.datasets.pictures import Pictures, class_folders
from fastmaml.episodes.meta_dataset_splits import ClassSplits

ADDRESS = "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz"


class DescribableTextures(Pictures):
    """Describable Textures (Cimpoi et al. 2014): 120 photographs of each of 47 kinds.

    It is read from ``root/describable_textures/dtd/images/<class>/*.jpg``, one image at a time.
    Splits are those of Meta-Dataset. Without a transform images are float32 ``[3, height, width]``
    from 0 to 1; a transform is given an image of Pillow.

    Args:
        root: the folder of the data.
        mode: "train" (33 classes), "validation" (7), "test" (7) or "all".
        transform: of the images.
        target_transform: of the labels.
        download: changes nothing; the error names the address.

    Raises:
        ValueError: an unknown mode, or files that are not what they should be.
        FileNotFoundError: a file or folder is missing.
        ImportError: numpy or pillow is missing.
    """

    splits = ClassSplits(33, 7, 7)

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
        """The images of some classes with their labels, class by class."""
        base = self.root / "describable_textures" / "dtd" / "images"
        folders = class_folders(base, self.splits.classes, ADDRESS)
        for number, label in labels.items():
            for path in sorted(folders[number].glob("*.jpg")):
                yield path, label
