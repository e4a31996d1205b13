"""`fm.episodes.images`: what is read, who is in which split, and how a stream goes on."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_images import Image, numpy, picture, write_classes

import fastmaml as fm

SIZES: dict[str, Any] = {"ways": 2, "shots": 2, "queries": 1, "tasks": 3}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "photos")


def bytes_of(inputs: torch.Tensor) -> torch.Tensor:
    """The pixels as they lie in files, of normalise=False."""
    return (inputs * 255).round().to(torch.uint8)


def pixels(number: int) -> torch.Tensor:
    """Those of a picture, uint8 ``[3, 8, 8]``."""
    return torch.from_numpy(numpy.array(picture(number))).permute(2, 0, 1)


def test_every_example_is_a_file_of_its_class(photos: Path) -> None:
    source = fm.episodes.images(photos, **SIZES, normalise=False)
    assert source.shape == (3, 8, 8)
    assert len(source.class_names) == source.classes == 12
    for _ in range(5):
        episodes = source.sample()
        both = torch.cat([episodes.support.inputs, episodes.query.inputs], 1)
        targets = torch.cat([episodes.support.targets, episodes.query.targets], 1)
        assert both.shape == (3, 2 * 3, 3, 8, 8)
        assert both.dtype == torch.float32
        for images, labels in zip(bytes_of(both), targets, strict=True):
            numbers = images[:, 0, 0, 0].tolist()
            assert len(set(numbers)) == 6
            classes = {
                (number // 6, label) for number, label in zip(numbers, labels.tolist(), strict=True)
            }
            assert len(classes) == 2
            for number, image in zip(numbers, images, strict=True):
                assert torch.equal(image, pixels(number))


def test_fractions_never_overlap_and_hang_on_names_alone(photos: Path, tmp_path: Path) -> None:
    splits = fm.episodes.image_splits(photos)
    sizes = {split: len(names) for split, names in splits.items()}
    assert sizes == {"train": 8, "validation": 2, "test": 2}
    everyone = [name for names in splits.values() for name in names]
    assert sorted(everyone) == [f"class_{c:02}" for c in range(12)]
    assert fm.episodes.image_splits(photos, splits_seed=1) != splits
    other = write_classes(tmp_path / "elsewhere", images=1)
    assert fm.episodes.image_splits(other) == splits
    for split, names in splits.items():
        source = fm.episodes.images(photos, split=split, **SIZES)
        assert source.class_names == tuple(names)


def test_the_default_fractions_leave_what_the_docs_say(tmp_path: Path) -> None:
    for classes, validation, test in ((22, 4, 4), (23, 4, 5), (28, 4, 6), (29, 5, 6)):
        photos = write_classes(tmp_path / str(classes), classes, images=1)
        found = fm.episodes.image_splits(photos)
        assert (len(found["validation"]), len(found["test"])) == (validation, test)


def test_splits_are_named_in_four_ways(photos: Path, tmp_path: Path) -> None:
    names = [f"class_{c:02}" for c in range(12)]
    wanted = {"train": names[:8], "validation": names[8:10], "test": names[10:]}
    (tmp_path / "splits.json").write_text(json.dumps(wanted))
    lines = [f"{name},{split}" for split, of in wanted.items() for name in of]
    (tmp_path / "splits.csv").write_text("\n".join(["class,split", *lines]))
    (tmp_path / "lists").mkdir()
    for short, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        (tmp_path / "lists" / f"{short}.txt").write_text("\n".join(wanted[split]) + "\n")
    given: list[Any] = [
        *(tmp_path / name for name in ("splits.json", "splits.csv", "lists")),
        {"validation": names[8:10], "test": tmp_path / "lists" / "test.txt"},
    ]
    for splits in given:
        assert fm.episodes.image_splits(photos, splits) == wanted


def test_names_in_lists_may_be_written_otherwise(tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", 2)
    on_disk, in_list = (unicodedata.normalize(form, "k\u00e9a") for form in ("NFD", "NFC"))
    (tmp_path / "photos" / "class_00").rename(tmp_path / "photos" / on_disk)
    assert on_disk != in_list
    found = fm.episodes.image_splits(tmp_path / "photos", {"test": [in_list]})
    assert found == {"train": ["class_01"], "validation": [], "test": [on_disk]}
    one = fm.episodes.images(
        tmp_path / "photos", split="test", splits={"test": [in_list]}, **SIZES | {"ways": 1}
    )
    assert one.class_names == (on_disk,)
    with pytest.raises(ValueError, match="in the split train and in test"):
        fm.episodes.image_splits(tmp_path / "photos", {"train": [on_disk], "test": [in_list]})


def test_folders_of_splits_and_tables(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "val", "test")):
        write_classes(tmp_path / "data" / split, 3, first=3 * i)
    splits = fm.episodes.image_splits(tmp_path / "data")
    assert splits["validation"] == ["class_03", "class_04", "class_05"]
    rows = [
        f"data/{split}/class_{3 * i + c:02}/{k}.png,bird {3 * i + c},{split}"
        for i, split in enumerate(("train", "val", "test"))
        for c in range(3)
        for k in range(6)
    ]
    (tmp_path / "birds.csv").write_text("\n".join(["path,label,split", *rows]))
    found = fm.episodes.images(tmp_path / "birds.csv", split="test", **SIZES, normalise=False)
    assert found.class_names == ("bird 6", "bird 7", "bird 8")
    by_folder = fm.episodes.images(tmp_path / "data", split="test", **SIZES, normalise=False)
    assert torch.equal(found.sample().query.inputs, by_folder.sample().query.inputs)


def test_images_are_normalised_by_the_training_classes(photos: Path) -> None:
    train = fm.episodes.images(photos, split="train", **SIZES)
    test = fm.episodes.images(photos, split="test", **SIZES)
    raw = fm.episodes.images(photos, split="test", **SIZES, normalise=False)
    every = torch.stack(
        [
            torch.from_numpy(numpy.array(Image.open(file))).permute(2, 0, 1)
            for name in train.class_names
            for file in sorted((photos / name).iterdir())
        ]
    ).double()
    mean, std = every.mean((0, 2, 3)) / 255, every.std((0, 2, 3), correction=0) / 255
    assert test.normalisation == train.normalisation
    assert test.normalisation is not None
    torch.testing.assert_close(torch.tensor(test.normalisation.mean).double(), mean)
    torch.testing.assert_close(torch.tensor(test.normalisation.std).double(), std)
    wanted = (raw.sample().support.inputs.double() - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(test.sample().support.inputs.double(), wanted, rtol=1e-5, atol=1e-5)
    given = fm.episodes.images(photos, split="test", **SIZES, normalise=(0.5, (0.1, 0.2, 0.4)))
    again = fm.episodes.images(photos, split="test", **SIZES, normalise=False).sample()
    scale = torch.tensor([0.1, 0.2, 0.4])[:, None, None]
    expected = (again.query.inputs - 0.5) / scale
    torch.testing.assert_close(given.sample().query.inputs, expected, rtol=1e-5, atol=1e-5)


def test_sizes_colours_and_orientation(tmp_path: Path) -> None:
    wide = numpy.zeros((10, 20), "uint8")
    wide[:, :5] = 255  # white at the left, cut off by a crop
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(wide).save(tmp_path / name / f"{i}.png")
    cropped = fm.episodes.images(tmp_path, **SIZES, size=10, normalise=False)
    assert cropped.shape == (1, 10, 10)
    assert cropped.sample().support.inputs.max() == 0
    stretched = fm.episodes.images(
        tmp_path, **SIZES, size=(10, 10), fit="stretch", channels=3, normalise=False
    )
    images = stretched.sample().support.inputs
    assert images.shape[2:] == (3, 10, 10)
    assert images[..., 0].min() > 0.9
    glyph = Image.new("RGBA", (20, 10), (0, 0, 0, 0))  # black and seen through: white
    glyph.putpixel((0, 0), (0, 0, 0, 255))
    glyph.save(tmp_path / "a" / "0.png")
    turned = Image.fromarray(numpy.repeat(wide.T[..., None], 3, -1))  # 10 wide, on its side
    orientation = Image.Exif()
    orientation[0x0112] = 6
    turned.save(tmp_path / "a" / "1.jpg", exif=orientation)
    found = fm.episodes.images(
        tmp_path,
        ways=1,
        shots=3,
        queries=1,
        tasks=1,
        normalise=False,
        splits={"train": ["a"]},
        split="train",
    )
    assert found.shape == (3, 10, 20)
    one = found.sample()
    images = torch.cat([one.support.inputs[0], one.query.inputs[0]])
    means = sorted(round(float(x), 2) for x in images.mean((1, 2, 3)))
    assert means[:3] == pytest.approx([0.25] * 3, abs=0.02)
    assert means[3] == pytest.approx(199 / 200, abs=0.01)


def test_rotations_are_classes_of_their_own(photos: Path) -> None:
    sizes = SIZES | {"ways": 48}
    source = fm.episodes.images(photos, **sizes, rotations=True, normalise=False)
    episodes = source.sample()
    first = bytes_of(episodes.support.inputs[0])[::2]  # one image of each of 48 classes
    files = {
        (number, turn): torch.from_numpy(numpy.array(picture(number)))
        .permute(2, 0, 1)
        .rot90(turn, (1, 2))
        for number in range(72)
        for turn in range(4)
    }
    found = {
        (number // 6, turn)
        for image in first
        for (number, turn), wanted in files.items()
        if torch.equal(image, wanted)
    }
    assert len(found) == 48


@pytest.mark.parametrize("augment", ["flip,crop,jitter,rotate", "function", None])
def test_a_resumed_stream_is_bit_identical(photos: Path, augment: str | None) -> None:
    def noisy(image: torch.Tensor) -> torch.Tensor:
        return image ^ torch.randint(0, 256, image.shape, dtype=torch.uint8)

    settings = SIZES | {"augment": noisy if augment == "function" else augment, "split": "train"}
    source = fm.episodes.images(photos, **settings)
    source.sample()
    state = source.state_dict()
    torch.manual_seed(1)
    wanted = [source.sample() for _ in range(3)]
    other = fm.episodes.images(photos, **settings, seed=5)
    other.load_state_dict(state)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    for one in wanted:
        again = other.sample()
        assert torch.equal(one.support.inputs, again.support.inputs)
        assert torch.equal(one.query.inputs, again.query.inputs)
        assert torch.equal(one.query.targets, again.query.targets)
    assert torch.equal(torch.get_rng_state(), before)  # the program's own draws go on undisturbed


def test_a_file_in_a_folder_is_what_memory_is(photos: Path, tmp_path: Path) -> None:
    settings = SIZES | {"split": "test", "augment": "flip"}
    memory = fm.episodes.images(photos, **settings)
    cache = tmp_path / "cache"
    for _ in range(2):  # made, and read again
        mapped = fm.episodes.images(photos, **settings, cache=cache)
        files = sorted(cache.iterdir())
        assert [file.suffix for file in files] == [".json", ".uint8"]
        assert files[1].stat().st_size == 72 * 3 * 64
        mapped.load_state_dict(memory.state_dict())
        for _ in range(3):
            a, b = memory.sample(), mapped.sample()
            assert torch.equal(a.support.inputs, b.support.inputs)
            assert torch.equal(a.query.inputs, b.query.inputs)
    times = [file.stat().st_mtime_ns for file in files]
    fm.episodes.images(photos, **settings | {"split": "train"}, cache=cache)
    assert [file.stat().st_mtime_ns for file in sorted(cache.iterdir())] == times
    files[1].unlink()  # it is still mapped
    files[1].write_bytes(b"cut off")
    again = fm.episodes.images(photos, **settings, cache=cache)
    again.load_state_dict(mapped.state_dict())
    assert torch.equal(again.sample().query.inputs, mapped.sample().query.inputs)
    for damaged in ("", "[]", '{"a": 1}', '["xy"]', "[1]"):
        files[0].write_text(damaged)
        again = fm.episodes.images(photos, **settings, cache=cache)
        again.load_state_dict(mapped.state_dict())
    picture(200).save(photos / "class_03" / "0.png")
    changed = fm.episodes.images(photos, **settings, cache=cache)
    assert len(list(cache.iterdir())) == 2  # the old one is gone
    assert changed.sample().support.inputs.shape == (3, 4, 3, 8, 8)


def test_a_changed_folder_is_refused_on_resume(photos: Path, tmp_path: Path) -> None:
    settings = SIZES | {"split": "train"}
    source = fm.episodes.images(photos, **settings)
    state = source.state_dict()
    file = photos / source.class_names[0] / "0.png"
    os.utime(file, (1, 1))  # copied to another machine
    fm.episodes.images(photos, **settings).load_state_dict(state)
    fm.episodes.images(photos, **settings | {"shots": 1}).load_state_dict(state)
    fm.episodes.images(photos, **settings | {"split": "test"}).check_trained(state)
    picture(250).save(file)
    with pytest.raises(ValueError, match=r"photos has changed since this state was saved"):
        fm.episodes.images(photos, **settings).load_state_dict(state)
    held_out = settings | {"split": "test"}
    with pytest.raises(ValueError, match="other training images than this run had"):
        fm.episodes.images(photos, **held_out).check_trained(state)
    with pytest.raises(ValueError, match="other training images than this run had"):
        fm.episodes.images(photos, **held_out, cache=tmp_path / "cache").check_trained(state)
    fm.episodes.images(photos, **held_out, normalise=(0.5, 0.2)).check_trained(state)
    write_classes(photos, 3, first=20)
    with pytest.raises(ValueError, match="other training classes than this run had"):
        fm.episodes.images(photos, **settings | {"split": "test"}).check_trained(state)


def test_meta_training_on_images_of_a_folder(photos: Path) -> None:
    torch.manual_seed(0)
    source = fm.episodes.images(photos, split="train", augment="flip", **SIZES)
    maml = fm.MAML(
        fm.models.conv4(2, 3, 4, image_size=8),
        lr=0.1,
        steps=1,
        loss=torch.nn.functional.cross_entropy,
    )
    out = maml(source.sample())
    out.loss.backward()
    assert torch.isfinite(out.loss)
