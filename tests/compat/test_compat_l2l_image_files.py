"""learn2learn's data sets of pictures, from small files laid out as the published ones."""

from __future__ import annotations

import pickle
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import image_files as files
import numpy
import pytest
import torch

import fastmaml.compat.learn2learn as l2l
from fastmaml.compat.learn2learn.data import transforms as T
from fastmaml.compat.learn2learn.data.runs import Runs

sets = l2l.vision.datasets

# The numbers of the classes in learn2learn 0.2.0's lists of names: how many, and their CRC-32.
PEER = {
    "CUBirds200": {
        "train": (140, 2873558302),
        "validation": (30, 3746345629),
        "test": (30, 538194419),
        "all": (200, 462907485),
    },
    "DescribableTextures": {
        "train": (33, 2954098808),
        "validation": (7, 1839191907),
        "test": (7, 511532187),
        "all": (47, 3132743597),
    },
    "FGVCAircraft": {
        "train": (70, 2163235408),
        "validation": (15, 1259121506),
        "test": (15, 4117765401),
        "all": (100, 776327713),
    },
    "FGVCFungi": {
        "train": (994, 4276228867),
        "validation": (200, 1968459906),
        "test": (200, 501097708),
        "all": (1394, 284052157),
    },
    "Quickdraw": {
        "train": (241, 294532321),
        "validation": (52, 1600098601),
        "test": (52, 2963296308),
        "all": (345, 733599654),
    },
    "VGGFlower102": {
        "train": (71, 2712755495),
        "validation": (15, 3939900172),
        "test": (16, 816102764),
        "all": (102, 97804222),
    },
}


@pytest.mark.parametrize("name", PEER)
def test_splits_are_those_of_the_peer(name: str) -> None:
    splits = getattr(sets, name).splits
    every = splits.of("all")
    assert sorted(every) == list(range(splits.classes))
    for mode, (classes, check) in PEER[name].items():
        numbers = splits.of(mode)
        assert (len(numbers), zlib.crc32(repr(numbers).encode())) == (classes, check)
    with pytest.raises(ValueError, match=r"mode='valid': choose one of .*all"):
        splits.of("valid")


def red(picture: Any) -> int:
    """The number with which a picture was written."""
    return int(numpy.asarray(picture)[0, 0, 0])


def test_birds(tmp_path: Path) -> None:
    files.write_birds(tmp_path)
    train = sets.CUBirds200(tmp_path, "train", transform=red)
    classes = train.splits.of("train")  # class 0 is image 1
    assert list(train) == [(number + 1, label) for label, number in enumerate(classes)]
    assert len(sets.CUBirds200(tmp_path)) == 200
    kept = sets.CUBirds200(tmp_path, include_imagenet_duplicates=True)
    assert len(kept) == 202
    assert kept[0][0].shape == (3, 6, 8)
    cropped = sets.CUBirds200(tmp_path, "train", bounding_box_crop=True)
    left = (classes[0] + 1) % 3
    assert torch.equal(
        cropped[0][0], sets.CUBirds200(tmp_path, "train")[0][0][:, 1:4, left : left + 4]
    )
    boxes = tmp_path / "cubirds200" / "CUB_200_2011" / "bounding_boxes.txt"
    boxes.write_text("1 0.0 1.0 4.0 3.0\n")
    with pytest.raises(ValueError, match=r"bounding_boxes.txt has no box of .*\.jpg"):
        sets.CUBirds200(tmp_path, "train", bounding_box_crop=True)


def test_textures(tmp_path: Path) -> None:
    files.write_textures(tmp_path)
    for mode in ("train", "validation", "test", "all"):
        data = sets.DescribableTextures(tmp_path, mode, red, target_transform=lambda y: -y)
        expected = [
            (2 * number + k, -label)
            for label, number in enumerate(data.splits.of(mode))
            for k in range(2)
        ]
        assert list(data) == expected


def test_aircraft(tmp_path: Path) -> None:
    files.write_aircraft(tmp_path)
    data = sets.FGVCAircraft(tmp_path, "validation", red)
    place = {number: label for label, number in enumerate(data.splits.of("validation"))}
    # the variant of image i is named after 7 * i, modulo 100
    once = [(i, place[7 * i % 100]) for i in range(100) if 7 * i % 100 in place]
    assert list(data) == 3 * once  # in each of the published parts
    whole = sets.FGVCAircraft(tmp_path)
    cropped = sets.FGVCAircraft(tmp_path, bounding_box_crop=True)
    assert torch.equal(cropped[1][0], whole[1][0][:, 1:5, 1:6])


def test_fungi(tmp_path: Path) -> None:
    files.write_fungi(tmp_path)
    data = sets.FGVCFungi(tmp_path, "train", red)
    place = {number: label for label, number in enumerate(data.splits.of("train"))}
    there = [*range(0, 1394, 10), 226, 0]
    assert list(data) == [(n % 256, place[n]) for n in there if n in place]
    assert place[226] == 0
    assert len(sets.FGVCFungi(tmp_path)) == len(there)
    notes = tmp_path / "fgvc_fungi" / "val.json"
    notes.write_text(notes.read_text().replace('"id": 5001', '"id": 1'))
    with pytest.raises(ValueError, match=r"val\.json has no image of id 5001"):
        sets.FGVCFungi(tmp_path)


def test_flowers(tmp_path: Path) -> None:
    files.write_flowers(tmp_path)
    every = sets.VGGFlower102(tmp_path, transform=red)
    assert list(every) == [(5 * i % 102 + 1, 5 * i % 102) for i in range(204)]
    test = sets.VGGFlower102(tmp_path, "test", red)
    kinds = [5, 9, 15, 19, 35, 40, 41, 42, 45, 46, 65, 85, 89, 94, 96, 98]
    assert list(test) == [(n, kinds.index(n)) for n, _ in every if n in kinds]


def test_drawings(tmp_path: Path) -> None:
    files.write_drawings(tmp_path)
    data = sets.Quickdraw(tmp_path, "test", transform=lambda drawing: int(drawing[3, 5]))
    numbers = data.splits.of("test")
    assert list(data) == [
        (n % 251 + k, label) for label, n in enumerate(numbers) for k in range(1 + n % 3)
    ]
    copied = pickle.loads(pickle.dumps(sets.Quickdraw(tmp_path, "test")))
    image, label = copied[len(copied) - 1]
    assert image.shape == (1, 28, 28)
    torch.testing.assert_close(
        image[0, 0, 0], torch.tensor((numbers[-1] % 251 + numbers[-1] % 3) / 255)
    )
    assert label == 51
    with pytest.raises(IndexError):
        copied[len(copied)]
    meta = l2l.data.MetaDataset(copied)
    assert isinstance(meta.indices_to_labels, Runs)
    assert [meta.indices_to_labels[i] for i in meta.indices_to_labels] == [y for _, y in copied]
    assert {y: list(i) for y, i in meta.labels_to_indices.items()} == l2l.data.MetaDataset(
        list_of(copied)
    ).labels_to_indices
    with pytest.raises(KeyError):
        meta.indices_to_labels[len(copied)]
    random.seed(1)
    steps = [T.NWays(meta, 3), T.KShots(meta, 1), T.LoadData(meta), T.RemapLabels(meta)]
    x, y = l2l.data.Taskset(meta, steps).sample()
    assert x.shape == (3, 1, 28, 28)
    assert sorted(y.tolist()) == [0, 1, 2]
    renamed = sets.Quickdraw(tmp_path, "test", target_transform=lambda y: y // 2)
    assert l2l.data.MetaDataset(renamed).labels == list(range(26))
    numpy.save(tmp_path / "quickdraw" / "thing 003.npy", numpy.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"thing 003\.npy is an array of float64 \[2, 3\]"):
        sets.Quickdraw(tmp_path)


def list_of(data: Any) -> Any:
    """The same items as tensors."""
    x, y = zip(*[data[i] for i in range(len(data))], strict=True)
    return torch.utils.data.TensorDataset(torch.stack(x), torch.tensor(y))


class Shifted(sets.DescribableTextures):
    """A class of one's own, whose labels are other ones."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        x, y = super().__getitem__(index)
        return x, y + 100


def test_a_meta_data_set_knows_labels_without_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_textures(tmp_path)
    assert l2l.data.MetaDataset(Shifted(tmp_path, "test")).labels == list(range(100, 107))

    def fail(self: Any, index: int) -> Any:
        raise AssertionError(f"image {index} was read")

    monkeypatch.setattr(sets.DescribableTextures, "source", fail)
    numbers = sets.DescribableTextures(tmp_path, "test", target_transform=lambda y: y % 3)
    meta = l2l.data.MetaDataset(numbers)
    assert meta.labels_to_indices[1] == [2, 3, 8, 9]


WRITE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "CUBirds200": (
        files.write_birds,
        "images.*zenodo",
        "cubirds200/CUB_200_2011/images/003.Bird_197",
    ),
    "DescribableTextures": (
        files.write_textures,
        "images.*dtd-r1",
        "describable_textures/dtd/images/kind03",
    ),
    "FGVCAircraft": (files.write_aircraft, r"images_variant_train\.txt.*2013b\.tar\.gz", ""),
    "FGVCFungi": (files.write_fungi, r"images.*fungi_train_val\.tgz", ""),
    "Quickdraw": (files.write_drawings, r"quickdraw.*<class>\.npy", "quickdraw/thing 007.npy"),
    "VGGFlower102": (files.write_flowers, r"imagelabels\.mat.*flowers", ""),
}


@pytest.mark.parametrize("name", WRITE)
def test_what_is_missing_is_named(name: str, tmp_path: Path) -> None:
    write, message, one = WRITE[name]
    with pytest.raises(FileNotFoundError, match=f"{message}.* put it there"):
        getattr(sets, name)(tmp_path, download=True)
    if not one:
        return
    write(tmp_path)  # a class of which nothing is there would number all that follow it anew
    path = tmp_path / one
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"there are \d+ .*needed, since the splits number"):
        getattr(sets, name)(tmp_path, "test")


def test_no_image_of_a_split(tmp_path: Path) -> None:
    files.write_aircraft(tmp_path)
    base = tmp_path / "fgvc_aircraft" / "fgvc-aircraft-2013b" / "data"
    (base / "images_variant_test.txt").write_text("0000001 unheard of\n")
    with pytest.raises(ValueError, match="there are 101 variants, and 100 are needed"):
        sets.FGVCAircraft(tmp_path)
    files.write_fungi(tmp_path)
    for part in ("train", "val"):
        (tmp_path / "fgvc_fungi" / f"{part}.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(ValueError, match="there are no images of mode='test'"):
        sets.FGVCFungi(tmp_path, "test")
