"""CIFAR-100 in the two class splits of few-shot learning: `cifar_fs` and `fc100`."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastmaml.episodes.class_splits import split_classes
from fastmaml.episodes.download import fetch
from fastmaml.episodes.image_listing import listed
from fastmaml.episodes.image_sampler import ImageSampler, Shots
from fastmaml.episodes.pictures import Arrays, Pictures
from fastmaml.episodes.published import SHORT, missing, pickled, places, read_pickle, sampler_of_set
from fastmaml.episodes.sizes import Number

ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
ARCHIVE, MD5 = "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"
MEMBERS = ("train", "test", "meta")
SIDE = 32
_Splitting = Callable[[Sequence[str], Sequence[int]], dict[str, list[str]]]
"""From names of classes and their super-classes to splits."""

CIFAR_FS = {
    "validation": "beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree "
    "motorcycle otter sea shark television tractor",
    "test": "baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose "
    "snail sweet_pepper table telephone wardrobe whale woman worm",
}
"""The classes that Bertinetto et al. 2019 hold out; the other 64 are for training."""

FC100 = {"validation": (8, 11, 13, 16), "test": (0, 7, 12, 14)}
"""The super-classes that Oreshkin et al. 2018 hold out; the other 12 are for training."""


def cifar_fs(
    split: str = "train",
    *,
    ways: Number = 5,
    shots: Shots = 1,
    tasks: int = 16,
    root: str | os.PathLike[str] | None = None,
    download: bool = True,
    **settings: Any,
) -> ImageSampler:
    """Episodes of CIFAR-FS (Bertinetto et al. 2019): 600 images of 32x32 pixels of 100 classes.

    64 classes are for training, 16 for validation and 20 for testing. It is looked for in `root`
    and its subfolders ``cifar-fs`` and ``cifarfs``, as its authors publish it
    (``cifar100/data/CLASS/*.png`` and ``cifar100/splits/bertinetto/*.txt``), as others do
    (``CIFAR_FS_train.pickle``, ``_val``, ``_test``), or as CIFAR-100 itself
    (``cifar-100-python.tar.gz``, or what is in it), whose images these are; else the last is
    downloaded (169 MB) and its checksum verified. Pickles are read as data: nothing in them runs.

    Args:
        split: "train", "validation" or "test".
        ways: classes a task, as of `EpisodeSampler`.
        shots: support examples a class, as of `EpisodeSampler`.
        tasks: tasks a meta-batch.
        root: the folder of the data; None for the environment variable FASTMAML_DATA or else
            ``~/.cache/fastmaml``.
        download: whether CIFAR-100 may be downloaded.
        settings: as of `images`: queries, size (32 if it is not given), channels, fit, normalise,
            augment (for training only), rotations, cache, seed and device.

    Raises:
        FileNotFoundError: no data, and `download` is False.
        ConnectionError: the archive cannot be downloaded.
        ValueError: damaged files, or as `images`.
        ImportError: numpy or pillow is missing.
    """
    folders = places(root, "cifar-fs", "cifarfs")
    pictures = _published_pngs(folders) or _pickles(folders, "CIFAR_FS")
    if pictures is None:
        pictures = _of_cifar100(folders, download, "CIFAR-FS", _fine_split)
    return sampler_of_set(pictures, split, SIDE, ways=ways, shots=shots, tasks=tasks, **settings)


def fc100(
    split: str = "train",
    *,
    ways: Number = 5,
    shots: Shots = 1,
    tasks: int = 16,
    root: str | os.PathLike[str] | None = None,
    download: bool = True,
    **settings: Any,
) -> ImageSampler:
    """Episodes of FC100 (Oreshkin et al. 2018): CIFAR-100, split by super-classes.

    60 classes of 12 super-classes are for training, 20 of 4 for validation and 20 of 4 for testing,
    so that what is tested on differs in kind. It is looked for in `root` and its subfolder
    ``fc100``, as published (``FC100_train.pickle``, ``_val``, ``_test``) or as CIFAR-100 itself
    (``cifar-100-python.tar.gz``, or what is in it); else the last is downloaded (169 MB) and its
    checksum verified. Pickles are read as data: nothing in them runs.

    Args:
        split: "train", "validation" or "test".
        ways: classes a task, as of `EpisodeSampler`.
        shots: support examples a class, as of `EpisodeSampler`.
        tasks: tasks a meta-batch.
        root: the folder of the data; None for the environment variable FASTMAML_DATA or else
            ``~/.cache/fastmaml``.
        download: whether CIFAR-100 may be downloaded.
        settings: as of `images`: queries, size (32 if it is not given), channels, fit, normalise,
            augment (for training only), rotations, cache, seed and device.

    Raises:
        FileNotFoundError: no data, and `download` is False.
        ConnectionError: the archive cannot be downloaded.
        ValueError: damaged files, or as `images`.
        ImportError: numpy or pillow is missing.
    """
    folders = places(root, "fc100", "FC100")
    pictures = _pickles(folders, "FC100")
    if pictures is None:
        pictures = _of_cifar100(folders, download, "FC100", _coarse_split)
    return sampler_of_set(pictures, split, SIDE, ways=ways, shots=shots, tasks=tasks, **settings)


def _published_pngs(folders: Sequence[Path]) -> Pictures | None:
    """``cifar100/data`` with the authors' lists of names."""
    for folder in folders:
        base = folder / "cifar100"
        if (base / "data").is_dir():
            found = listed(base / "data")
            lists = base / "splits" / "bertinetto"
            if lists.is_dir():
                return replace(
                    found, parts=split_classes([*dict.fromkeys(found.classes)], None, lists, 0)
                )
            return replace(found, parts=_fine_split([*dict.fromkeys(found.classes)], []))
    return None


def _pickles(folders: Sequence[Path], stem: str) -> Pictures | None:
    """``STEM_train.pickle`` and so on: dicts of ``data`` and ``labels``."""
    for folder in folders:
        files = {split: folder / f"{stem}_{short}.pickle" for split, short in SHORT.items()}
        if all(file.is_file() for file in files.values()):
            read = {split: read_pickle(file.read_bytes(), file) for split, file in files.items()}
            return pickled(
                str(folder / f"{stem}_*.pickle"),
                {split: (one["data"], one["labels"]) for split, one in read.items()},
            )
    return None


def _of_cifar100(folders: list[Path], download: bool, what: str, splitting: _Splitting) -> Pictures:
    """CIFAR-100's own files, training and test images of a class together."""
    for folder in (*folders, folders[0] / "cifar100"):
        if (folder / ARCHIVE).is_file():
            return _joined(_unpacked(folder / ARCHIVE), str(folder / ARCHIVE), splitting)
        own = folder / "cifar-100-python"
        if own.is_dir():
            parts = {name: read_pickle((own / name).read_bytes(), own / name) for name in MEMBERS}
            return _joined(parts, str(own), splitting)
    if not download:
        raise missing(
            what,
            folders,
            f"{what.replace('-', '_').upper()}_train.pickle, _val.pickle and _test.pickle, or "
            f"{ARCHIVE}",
            f"the last is at {ADDRESS} and fetched where download=True; its md5 is {MD5}",
        )
    fetch(ADDRESS, folders[0] / ARCHIVE, MD5)
    return _of_cifar100(folders, False, what, splitting)


def _unpacked(archive: Path) -> dict[str, Any]:
    try:
        with tarfile.open(archive) as files:
            contents = {}
            for name in MEMBERS:
                member = files.extractfile(f"cifar-100-python/{name}")
                contents[name] = b"" if member is None else member.read()
    except (tarfile.TarError, EOFError, OSError, KeyError) as error:
        raise ValueError(
            f"{archive} is damaged: {error}. Fetch it again from {ADDRESS}."
        ) from error
    return {name: read_pickle(content, archive) for name, content in contents.items()}


def _joined(parts: Mapping[str, Any], origin: str, splitting: _Splitting) -> Pictures:
    fine = parts["meta"]["fine_label_names"]
    arrays, names, classes = [], [], []
    coarse_of: dict[str, int] = {}
    for part in ("train", "test"):
        one = parts[part]
        pixels = one["data"].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        for i, (label, coarse) in enumerate(
            zip(one["fine_labels"], one["coarse_labels"], strict=True)
        ):
            coarse_of[fine[label]] = int(coarse)
            names.append(f"{part}/{i}")
            classes.append(fine[label])
        arrays += list(pixels)
    every = sorted(set(classes))
    return Arrays(origin, names, classes, arrays, splitting(every, [coarse_of[x] for x in every]))


def _fine_split(names: Sequence[str], coarse: Sequence[int]) -> dict[str, list[str]]:
    """Those of CIFAR-FS: by the classes themselves."""
    return split_classes(names, None, {split: of.split() for split, of in CIFAR_FS.items()}, 0)


def _coarse_split(names: Sequence[str], coarse: Sequence[int]) -> dict[str, list[str]]:
    """Those of FC100: by super-classes."""
    held = {
        split: [name for name, one in zip(names, coarse, strict=True) if one in of]
        for split, of in FC100.items()
    }
    return split_classes(names, None, held, 0)
