"""`FGVCFungi`: photographs of 1,394 species of fungi."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from fastmaml.compat.learn2learn.vision.datasets.images import Root, Transform, require
from fastmaml.compat.learn2learn.vision.datasets.pictures import Pictures
from fastmaml.episodes.meta_dataset_splits import ClassSplits

IMAGES = "https://labs.gbif.org/fgvcx/2018/fungi_train_val.tgz"
ANNOTATIONS = "https://labs.gbif.org/fgvcx/2018/train_val_annotations.tgz"


class FGVCFungi(Pictures):
    """The fungi of the FGVCx challenge of 2018: 89,760 photographs of 1,394 species.

    It is read from ``root/fgvc_fungi``: ``train.json``, ``val.json`` and ``images``, which have
    terms of use of their own (https://github.com/visipedia/fgvcx_fungi_comp). Splits are those of
    Meta-Dataset. Without a transform images are float32 ``[3, height, width]`` from 0 to 1; a
    transform is given an image of Pillow.

    Args:
        root: the folder of the data.
        mode: "train" (994 classes), "validation" (200), "test" (200) or "all".
        transform: of the images.
        target_transform: of the labels.
        download: changes nothing; the error names the addresses.

    Raises:
        ValueError: an unknown mode, or files that are not what they should be.
        FileNotFoundError: a file or folder is missing.
        ImportError: numpy or pillow is missing.
    """

    splits = ClassSplits(994, 200, 200, ("train", "validation", "test"))

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
        """The images of some classes with their labels, in the order of the annotations."""
        base = self.root / "fgvc_fungi"
        require(base / "images", IMAGES)
        for part in ("train", "val"):
            file = require(base / f"{part}.json", ANNOTATIONS)
            read = json.loads(file.read_bytes())
            names = {image["id"]: image["file_name"] for image in read["images"]}
            for note in read["annotations"]:
                if note["image_id"] not in names:
                    raise ValueError(
                        f"{file} has no image of id {note['image_id']}: fetch it anew."
                    )
                if note["category_id"] in labels:
                    yield base / names[note["image_id"]], labels[note["category_id"]]
