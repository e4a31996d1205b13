"""Data sets beside learn2learn's, from the same small files, where it can be imported."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import image_files as files
import numpy
import pytest
import torch

import fastmaml.compat.learn2learn as own

INSTALL = "`make peers` makes an environment that has it"


def write_birds(root: Path, peer: Any) -> None:
    """Under the names of the published folders, with files that are in ImageNet, too."""
    module = peer.vision.datasets.cu_birds200
    base = root / "cubirds200" / "CUB_200_2011"
    names = [f"{kind}/{i}.jpg" for kinds in module.SPLITS.values() for kind in kinds for i in "ab"]
    for mode, kinds in module.SPLITS.items():
        names += [f"{kinds[0]}/{file}" for file in sorted(module.IMAGENET_DUPLICATES[mode])[:2]]
    for i, name in enumerate(names):
        files.write_picture(base / "images" / name, i)
    (base / "images.txt").write_text("".join(f"{i} {n}\n" for i, n in enumerate(names)))
    boxes = "".join(f"{i} {i % 3}.0 1.0 4.0 3.0\n" for i in range(len(names)))
    (base / "bounding_boxes.txt").write_text(boxes)


def write_textures(root: Path, peer: Any) -> None:
    base = root / "describable_textures" / "dtd" / "images"
    for kinds in peer.vision.datasets.describable_textures.SPLITS.values():
        for i, kind in enumerate(kinds):
            for k in range(2):
                files.write_picture(base / kind / f"{kind}_{k}.jpg", 2 * i + k)


def write_drawings(root: Path, peer: Any) -> None:
    (root / "quickdraw").mkdir()
    for kinds in peer.vision.datasets.quickdraw.SPLITS.values():
        for i, kind in enumerate(kinds):
            drawings = numpy.full((1 + i % 3, 784), i % 251) + numpy.arange(1 + i % 3)[:, None]
            numpy.save(root / "quickdraw" / f"{kind}.npy", drawings.astype("uint8"))


SETS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "CUBirds200": (write_birds, {}),
    "CUBirds200, all images": (write_birds, {"include_imagenet_duplicates": True}),
    "CUBirds200, cropped": (write_birds, {"bounding_box_crop": True}),
    "DescribableTextures": (write_textures, {}),
    "FGVCFungi": (lambda root, _: files.write_fungi(root), {}),
    "Quickdraw": (write_drawings, {}),
    "VGGFlower102": (lambda root, _: files.write_flowers(root), {}),
    "MiniImagenet": (lambda root, _: files.write_benchmarks(root), {}),
    "TieredImagenet": (lambda root, _: files.write_benchmarks(root), {}),
    "CIFARFS": (lambda root, _: files.write_benchmarks(root), {}),
    "FC100": (lambda root, _: files.write_benchmarks(root), {}),
}
"""Without FGVCAircraft, whose files learn2learn rewrites while it downloads them."""

MODES = ("train", "validation", "test")


@pytest.fixture
def peer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("learn2learn", reason=INSTALL, exc_type=ImportError)


def items(found: Any) -> list[tuple[int, tuple[int, ...], bytes]]:
    """Labels, shapes and pixels, in order: learn2learn takes files as the disk lists them."""
    pairs = [(numpy.asarray(x), int(label)) for x, label in (found[i] for i in range(len(found)))]
    return sorted((label, x.shape, x.astype("float64").tobytes()) for x, label in pairs)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.filterwarnings("ignore")  # what Pillow and numpy say of the peer's way with them
def test_the_same_items_and_labels(peer: Any, name: str, tmp_path: Path) -> None:
    """Pictures as a transform sees them, in every split; classes with as many examples each."""
    write, options = SETS[name]
    write(tmp_path, peer)
    for mode in MODES:
        sets = [
            getattr(l2l.vision.datasets, name.split(",")[0])(
                root=str(tmp_path), mode=mode, transform=numpy.asarray, **options
            )
            for l2l in (own, peer)
        ]
        assert items(sets[0]) == items(sets[1]) != []
        books = [l2l.data.MetaDataset(x) for l2l, x in zip((own, peer), sets, strict=True)]
        ours, theirs = ({k: len(v) for k, v in b.labels_to_indices.items()} for b in books)
        assert ours == theirs


@pytest.mark.parametrize("name", ["mini-imagenet", "tiered-imagenet", "cifarfs", "fc100"])
@pytest.mark.filterwarnings("ignore")
def test_the_same_tasks_of_benchmarks(peer: Any, name: str, tmp_path: Path) -> None:
    files.write_benchmarks(tmp_path)
    drawn = []
    for l2l in (own, peer):
        tasksets = l2l.vision.benchmarks.get_tasksets(
            name, train_ways=2, train_samples=2, test_ways=2, test_samples=2, root=str(tmp_path)
        )
        random.seed(3)
        drawn.append([task.sample() for task in tasksets for _ in range(3)])
    for (x, y), (u, v) in zip(*drawn, strict=True):
        torch.testing.assert_close(x.double(), u.double(), rtol=1e-6, atol=1e-6)
        assert y.tolist() == v.tolist()
