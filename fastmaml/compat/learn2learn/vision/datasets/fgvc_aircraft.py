"""`FGVCAircraft`: photographs of 100 variants of aircraft."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from fastmaml.compat.learn2learn.vision.datasets.images import Root, Transform, require
from fastmaml.compat.learn2learn.vision.datasets.pictures import Box, Pictures, boxes_of, complete
from fastmaml.episodes.meta_dataset_splits import ClassSplits

ADDRESS = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz"


class FGVCAircraft(Pictures):
    """FGVC-Aircraft (Maji et al. 2013): 100 photographs of each of 100 variants.

    It is read from ``root/fgvc_aircraft/fgvc-aircraft-2013b/data``, in the order of
    ``images_variant_train.txt``, ``images_variant_val.txt`` and ``images_variant_test.txt``. Splits
    are those of Meta-Dataset. Without a transform images are float32 ``[3, height, width]`` from 0
    to 1; a transform is given an image of Pillow. A banner with the copyright lies at the bottom of
    the images, outside of the boxes.

    Args:
        root: the folder of the data.
        mode: "train" (70 classes), "validation" (15), "test" (15) or "all".
        transform: of the images.
        target_transform: of the labels.
        download: changes nothing; the error names the address.
        bounding_box_crop: whether to crop to the aircraft.

    Raises:
        ValueError: an unknown mode, or files that are not what they should be.
        FileNotFoundError: a file or folder is missing.
        ImportError: numpy or pillow is missing.
    """

    splits = ClassSplits(70, 15, 15, ("train", "validation", "test"))

    def __init__(
        self,
        root: Root,
        mode: str = "all",
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        download: bool = False,
        bounding_box_crop: bool = False,
    ) -> None:
        self.bounding_box_crop = bounding_box_crop
        super().__init__(root, mode, transform, target_transform)
        if bounding_box_crop:
            file = require(self.base / "images_box.txt", ADDRESS)
            self.boxes = boxes_of([path.stem for path in self.paths], _boxes(file), file)

    @property
    def base(self) -> Path:
        """The folder of the lists."""
        return self.root / "fgvc_aircraft" / "fgvc-aircraft-2013b" / "data"

    def find(self, labels: Mapping[int, int]) -> Iterator[tuple[Path, int]]:
        """The images of some classes with their labels, in the order of the lists."""
        named: list[tuple[str, str]] = []
        for part in ("train", "val", "test"):
            lines = require(self.base / f"images_variant_{part}.txt", ADDRESS).read_text()
            named += [
                (image, name) for image, _, name in (x.partition(" ") for x in lines.splitlines())
            ]
        names = complete(sorted({name for _, name in named}), self.splits.classes, "variants")
        number = {name: i for i, name in enumerate(names)}
        folder = require(self.base / "images", ADDRESS)
        for image, name in named:
            if number[name] in labels:
                yield folder / f"{image}.jpg", labels[number[name]]


def _boxes(file: Path) -> dict[str, Box]:
    boxes: dict[str, Box] = {}
    for line in file.read_text().splitlines():
        image, left, upper, right, lower = line.split()
        boxes[image] = (int(left), int(upper), int(right), int(lower))
    return boxes
