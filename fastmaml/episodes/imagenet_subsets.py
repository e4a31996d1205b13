"""Classes of ImageNet in 84x84 pixels: `mini_imagenet` and `tiered_imagenet`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastmaml.episodes.image_listing import listed_files
from fastmaml.episodes.image_sampler import ImageSampler, Shots
from fastmaml.episodes.pictures import Pictures
from fastmaml.episodes.published import (
    SHORT,
    missing,
    pickled,
    places,
    read_pickle,
    sampler_of_set,
)
from fastmaml.episodes.sizes import Number

SIDE = 84
RECORD = "https://zenodo.org/record/7978538/files"


def mini_imagenet(
    split: str = "train",
    *,
    ways: Number = 5,
    shots: Shots = 1,
    tasks: int = 4,
    root: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> ImageSampler:
    """Episodes of miniImageNet (Vinyals et al. 2016): 600 images of 84x84 pixels of 100 classes.

    In the splits of Ravi and Larochelle 2017: 64 classes for training, 16 for validation and 20 for
    testing. It is looked for in `root` and its subfolder ``mini-imagenet``, as Ren et al. 2018
    publish it (``mini-imagenet-cache-train.pkl``, ``-val``, ``-test``) or as Ravi and Larochelle do
    (``train.csv``, ``val.csv`` and ``test.csv`` with the columns ``filename`` and ``label``, and
    the folder ``images``). Nothing is downloaded, as there is no checksum to verify. Pickles are
    read as data: nothing in them runs.

    Args:
        split: "train", "validation" or "test".
        ways: classes a task, as of `EpisodeSampler`.
        shots: support examples a class, as of `EpisodeSampler`.
        tasks: tasks a meta-batch.
        root: the folder of the data; None for the environment variable FASTMAML_DATA or else
            ``~/.cache/fastmaml``.
        settings: as of `images`: queries, size (84 if it is not given), channels, fit, normalise,
            augment (for training only), rotations, cache, seed and device.

    Raises:
        FileNotFoundError: no data; the message says where it is to be had.
        ValueError: damaged files, or as `images`.
        ImportError: numpy or pillow is missing.
    """
    folders = places(root, "mini-imagenet")
    pictures = _mini_pickles(folders) or _mini_tables(folders)
    if pictures is None:
        raise missing(
            "miniImageNet",
            folders,
            "mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl, or train.csv, val.csv, "
            "test.csv and the folder images",
            f"the first are at {RECORD}/mini-imagenet-cache-train.pkl and so on",
        )
    return sampler_of_set(pictures, split, SIDE, ways=ways, shots=shots, tasks=tasks, **settings)


def tiered_imagenet(
    split: str = "train",
    *,
    ways: Number = 5,
    shots: Shots = 1,
    tasks: int = 4,
    root: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> ImageSampler:
    """Episodes of tieredImageNet (Ren et al. 2018): 608 classes of ImageNet in 84x84 pixels.

    351 classes are for training, 97 for validation and 160 for testing, which differ in kind. It is
    looked for in `root` and its subfolder ``tiered-imagenet``, as its authors publish it:
    ``train_images_png.pkl`` and ``train_labels.pkl``, and those of ``val`` and ``test``. Its
    779,165 images take 16 GiB as uint8: give ``cache=FOLDER`` where memory does not hold that.
    Nothing is downloaded, as there is no checksum to verify. Pickles are read as data: nothing in
    them runs.

    Args:
        split: "train", "validation" or "test".
        ways: classes a task, as of `EpisodeSampler`.
        shots: support examples a class, as of `EpisodeSampler`.
        tasks: tasks a meta-batch.
        root: the folder of the data; None for the environment variable FASTMAML_DATA or else
            ``~/.cache/fastmaml``.
        settings: as of `images`: queries, size (84 if it is not given), channels, fit, normalise,
            augment (for training only), rotations, cache, seed and device.

    Raises:
        FileNotFoundError: no data; the message says where it is to be had.
        ValueError: damaged files, or as `images`.
        ImportError: numpy or pillow is missing.
    """
    folders = places(root, "tiered-imagenet")
    for folder in folders:
        files = {
            split: [folder / f"{short}_{what}.pkl" for what in ("images_png", "labels")]
            for split, short in SHORT.items()
        }
        if all(file.is_file() for pair in files.values() for file in pair):
            read = {
                split: [read_pickle(file.read_bytes(), file) for file in pair]
                for split, pair in files.items()
            }
            pictures = pickled(
                str(folder / "*_images_png.pkl"),
                {split: (one[0], one[1]["label_specific"]) for split, one in read.items()},
            )
            return sampler_of_set(
                pictures, split, SIDE, ways=ways, shots=shots, tasks=tasks, **settings
            )
    raise missing(
        "tieredImageNet",
        folders,
        "train_images_png.pkl and train_labels.pkl, and those of val and test",
        f"they are at {RECORD}/tiered-imagenet-train_images_png.pkl and so on: leave out "
        "'tiered-imagenet-' of their names",
    )


def _mini_pickles(folders: Sequence[Path]) -> Pictures | None:
    """Dicts of ``image_data`` and ``class_dict``, the numbers of each class's images."""
    for folder in folders:
        files = {}
        for split, short in SHORT.items():
            for name in (short, split):  # both are in use for the validation classes
                file = folder / f"mini-imagenet-cache-{name}.pkl"
                if file.is_file():
                    files[split] = file
        if len(files) < len(SHORT):
            continue
        parts = {}
        for split, file in files.items():
            read = read_pickle(file.read_bytes(), file)
            numbers = [int(i) for of in read["class_dict"].values() for i in of]
            labels = [name for name, of in read["class_dict"].items() for _ in of]
            parts[split] = ([read["image_data"][i] for i in numbers], labels)
        return pickled(str(folder / "mini-imagenet-cache-*.pkl"), parts)
    return None


def _mini_tables(folders: Sequence[Path]) -> Pictures | None:
    """Tables of ``filename`` and ``label``, one a split, and a folder of images."""
    for folder in folders:
        tables = {split: folder / f"{short}.csv" for split, short in SHORT.items()}
        if all(table.is_file() for table in tables.values()):
            return listed_files(folder, tables, folder / "images")
    return None
