"""`CUBirds200`: Caltech-UCSD Birds, 200 species."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from fastmaml.compat.learn2learn.vision.datasets.images import Root, Transform, require
from fastmaml.compat.learn2learn.vision.datasets.pictures import (
    Box,
    Pictures,
    boxes_of,
    class_folders,
)
from fastmaml.episodes.meta_dataset_splits import ClassSplits

ADDRESS = "https://zenodo.org/record/8000562/files/CUB_200_2011.tgz"

IN_IMAGENET = {
    "American_Goldfinch": "0012_32338 0018_32324 0062_31921 0064_32142 0116_31943 0131_32911",
    "Anna_Hummingbird": "0034_56614",
    "Black_Footed_Albatross": "0002_55 0024_796089 0033_796086 0086_796062",
    "Blue_Jay": "0033_62024 0049_63082 0053_62744 0068_61543",
    "Dark_Eyed_Junco": "0031_66785 0037_66321 0057_68650 0102_67402 0104_67820 0111_66488",
    "Green_Violetear": "0002_795699",
    "Indigo_Bunting": "0010_13000 0031_13300 0051_12837 0060_14495 "
    "0063_11820 0071_11639 0072_14197 0073_13933",
    "Laysan_Albatross": "0033_658 0049_918 0053_543",
    "Mallard": "0067_77623",
    "Red_Breasted_Merganser": "0001_79199 0004_79232 0012_79425 0034_79292 "
    "0045_79358 0068_79203 0083_79562",
    "Ruby_Throated_Hummingbird": "0040_57982 0090_57411",
}
"""The 43 images that are in ImageNet as well, as learn2learn 0.2.0 lists them."""


class CUBirds200(Pictures):
    """Caltech-UCSD Birds 200-2011 (Wah et al. 2011): 11,788 photographs of 200 species.

    It is read from ``root/cubirds200/CUB_200_2011``, where the archive's folder ``images`` and its
    lists are. Splits are those of Meta-Dataset. Without a transform images are float32
    ``[3, height, width]`` from 0 to 1; a transform is given an image of Pillow.

    Args:
        root: the folder of the data.
        mode: "train" (140 classes), "validation" (30), "test" (30) or "all".
        transform: of the images.
        target_transform: of the labels.
        download: changes nothing; the error names the address.
        include_imagenet_duplicates: whether to keep 43 images that are in ImageNet, too.
        bounding_box_crop: whether to crop to the bird.

    Raises:
        ValueError: an unknown mode, or files that are not what they should be.
        FileNotFoundError: a file or folder is missing.
        ImportError: numpy or pillow is missing.
    """

    splits = ClassSplits(140, 30, 30)

    def __init__(
        self,
        root: Root,
        mode: str = "all",
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        download: bool = False,
        include_imagenet_duplicates: bool = False,
        bounding_box_crop: bool = False,
    ) -> None:
        self.include_imagenet_duplicates = include_imagenet_duplicates
        self.bounding_box_crop = bounding_box_crop
        super().__init__(root, mode, transform, target_transform)
        if bounding_box_crop:
            base = self.root / "cubirds200" / "CUB_200_2011"
            names = [f"{path.parent.name}/{path.name}" for path in self.paths]
            self.boxes = boxes_of(names, _boxes(base), base / "bounding_boxes.txt")

    def find(self, labels: Mapping[int, int]) -> Iterator[tuple[Path, int]]:
        """The images of some classes with their labels, class by class."""
        base = self.root / "cubirds200" / "CUB_200_2011" / "images"
        folders = class_folders(base, self.splits.classes, ADDRESS)
        left_out = set() if self.include_imagenet_duplicates else _duplicates()
        for number, label in labels.items():
            for path in sorted(folders[number].glob("*.jpg")):
                if path.name not in left_out:
                    yield path, label


def _duplicates() -> set[str]:
    return {f"{bird}_{n}.jpg" for bird, numbers in IN_IMAGENET.items() for n in numbers.split()}


def _boxes(base: Path) -> dict[str, Box]:
    """By the images' names, of two files whose lines begin with the number of an image."""
    lines = require(base / "images.txt", ADDRESS).read_text().splitlines()
    names = dict(line.split() for line in lines)
    boxes: dict[str, Box] = {}
    for line in require(base / "bounding_boxes.txt", ADDRESS).read_text().splitlines():
        number, *numbers = line.split()
        x, y, width, height = (int(float(n)) for n in numbers)
        boxes[names[number]] = (x, y, x + width, y + height)
    return boxes
