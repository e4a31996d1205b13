"""Omniglot: its splits, and every way in which its files can be found, fetched or spoiled."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from places import data_beside
from torch import Tensor

from fastmaml.episodes import EpisodeSampler, omniglot
from fastmaml.episodes.download import fetch
from fastmaml.episodes.omniglot_images import CHARACTERS, MD5, PARTS, read_archive, read_folder

numpy = pytest.importorskip("numpy")
image = pytest.importorskip("PIL.Image")


def drawing(number: int) -> Tensor:
    """A 7x7 drawing that holds a number, and a corner by which one sees how it is turned."""
    bits = [number >> i & 1 for i in range(16)]
    cells = torch.zeros(7, 7, dtype=torch.uint8)
    cells[0, 0] = 1
    cells[1:5, 1:5] = torch.tensor(bits).view(4, 4)
    return cells


def numbers(images: Tensor) -> list[tuple[int, int]]:
    """The numbers in images [n, 1, 28, 28] and by how many quarters each is turned."""
    assert images.dtype == torch.float32
    cells = images[:, 0, 2::4, 2::4]
    # Every 4x4 block is of one colour: nothing was lost or moved on the way.
    assert torch.equal(cells.repeat_interleave(4, 1).repeat_interleave(4, 2), images[:, 0])
    found = []
    for one in cells.long():
        turns = next(k for k in range(4) if one.rot90(-k)[0, 0] == 1)
        inside = one.rot90(-turns)[1:5, 1:5].flatten()
        found.append((int((inside << torch.arange(16)).sum()), turns))
    return found


def write_folders(root: Path, background: int, evaluation: int, drawings: int) -> None:
    """The official layout, black ink on white paper of 105x105 pixels.

    The i-th drawing of all holds the number i; an alphabet has two characters.
    """
    paths = [
        root / part / f"Alphabet_{letter}{i // 2:03}" / f"character{i % 2 + 1:02}" / f"{j:04}.png"
        for part, count, letter in zip(PARTS, (background, evaluation), "BE", strict=True)
        for i in range(count)
        for j in range(drawings)
    ]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        paper = (1 - drawing(number)).mul(255).numpy()
        picture = image.fromarray(paper).resize((105, 105), image.Resampling.NEAREST)
        picture.convert("1").save(path)


def everything(sampler: EpisodeSampler, drawings: int) -> set[tuple[int, int]]:
    """The numbers and turns of every class: one episode with all of them."""
    assert (sampler.ways, sampler.shots + sampler.queries) == (sampler.classes, drawings)
    episodes = sampler.sample()
    support = numbers(episodes.support.inputs[0])
    query = numbers(episodes.query.inputs[0])
    assert not set(support) & set(query)
    classes = [(number // drawings, turns) for number, turns in support]
    assert len(set(classes)) == sampler.classes
    return set(classes)


def test_splits_by_alphabet_from_the_official_folders(tmp_path):
    write_folders(tmp_path, background=6, evaluation=4, drawings=4)

    def turned(characters, turns):
        return {(i, k) for i in characters for k in range(turns)}

    for options, expected in [
        ({}, turned(range(6), 4)),
        ({"rotations": False}, turned(range(6), 1)),
        ({"validation_alphabets": 1}, turned(range(4), 4)),
        ({"validation_alphabets": 1, "split": "validation"}, turned([4, 5], 1)),
        ({"split": "test"}, turned(range(6, 10), 1)),
        ({"split": "test", "rotations": True}, turned(range(6, 10), 4)),
    ]:
        with pytest.warns(UserWarning, match="incomplete: it has .*6, 'images_evaluation': 4"):
            sampler = omniglot(len(expected), 1, 3, 1, root=tmp_path, download=False, **options)
        assert everything(sampler, 4) == expected
    # An incomplete data set is not kept, for the rest may still come.
    assert sorted(path.name for path in tmp_path.iterdir()) == list(PARTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "random"}, "divides all 1,623 characters, but the data has 3"),
        ({"split": "validation"}, "split='validation' is empty"),
        ({"validation_alphabets": 1}, "validation_alphabets=1: the background set has 1 alphabets"),
        ({"ways": 99}, "ways=99, but the data has 8 classes"),
    ],
)
@pytest.mark.filterwarnings("ignore:the Omniglot in .* is incomplete")
def test_what_the_data_cannot_give_is_refused(tmp_path, options, message):
    write_folders(tmp_path, background=2, evaluation=1, drawings=2)
    with pytest.raises(ValueError, match=message):
        omniglot(root=tmp_path, download=False, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "split='dev' is unknown; choose one of train, validation, test"),
        ({"protocol": "vinyals"}, "'vinyals' is unknown; choose one of alphabets, random"),
        ({"protocol": "random", "validation_alphabets": 5}, "with protocol='alphabets' only"),
    ],
)
def test_unknown_choices_are_refused_before_any_file_is_read(options, message):
    with pytest.raises(ValueError, match=message):
        omniglot(root="nowhere.npz", **options)


@pytest.mark.slow
def test_a_complete_data_set_is_kept_as_one_file_and_split_at_random(tmp_path, monkeypatch):
    write_folders(tmp_path / "omniglot", *CHARACTERS.values(), drawings=2)

    def classes(ways, **options):
        return everything(omniglot(ways, 1, 1, 1, rotations=False, **options), 2)

    first = classes(964, root=tmp_path)
    kept = tmp_path / "omniglot" / "omniglot28.npz"
    monkeypatch.setenv("FASTMAML_DATA", str(kept))  # from here on, the pictures are not read
    assert first == classes(964) == {(i, 0) for i in range(964)}
    assert classes(659, split="test") == {(i, 0) for i in range(964, 1623)}
    assert len(list(kept.parent.iterdir())) == 3  # nothing temporary stays behind

    parts = [
        classes(ways, protocol="random", split=split)
        for ways, split in ((1100, "train"), (100, "validation"), (423, "test"))
    ]
    assert set.union(*parts) == {(i, 0) for i in range(1623)}  # and so they are disjoint
    background = [sum(i < 964 for i, _ in part) / len(part) for part in parts]
    assert background == pytest.approx([964 / 1623] * 3, abs=0.12)
    assert parts[2] == classes(423, protocol="random", split="test", seed=7)


def test_an_archive_reads_like_its_folder(tmp_path):
    write_folders(tmp_path, background=2, evaluation=1, drawings=2)
    path, folder = tmp_path / "images_background.zip", tmp_path / "images_background"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*.png"):
            archive.write(file, file.relative_to(tmp_path))
        archive.writestr("__MACOSX/images_background/Alphabet_B000/character01/._0.png", b"")
        archive.writestr("images_background/Alphabet_B000/character01/._0.png", b"")
    left = read_archive(path, hashlib.md5(path.read_bytes()).hexdigest())
    right = read_folder(folder)
    assert left.names == right.names == ("Alphabet_B000/character01", "Alphabet_B000/character02")
    assert left.images.shape == (2, 2, 28, 28)
    assert torch.equal(left.images, right.images)
    next(folder.rglob("*.png")).unlink()
    with pytest.raises(ValueError, match="has 1 or 2 drawings a character"):
        read_folder(folder)
    with pytest.raises(ValueError, match="has no drawings"):
        read_folder(tmp_path / "nothing")


@pytest.mark.parametrize("damage", ["another format", "cut short", "other arrays", "other shapes"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "omniglot28.npz"
    names = "images" if damage == "other arrays" else "background"
    width = 97 if damage == "other shapes" else 98
    numpy.savez(path, **{names: numpy.zeros((1, 20, width), "uint8")}, background_names=["a/b"])
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-30])
    if damage == "another format":
        path.write_bytes(b"ink")
    for root in (tmp_path, path):
        with pytest.raises(ValueError, match=r"omniglot28\.npz is (no \.npz|damaged)"):
            omniglot(root=root, download=False)


def test_missing_data_says_where_to_put_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"put there omniglot28\.npz, or the folders"):
        omniglot(root=tmp_path, download=False)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*gone\.npz"):
        omniglot(root=tmp_path / "gone.npz")


@pytest.mark.parametrize("module", ["numpy", "PIL.Image"])
def test_a_missing_extra_is_named(tmp_path, module, monkeypatch):
    write_folders(tmp_path, background=2, evaluation=1, drawings=2)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'fastmaml\[vision\]'"):
        omniglot(root=tmp_path)


def test_a_download_is_whole_and_verified_or_not_there(tmp_path):
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    source.write_bytes(b"ink" * 1000)
    md5 = hashlib.md5(source.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"md5 is {md5} and should be 00"):
        fetch(source.as_uri(), target, "00")
    with pytest.raises(ConnectionError, match=r"put it at .*target by hand"):
        fetch((tmp_path / "gone").as_uri(), target, md5)
    assert not target.parent.exists()
    fetch(source.as_uri(), target, md5)
    assert target.read_bytes() == source.read_bytes()
    assert list(target.parent.iterdir()) == [target]


def test_omniglot_offline_or_from_a_wrong_mirror_leaves_nothing_behind(tmp_path):
    root, mirror = tmp_path / "data", tmp_path / "mirror"
    with pytest.raises(ConnectionError, match=r"cannot download .*put it at .*images_background"):
        omniglot(root=root, url="http://127.0.0.1:9")
    mirror.mkdir()
    for name in MD5:
        (mirror / name).write_bytes(b"another file")
    with pytest.raises(ValueError, match=r"images_background\.zip is damaged.*should be 68d2efa1"):
        omniglot(root=root, url=mirror.as_uri())
    assert not root.exists()
    with pytest.raises(ValueError, match="should be 68d2efa1"):  # put there by hand, but wrong
        omniglot(root=mirror, download=False)


def test_the_real_omniglot():
    root = data_beside("omniglot28.npz")
    train, test = (omniglot(ways=659, tasks=1, split=s, root=root) for s in ("train", "test"))
    assert (train.classes, test.classes) == (964 * 4, 659)
    images = test.sample().support.inputs[0]
    assert images.shape == (659, 1, 28, 28)
    assert set(images.unique().tolist()) == {0, 1}
    assert 0.05 < images.mean() < 0.15  # ink is 1, and there is little of it
    assert images.flatten(1).any(1).all()
    assert omniglot(root=root, protocol="random").classes == 1100 * 4
