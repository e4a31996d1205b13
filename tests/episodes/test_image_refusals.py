"""What `fm.episodes.images` refuses, each in a line that names it and the way out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drawn_images import Image, numpy, picture, write_classes

import fastmaml as fm
from fastmaml.episodes import pixel_store

SIZES: dict[str, Any] = {"ways": 2, "shots": 2, "queries": 1, "tasks": 3}
Change = Callable[[Path], object]


def cut(place: Path) -> None:
    file = place / "class_03" / "1.png"
    file.write_bytes(file.read_bytes()[:100])


def sixteen_bits(place: Path) -> None:
    Image.fromarray(numpy.full((8, 8), 40_000, "uint16")).save(place / "class_00" / "0.png")


def emptied(place: Path) -> None:
    for file in (place / "class_05").iterdir():
        file.unlink()


def nested(place: Path) -> None:
    (place / "class_02" / "more").mkdir()


CASES: list[tuple[Change, dict[str, Any], str]] = [
    (cut, {}, r"class_03/1\.png cannot be read: .*Replace or remove that file"),
    (
        lambda x: (x / "class_01" / "0.png").write_bytes(b"no image"),
        {},
        r"class_01/0\.png cannot be read: it is no image that Pillow knows",
    ),
    (sixteen_bits, {}, r"class_00/0\.png has pixels of the mode I;16 \(more than 8 bits\)"),
    (emptied, {}, "class_05 has no images"),
    (nested, {}, "more is a folder in the folder of the class class_02"),
    (
        lambda x: (x / "class_07" / "0.png").unlink(),
        {"shots": 5},
        r"class 'class_07' of .* has 5 examples, but an episode takes shots=5 \+ queries=1 = 6",
    ),
    (
        lambda x: None,
        {"ways": 3, "split": "test"},
        r"ways=3, but the split 'test' .* has 2 classes",
    ),
    (lambda x: None, {"ways": 13}, r"ways=13, but .* has 12 classes"),
    (
        lambda x: picture(1, (9, 8)).save(x / "class_00" / "0.png"),
        {},
        "differ in size: class_00/0.png has 9x8 pixels and class_00/1.png 8x8. Give size=",
    ),
    (lambda x: picture(1).save(x / "class_00 " / "0.png"), {}, "read alike"),
    (lambda x: None, {"split": "dev"}, "split='dev' is unknown"),
    (lambda x: None, {"splits": (1, 0, 0)}, "give split='train'"),
    (lambda x: None, {"splits": (1, 0, 0), "split": "test"}, "split='test' of .* has no classes"),
    (lambda x: None, {"splits": (0.5, 0.2), "split": "test"}, "which sum to 1"),
    (
        lambda x: None,
        {"splits": {"train": ["class_00"], "test": ["class_00"]}, "split": "test"},
        "class 'class_00' in the split train and in test",
    ),
    (
        lambda x: None,
        {"splits": {"test": ["class_99"]}, "split": "test"},
        "names 'class_99' in the split test, which is no class of the data",
    ),
    (lambda x: None, {"splits": {"dev": []}, "split": "test"}, "has the split 'dev'"),
    (
        lambda x: None,
        {"splits": {"test": "class_03"}, "split": "test"},
        r"'class_03' for the split test, which is a class .* give a list, \['class_03'\]",
    ),
    (lambda x: None, {"cache": __file__}, r"cache='.*': .*\.py is a file; give a folder"),
    (lambda x: None, {"cache": __file__ + "/in"}, r"cache='.*/in': .*\.py is a file; give a fold"),
    (lambda x: None, {"splits": "no.json", "split": "test"}, "splits='no.json': there is no such"),
    (lambda x: None, {"augment": "flap"}, "augment='flap' has 'flap': choose of flip, crop"),
    (lambda x: None, {"channels": 4}, "channels=4: give 1"),
    (lambda x: None, {"size": 0}, "size=0: give positive numbers"),
    (lambda x: None, {"fit": "pad"}, "fit='pad' is unknown"),
    (lambda x: None, {"normalise": (0.5, 0.0)}, r"normalise=\(0.5, 0.0\): give"),
    (lambda x: None, {"size": (8, 6), "rotations": True}, "rotations=True turns"),
]


@pytest.mark.parametrize(("change", "settings", "said"), CASES)
def test_bad_input_is_named(
    change: Change, settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    photos = write_classes(tmp_path / "photos")
    (photos / "class_00 ").mkdir() if said == "read alike" else None
    change(photos)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as caught:
        fm.episodes.images(photos, **SIZES | settings)
    assert "\n" not in str(caught.value)


def test_places_without_images(tmp_path: Path) -> None:
    for name, said in (("none", "there is no"), ("empty", "has no images")):
        if name == "empty":
            (tmp_path / name).mkdir()
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            fm.episodes.images(tmp_path / name, **SIZES)
    picture(1).save(tmp_path / "empty" / "1.png")
    with (
        pytest.warns(UserWarning, match=r"1\.png was left out"),
        pytest.raises(ValueError, match="it needs a folder with images for each class"),
    ):
        fm.episodes.images(tmp_path / "empty", **SIZES)


def test_a_class_in_two_splits(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 3)
    write_classes(tmp_path / "test", 3, first=2)
    with pytest.raises(ValueError, match="'class_02' in the split train and in test"):
        fm.episodes.images(tmp_path, split="test", **SIZES)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["file,label", "a.png,a"], "has no column 'path', but file, label"),
        (["path,label", "a.png,a", "a.png,a"], r"lines 2 and 3 of .* name a\.png"),
        (["path,label", "a.png,a", "./a.png,b"], r"lines 2 and 3 of .* name \./a\.png"),
        (
            ["path,label,split", "a.png,a,train", "d/../a.png,b,test"],
            r"lines 2 and 3 of .* name d/\.\./a\.png",
        ),
        (["path,label", "b.png,a"], r"names b\.png, but there is no file"),
        (["path,label", "a.png,"], "line 2 of .* has no path or no label"),
        (["path,label,split", "a.png,a,dev"], "line 2 of .* has the split 'dev'"),
        (["path,label,split", "a.png,a,train", "c.png,a,test"], "'a' in the split train and in"),
        (["path,label"], "has no images"),
    ],
)
def test_bad_tables(lines: list[str], said: str, tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    picture(2).save(tmp_path / "c.png")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        fm.episodes.images(tmp_path / "table.csv", **SIZES, split="train")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "class,split\nk\xe9a,test\n"), ("val.txt", "k\xe9a\n")],
)
def test_lists_in_other_encodings_are_named(name: str, content: str, tmp_path: Path) -> None:
    photos = write_classes(tmp_path / "photos", 3)
    file = tmp_path / name
    file.write_bytes(content.encode("latin-1"))
    splits: Any = {"test": file} if name == "val.txt" else file
    with pytest.raises(ValueError, match=rf"{name} is not in UTF-8 \(byte 0xe9\)"):
        fm.episodes.image_splits(photos, splits)
    file.write_bytes(b"path,label\nk\xe9a.png,a\n")
    table = file.rename(tmp_path / "images.csv")
    with pytest.raises(ValueError, match=r"images\.csv is not in UTF-8 \(byte 0xe9\)"):
        fm.episodes.image_splits(table)


def test_other_files_are_told_and_left_out(tmp_path: Path) -> None:
    photos = write_classes(tmp_path / "photos", 3)
    for name in (".DS_Store", "Thumbs.db"):
        (photos / "class_00" / name).write_text("")
    fm.episodes.images(photos, **SIZES)  # those of systems without a word
    (photos / "class_00" / "notes.txt").write_text("")
    (photos / "read.me").write_text("")
    with pytest.warns(UserWarning, match="and 1 more files were left out"):
        source = fm.episodes.images(photos, **SIZES)
    assert source.sample().tasks == 3


def test_more_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_classes(tmp_path / "photos")
    size = 72 * 3 * 64
    monkeypatch.setattr(pixel_store, "_free_memory", lambda: 2 * size - 1)
    with pytest.raises(ValueError, match=r"half of the memory that is free .* cache=FOLD"):
        fm.episodes.images(photos, **SIZES, normalise=False)
    found = fm.episodes.images(photos, **SIZES, normalise=False, cache=tmp_path / "cache")
    assert found.sample().tasks == 3
    monkeypatch.setattr(pixel_store, "_free_memory", lambda: 2 * size)
    fm.episodes.images(photos, **SIZES, normalise=False)
