"""Small files where the data sets of learn2learn's interface look for theirs, laid out alike."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import pytest

numpy, Image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")


def write_picture(file: Path, number: int) -> None:
    """8x6 pixels: red is `number`, green the column, blue the row, tens of each."""
    file.parent.mkdir(parents=True, exist_ok=True)
    red = numpy.full((6, 8), number % 256)
    green, blue = 10 * numpy.arange(8)[None] + 0 * red, 10 * numpy.arange(6)[:, None] + 0 * red
    picture = Image.fromarray(numpy.stack([red, green, blue], -1).astype("uint8"))
    picture.save(file, "png")  # whose pixels stay as they are, whatever the name says


def write_birds(root: Path) -> None:
    """200 classes; class 1 has two images that are in ImageNet, too."""
    base = root / "cubirds200" / "CUB_200_2011"
    names = [f"{i:03}.Bird_{200 - i}/Bird_{i}_0001_{i}.jpg" for i in range(1, 201)]
    names += [
        f"001.Bird_199/{name}" for name in ("Blue_Jay_0033_62024.jpg", "Mallard_0067_77623.jpg")
    ]
    for i, name in enumerate(names, 1):
        write_picture(base / "images" / name, i)
    lines = [f"{i} {name}\n" for i, name in enumerate(names, 1)]
    (base / "images.txt").write_text("".join(lines))
    boxes = [f"{i} {i % 3}.0 1.0 4.0 3.0\n" for i in range(1, len(names) + 1)]
    (base / "bounding_boxes.txt").write_text("".join(boxes))


def write_textures(root: Path) -> None:
    """47 classes of two images, and a file that is none."""
    base = root / "describable_textures" / "dtd" / "images"
    for i in range(47):
        for k in range(2):
            write_picture(base / f"kind{i:02}" / f"kind{i:02}_{k}.jpg", 2 * i + k)
    (base / "kind03" / ".directory").write_text("not an image")


def write_aircraft(root: Path) -> None:
    """100 variants of three images, one in each of the published parts."""
    base = root / "fgvc_aircraft" / "fgvc-aircraft-2013b" / "data"
    boxes = []
    for p, part in enumerate(("train", "val", "test")):
        lines = []
        for i in range(100):
            lines.append(f"{1000 * p + i:07} {(7 * i) % 100:02} F/A-{i % 3} B\n")
            boxes.append(f"{1000 * p + i:07} {i % 3} 1 6 5\n")
            write_picture(base / "images" / f"{1000 * p + i:07}.jpg", i)
        (base / f"images_variant_{part}.txt").write_text("".join(lines))
    (base / "images_box.txt").write_text("".join(boxes))


def write_fungi(root: Path) -> None:
    """1,394 classes, of which every tenth has an image, and one more of class 226."""
    base = root / "fgvc_fungi"
    kinds = {"train": list(range(0, 1394, 10)), "val": [226, 0]}
    for part, classes in kinds.items():
        images, notes = [], []
        for i, kind in enumerate(classes):
            name = f"images/{kind:04}.Fungus {kind}/{part}{i}.JPG"
            write_picture(base / name, kind)
            images.append({"id": 5000 + i, "file_name": name, "width": 8, "height": 6})
            notes.append({"id": i, "image_id": 5000 + i, "category_id": kind})
        (base / f"{part}.json").write_text(json.dumps({"images": images, "annotations": notes}))


def write_drawings(root: Path) -> None:
    """345 classes of 1 to 3 drawings; all pixels of a drawing are alike."""
    base = root / "quickdraw"
    base.mkdir(parents=True)
    for i in range(345):
        # "thing 007 x" stands behind "thing 007", though its file stands before
        name = f"thing {i // 2:03}" + " x" * (i % 2)
        drawings = numpy.full((1 + i % 3, 784), i % 251) + numpy.arange(1 + i % 3)[:, None]
        numpy.save(base / f"{name}.npy", drawings.astype("uint8"))


def write_flowers(root: Path) -> None:
    """204 images, two of each of 102 classes, in a mixed order."""
    base = root / "vgg_flower102"
    labels = [(5 * i) % 102 + 1 for i in range(204)]
    for i, label in enumerate(labels, 1):
        write_picture(base / "jpg" / f"image_{i:05}.jpg", label)
    pytest.importorskip("scipy.io").savemat(base / "imagelabels.mat", {"labels": [labels]})


def write_benchmarks(root: Path) -> None:
    """The files of the four data sets, two or three images each, all of one grey a class."""
    grey = numpy.repeat([0, 0, 51, 51, 51, 255, 255, 255], 1)[2:]  # classes of three images
    for mode, split in (("train", "train"), ("validation", "val"), ("test", "test")):
        pixels = numpy.broadcast_to(grey[:, None, None, None], (6, 84, 84, 3)).astype("uint8")
        mini = {"image_data": pixels.copy(), "class_dict": {"a": [0, 1, 2], "b": [3, 4, 5]}}
        (root / f"mini-imagenet-cache-{mode}.pkl").write_bytes(pickle.dumps(mini))
        small = {"data": pixels[:, :32, :32].copy(), "labels": [7, 7, 7, 9, 9, 9]}
        (root / f"FC100_{split}.pickle").write_bytes(pickle.dumps(small))
        encoded = []
        for i, one in enumerate(pixels):
            file = io.BytesIO()
            Image.fromarray(one).save(file, "png")
            encoded.append(numpy.frombuffer(file.getvalue(), "uint8"))
            folder = root / "cifarfs" / "cifar100" / "data" / f"{split}_{i // 3}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(one[:32, :32]).save(folder / f"{i}.png")
        tiered = root / "tiered-imagenet"
        tiered.mkdir(exist_ok=True)
        (tiered / f"{split}_images_png.pkl").write_bytes(pickle.dumps(encoded))
        labels = {"label_specific": numpy.repeat([4, 5], 3)}
        (tiered / f"{split}_labels.pkl").write_bytes(pickle.dumps(labels))
        splits = root / "cifarfs" / "cifar100" / "splits" / "bertinetto"
        splits.mkdir(parents=True, exist_ok=True)
        (splits / f"{split}.txt").write_text(f"{split}_1\n{split}_0\n")
