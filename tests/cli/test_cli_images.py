"""`fastmaml train images`: from a folder to a test, resumed and evaluated; what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_images import picture, write_classes

from fastmaml.cli import main
from fastmaml.episodes import images
from fastmaml.training import checkpoint
from fastmaml.training.config import ImagesConfig
from fastmaml.training.recipes import build_episodes, build_maml

SMALL = [
    *("--ways", "2", "--shots", "2", "--queries", "1", "--tasks", "2", "--filters", "4"),
    *("--evaluate-every", "2", "--validation-episodes", "2", "--test-episodes", "4"),
    *("--threads", "1", "--no-plots", "--schedule", "constant", "--pool", "stride"),
    *("--executor", "eager"),
]


def train(folder: Path, out: Path, *flags: str, data: str = "images") -> int:
    where = ["--data", str(folder), "--out", str(out)]
    return main(["train", data, *where, *SMALL, "--augment", "flip,crop,jitter", *flags])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "photos")


def test_a_resumed_run_is_bit_identical(photos: Path, tmp_path: Path) -> None:
    assert train(photos, tmp_path / "whole", "--iterations", "4") == 0
    assert train(photos, tmp_path / "parts", "--iterations", "2") == 0
    cache = ("--cache", str(tmp_path / "cache"))
    assert train(photos, tmp_path / "parts", "--iterations", "4", "--resume", *cache) == 0
    states = [
        checkpoint.load(tmp_path / name / "last.safetensors").state for name in ("whole", "parts")
    ]
    for name, value in states[0]["maml"].items():
        assert torch.equal(value, states[1]["maml"][name])
    results = [
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "parts")
    ]
    assert results[0]["test"] == results[1]["test"]
    assert results[0]["title"] == "images, photos, 2-way 2-shot"


def test_a_changed_folder_is_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train(photos, out, "--iterations", "1") == 0
    assert main(["eval", str(out)]) == 0
    write_classes(photos, 12, first=12)  # some that were trained on are held out now
    for command in (["eval", str(out)], ["train", "images", "--resume", str(out)]):
        capsys.readouterr()
        assert main(command) == 2
        printed = capsys.readouterr().err.strip()
        assert printed.startswith(f"fastmaml: {photos} has ")
        assert "\n" not in printed


def test_the_same_folder_in_other_words_is_no_other_data(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    assert train(Path("photos"), out, "--iterations", "1") == 0
    Path("link").symlink_to("photos")
    for folder in ("photos", str(photos), "link", f"../{tmp_path.name}/photos"):
        capsys.readouterr()
        change = ["--change", f"data={folder}", "splits_seed=3"]
        assert main(["eval", str(out), *change]) == 2
        assert "has other training classes than this run had" in capsys.readouterr().err
        assert main(["eval", str(out), "--change", f"data={folder}"]) == 0


def test_other_data_with_classes_that_were_trained_on(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, copy = tmp_path / "run", tmp_path / "copy"
    assert train(photos, out, "--iterations", "1") == 0
    trained = images(photos, split="train", ways=2, shots=2, tasks=2).class_names
    shutil.copytree(photos, copy)
    assert main(["eval", str(out), "--change", f"data={copy}"]) == 0  # the same are held out
    for name in trained:
        (copy / name).rename(copy / f"renamed_{name}")
    held = images(copy, split="test", ways=2, shots=2, tasks=2).class_names
    seen = [name for name in held if name.startswith("renamed")]
    assert seen, "else nothing is shown"
    capsys.readouterr()
    assert main(["eval", str(out), "--change", f"data={copy}"]) == 2
    printed = capsys.readouterr().err.strip()
    assert "has classes whose images are those of classes that this run was trained on" in printed
    assert seen[0] in printed
    path = out / "last.safetensors"
    saved = checkpoint.load(path)
    del saved.state["episodes"]["classes"]  # as before there was such a thing
    for name in ("last", "best"):
        checkpoint.save(out / f"{name}.safetensors", saved)
    assert main(["eval", str(out), "--change", f"data={copy}"]) == 0
    shutil.rmtree(copy)
    write_classes(copy, 12, first=30)
    assert main(["eval", str(out), "--change", f"data={copy}"]) == 0


def test_replaced_training_images_are_refused_in_an_evaluation(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train(photos, out, "--iterations", "1", "--rotations") == 0
    assert main(["eval", str(out)]) == 0  # rotations are of the training alone
    trained = images(photos, split="train", ways=2, shots=2, tasks=2).class_names[0]
    file = photos / trained / "0.png"
    file.write_bytes(file.read_bytes() + b"\0")  # of no other pixels
    capsys.readouterr()
    assert main(["eval", str(out)]) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith(f"fastmaml: {photos} has other training images than this run had")
    assert "\n" not in printed
    assert main(["eval", str(out), "--change", f"data={photos}"]) == 2  # is no other data


@pytest.mark.parametrize("model", ["conv4", "resnet12"])
def test_names_of_splits_and_networks(photos: Path, tmp_path: Path, model: str) -> None:
    (tmp_path / "lists").mkdir()
    numbers = {"train": range(5), "val": range(5, 8), "test": range(8, 12)}
    for short, of in numbers.items():
        (tmp_path / "lists" / f"{short}.txt").write_text("\n".join(f"class_{c:02}" for c in of))
    config = ImagesConfig(
        data=str(photos),
        split_file=str(tmp_path / "lists"),
        size=16,
        channels=1,
        rotations=True,
        ways=3,
        shots=1,
        queries=1,
        tasks=2,
        filters=4,
        model=model,  # type: ignore[arg-type]
        executor="eager",
    )
    sizes = {split: build_episodes(config, split) for split in ("train", "validation", "test")}
    assert [source.classes for source in sizes.values()] == [20, 3, 4]  # type: ignore[attr-defined]
    support = next(iter(sizes["test"])).support
    assert build_maml(config).module(support.inputs[0]).shape == (3, 3)


@pytest.mark.parametrize(
    ("shots", "sizes"), [("1-2", {2, 3, 4, 6}), ("meta-dataset", set(range(2, 16)))]
)
def test_ranges(photos: Path, tmp_path: Path, shots: str, sizes: set[int]) -> None:
    flags = ["--fractions", "0.5,0.25,0.25", "--ways", "2-3", "--shots", shots, "--queries", "1"]
    flags += ["--iterations", "4"]
    assert train(photos, tmp_path / "run", *flags) == 0
    saved = checkpoint.load(tmp_path / "run" / "last.safetensors").config
    assert (saved["ways"], saved["shots"]) == ("2-3", shots)
    config = ImagesConfig(**saved)
    batches = [b for b, _ in zip(build_episodes(config, "train"), range(20), strict=False)]
    found = {batch.query.inputs.shape[1] for batch in batches}
    assert found == {2, 3}
    found = {batch.support.inputs.shape[1] for batch in batches}
    assert len(found) > 2
    assert found <= sizes
    maml = build_maml(config)
    assert maml.module(batches[0].support.inputs[0]).shape[-1] == 3
    assert main(["eval", str(tmp_path / "run"), "--change", "ways=2", "shots=1", "outputs=3"]) == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--fractions", "0.5,0.5"], "which sum to 1"),
        (["--fractions", "half"], "fractions='half': give three"),
        (["--fractions", "1,0,0", "--split-file", "x"], "split_file='x': give one"),
        (["--split-file", "none.json"], "splits='none.json': there is no such file"),
        (["--ways", "3"], "ways=3, but the split 'validation'"),
        (["--ways", "2-3"], "ways=(2, 3), but the split 'validation'"),
        (["--outputs", "1"], "outputs=1 with ways=2: give as many at least"),
        (["--ways", "many"], "ways='many': give a number, a range such as 5-20."),
        (["--shots", "2-1"], "shots=(2, 1): give the smallest first"),
        (["--shots", "1-x"], "shots='1-x': give a number, a range such as 5-20, or 'meta-dataset'"),
        (["--shots", "0"], "shots=0: give at least 1"),
        (["--augment", "flop"], "augment='flop' has 'flop'"),
        (["--channels", "2"], "channels=2: give 1"),
        (["--size", "8", "--pool", "max"], "too small for pool='max'"),
    ],
)
def test_bad_flags(
    photos: Path, tmp_path: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(photos, tmp_path / "run", *flags) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert not (tmp_path / "run").exists()


def test_bad_data(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "class_04" / "2.png").write_bytes(b"no image")
    assert train(photos, tmp_path / "run", "--size", "8", "--channels", "3") == 2
    assert "class_04/2.png cannot be read" in capsys.readouterr().err
    picture(3, (5, 8)).save(photos / "class_04" / "2.png")
    assert train(photos, tmp_path / "run") == 2
    assert "Give size=" in capsys.readouterr().err
    assert main(["train", "images"]) == 2
    assert "name the folder of images with --data FOLDER" in capsys.readouterr().err
    assert train(photos, tmp_path / "run", data="mini-imagenet") == 2
    assert "no miniImageNet in" in capsys.readouterr().err
    assert train(photos, tmp_path / "run", "--fractions", "1,0,0", data="cub") == 2
    assert "cub has splits of its own" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("command", ["profile", "bench"])
def test_measuring(photos: Path, tmp_path: Path, command: str) -> None:
    flags = [command, "images", "--data", str(photos), "--out", str(tmp_path / "out"), *SMALL]
    quick = ["--seconds", "0.1", "--sweep-steps", "1", "--methods", "unrolled"]
    flags += ["--repeats", "3", *(quick if command == "bench" else [])]
    assert main(flags) == 0
    assert (tmp_path / "out" / f"{command}.json").exists()
