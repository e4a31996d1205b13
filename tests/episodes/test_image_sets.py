"""CIFAR-FS, FC100, miniImageNet, tieredImageNet and CUB, from small files laid out as published."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_images import numpy, picture

import fastmaml as fm
from fastmaml.episodes import cifar100, published
from fastmaml.training.presets import PRESETS
from fastmaml.training.recipes import build_trainer

NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
FINE = NAMES.split()
"""The classes of CIFAR-100 in its own order."""
COARSE = [
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7),
    *(6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10),
    *(16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16),
    *(12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
]
"""The super-class of each."""

FEW: dict[str, Any] = {"ways": 5, "shots": 1, "queries": 1, "tasks": 2, "normalise": False}


def pixels(number: int, side: int) -> Any:
    return numpy.array(picture(number, (side, side)))


def write_cifar100(root: Path) -> None:
    """Two training images and a test image of each class, in the archive."""
    parts: dict[str, Any] = {"meta": {"fine_label_names": FINE}}
    for part, each in (("train", 2), ("test", 1)):
        labels = [label for label in range(100) for _ in range(each)]
        rows = [pixels(label, 32).transpose(2, 0, 1).ravel() for label in labels]
        coarse = [COARSE[label] for label in labels]
        parts[part] = {"data": numpy.stack(rows), "fine_labels": labels, "coarse_labels": coarse}
    with tarfile.open(root / cifar100.ARCHIVE, "w:gz") as archive:
        for name, value in parts.items():
            content = pickle.dumps(value, protocol=2)
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_cifar_fs(root: Path) -> None:
    """The authors' own: images and lists of names."""
    base = root / "cifar100"
    (base / "splits" / "bertinetto").mkdir(parents=True)
    held = {split: names.split() for split, names in cifar100.CIFAR_FS.items()}
    train = [name for name in FINE if name not in held["validation"] + held["test"]]
    for short, names in (("train", train), ("val", held["validation"]), ("test", held["test"])):
        (base / "splits" / "bertinetto" / f"{short}.txt").write_text("\n".join(names))
        for name in names:
            (base / "data" / name).mkdir(parents=True)
            for i in range(3):
                picture(FINE.index(name), (32, 32)).save(base / "data" / name / f"{i}.png")


def write_pickles(root: Path, stem: str) -> None:
    """Python 2's pickles of ``data`` and ``labels``; labels begin anew in each split."""
    for short, classes in (("train", 60), ("val", 20), ("test", 20)):
        labels = [label for label in range(classes) for _ in range(3)]
        data = numpy.stack([pixels(label, 32) for label in labels])
        content = pickle.dumps({"data": data, "labels": labels}, protocol=2)
        (root / f"{stem}_{short}.pickle").write_bytes(content)


def write_mini(root: Path) -> None:
    for short, classes in (("train", 64), ("val", 16), ("test", 20)):
        data = numpy.stack([pixels(i // 3, 84) for i in range(3 * classes)])
        numbers = {f"n{c:08}": [3 * c, 3 * c + 1, 3 * c + 2] for c in range(classes)}
        content = pickle.dumps({"image_data": data, "class_dict": numbers}, protocol=2)
        (root / f"mini-imagenet-cache-{short}.pkl").write_bytes(content)


def write_mini_tables(root: Path) -> None:
    """Ravi and Larochelle's tables, and pictures that are larger."""
    (root / "images").mkdir()
    first = 0
    for short, classes in (("train", 64), ("val", 16), ("test", 20)):
        lines = ["filename,label"]
        for c in range(first, first + classes):
            for i in range(2):
                picture(c, (100, 90)).save(root / "images" / f"n{c:04}{i}.jpg")
                lines.append(f"n{c:04}{i}.jpg,n{c:04}")
        (root / f"{short}.csv").write_text("\n".join(lines) + "\n")
        first += classes


def write_tiered(root: Path) -> None:
    (root / "tiered-imagenet").mkdir()
    for short, classes in (("train", 7), ("val", 6), ("test", 5)):
        encoded = []
        for i in range(3 * classes):
            file = io.BytesIO()
            picture(i // 3, (84, 84)).save(file, "png")
            encoded.append(numpy.frombuffer(file.getvalue(), "uint8"))
        labels = {
            "label_specific": numpy.repeat(numpy.arange(classes), 3),
            "label_general_str": ["x"],
        }
        for what, value in (("images_png", encoded), ("labels", labels)):
            file_of = root / "tiered-imagenet" / f"{short}_{what}.pkl"
            file_of.write_bytes(pickle.dumps(value, protocol=2))


def write_cub(root: Path) -> None:
    for c in range(200):
        place = root / "CUB_200_2011" / "images" / f"{c + 1:03}.Bird_{c}"
        place.mkdir(parents=True)
        for i in range(2):
            picture(c, (12, 9 + i)).save(place / f"{i}.jpg")


WAYS: list[tuple[Callable[..., Any], Callable[[Path], None], tuple[int, int, int], int]] = [
    (fm.episodes.cifar_fs, write_cifar100, (64, 16, 20), 32),
    (fm.episodes.cifar_fs, write_cifar_fs, (64, 16, 20), 32),
    (fm.episodes.cifar_fs, lambda root: write_pickles(root, "CIFAR_FS"), (60, 20, 20), 32),
    (fm.episodes.fc100, write_cifar100, (60, 20, 20), 32),
    (fm.episodes.fc100, lambda root: write_pickles(root, "FC100"), (60, 20, 20), 32),
    (fm.episodes.mini_imagenet, write_mini, (64, 16, 20), 84),
    (fm.episodes.mini_imagenet, write_mini_tables, (64, 16, 20), 84),
    (fm.episodes.tiered_imagenet, write_tiered, (7, 6, 5), 84),
    (fm.episodes.cub, write_cub, (100, 50, 50), 84),
]


@pytest.mark.parametrize(("reader", "write", "classes", "side"), WAYS)
def test_published_files_are_read(
    reader: Callable[..., Any],
    write: Callable[[Path], None],
    classes: tuple[int, int, int],
    side: int,
    tmp_path: Path,
) -> None:
    write(tmp_path)
    seen: set[str] = set()
    for split, count in zip(("train", "validation", "test"), classes, strict=True):
        source = reader(split, root=tmp_path, **FEW)
        assert source.classes == count
        assert not seen & set(source.class_names)
        seen |= set(source.class_names)
        episodes = source.sample()
        assert episodes.support.inputs.shape == (2, 5, 3, side, side)
    assert len(seen) == sum(classes)


def test_images_and_classes_belong_together(tmp_path: Path) -> None:
    """Of every layout whose pixels are kept, and CIFAR-FS is the same from both of its forms."""
    write_cifar100(tmp_path)
    for reader in (fm.episodes.cifar_fs, fm.episodes.fc100):
        source = reader("test", root=tmp_path, **FEW)
        support = source.sample().support
        for images in support.inputs:
            numbers = [round(float(x) * 255) for x in images[:, 0, 0, 0]]
            assert {FINE[n] for n in numbers} <= set(source.class_names)
            wanted = torch.from_numpy(pixels(numbers[0], 32)).permute(2, 0, 1)
            assert torch.equal((images[0] * 255).round().to(torch.uint8), wanted)
    whole = {
        x: set(fm.episodes.cifar_fs(x, root=tmp_path, **FEW).class_names) for x in ("train", "test")
    }
    (tmp_path / "other").mkdir()
    write_cifar_fs(tmp_path / "other")
    for split, names in whole.items():
        own = fm.episodes.cifar_fs(split, root=tmp_path / "other", **FEW)
        assert set(own.class_names) == names


def test_super_classes_of_fc100_are_in_one_split(tmp_path: Path) -> None:
    write_cifar100(tmp_path)
    kinds = {}
    for split, count in (("train", 12), ("validation", 4), ("test", 4)):
        names = fm.episodes.fc100(split, root=tmp_path, **FEW).class_names
        kinds[split] = {COARSE[FINE.index(name)] for name in names}
        assert len(kinds[split]) == count
    assert kinds["validation"] == {8, 11, 13, 16}
    assert kinds["test"] == {0, 7, 12, 14}


def test_birds_by_two_protocols(tmp_path: Path) -> None:
    write_cub(tmp_path)
    source = fm.episodes.cub("validation", root=tmp_path, **FEW)
    assert source.class_names[:2] == ("002.Bird_1", "006.Bird_5")
    other = fm.episodes.cub("validation", root=tmp_path, protocol="meta-dataset", **FEW)
    assert other.classes == 30
    (tmp_path / "CUB_200_2011" / "images" / "007.Bird_6" / "0.jpg").unlink()
    (tmp_path / "CUB_200_2011" / "images" / "007.Bird_6" / "1.jpg").unlink()
    (tmp_path / "CUB_200_2011" / "images" / "007.Bird_6").rmdir()
    with pytest.raises(ValueError, match="has 199 species and needs 200"):
        fm.episodes.cub("test", root=tmp_path, **FEW)


def test_the_archive_of_birds_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    write_cub(tmp_path / "made")
    (tmp_path / "cub").mkdir()
    with tarfile.open(tmp_path / "cub" / "CUB_200_2011.tgz", "w:gz") as archive:
        archive.add(tmp_path / "made" / "CUB_200_2011", "CUB_200_2011")
    assert fm.episodes.cub("test", root=tmp_path, **FEW).classes == 50
    assert {x.name for x in (tmp_path / "cub").iterdir()} == {"CUB_200_2011", "CUB_200_2011.tgz"}
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "CUB_200_2011.tgz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be unpacked"):
        fm.episodes.cub("test", root=tmp_path / "damaged", **FEW)


@pytest.mark.parametrize(
    ("reader", "said"),
    [
        (
            lambda root: fm.episodes.cifar_fs(root=root, download=False),
            "eb9058c3a382ffc7106e4002c42a8d85",
        ),
        (lambda root: fm.episodes.fc100(root=root, download=False), r"FC100_train\.pickle"),
        (lambda root: fm.episodes.cub(root=root, download=False), r"CUB_200_2011\.tgz"),
        (
            lambda root: fm.episodes.mini_imagenet(root=root),
            r"zenodo\.org/record/7978538/files/mini",
        ),
        (lambda root: fm.episodes.tiered_imagenet(root=root), r"train_images_png\.pkl"),
    ],
)
def test_what_is_missing_says_where_it_is(
    reader: Callable[[Path], Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=said) as caught:
        reader(tmp_path)
    assert "FASTMAML_DATA" in str(caught.value)


def test_pickles_run_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "touched",))

    with pytest.raises(ValueError, match=r"names pathlib.*which is not loaded"):
        published.read_pickle(pickle.dumps({"data": Evil()}), "a file")
    assert not (tmp_path / "touched").exists()
    array = numpy.arange(6, dtype="uint8").reshape(2, 3)
    for protocol in range(6):
        held = {"a": array, "b": [array[0, 0], 1.5], "c": array.T}
        found = published.read_pickle(pickle.dumps(held, protocol=protocol), "a file")
        assert (found["a"] == array).all()
        assert (found["c"] == array.T).all()
    older = pickle.dumps(held, protocol=2).replace(b"numpy._core", b"numpy.core")
    assert (published.read_pickle(older, "a file")["a"] == array).all()
    with pytest.raises(ValueError, match="a file is damaged"):
        published.read_pickle(pickle.dumps(held)[:-9], "a file")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write"),
    [("cifar-fs", write_cifar100), ("fc100", write_cifar100), ("mini-imagenet", write_mini),
     ("tiered-imagenet", write_tiered), ("cub", write_cub)],
)  # fmt: skip
def test_presets_run(name: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    """The paper's setting, with fewer iterations and smaller sets."""
    write(tmp_path)
    preset = PRESETS[name]
    assert (preset.inner_lr, preset.inner_steps, preset.eval_steps) == (0.01, 5, 10)
    assert preset.iterations == 60_000
    small: dict[str, Any] = {"iterations": 1, "queries": 1, "tasks": 1, "filters": 4}
    small |= {"test_episodes": 2, "evaluate_every": 0, "plots": False, "executor": "eager"}
    small |= {"data": str(tmp_path), "out": str(tmp_path / "run")}
    found = build_trainer(preset.updated(small, "the test")).fit()
    assert 0 <= found.as_dict()["accuracy"] <= 1
