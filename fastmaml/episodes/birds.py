"""`cub`: few-shot episodes of photographs of birds."""

from __future__ import annotations

import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastmaml.episodes.checks import check_choice
from fastmaml.episodes.download import fetch
from fastmaml.episodes.image_listing import listed
from fastmaml.episodes.image_sampler import ImageSampler, Shots
from fastmaml.episodes.meta_dataset_splits import ClassSplits
from fastmaml.episodes.published import missing, places, sampler_of_set
from fastmaml.episodes.sizes import Number

ADDRESS = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
ARCHIVE, MD5 = "CUB_200_2011.tgz", "97eceeb196236b17998738112f37df78"
CLASSES, SIDE = 200, 84
PROTOCOLS = ("chen2019", "meta-dataset")


def cub(
    split: str = "train",
    *,
    ways: Number = 5,
    shots: Shots = 1,
    tasks: int = 4,
    root: str | os.PathLike[str] | None = None,
    protocol: str = "chen2019",
    download: bool = True,
    **settings: Any,
) -> ImageSampler:
    """Episodes of Caltech-UCSD Birds 200-2011 (Wah et al. 2011): 11,788 photographs of 200 species.

    It is looked for in `root` and its subfolders ``cub`` and ``cubirds200``, as published: the
    folder ``CUB_200_2011`` with ``images/SPECIES/*.jpg``, or the archive ``CUB_200_2011.tgz``,
    which is unpacked there; else the archive is downloaded (1.1 GB, as much memory for a moment)
    and its checksum verified. Splits by `protocol`, of the species by number:

    - "chen2019", of most papers (Chen et al. 2019): every other species for training (100); of the
      rest every other one for validation and for testing (50 each);
    - "meta-dataset" (Triantafillou et al. 2020): 140, 30 and 30 at random. It needs numpy alone.

    Args:
        split: "train", "validation" or "test".
        ways: classes a task, as of `EpisodeSampler`.
        shots: support examples a class, as of `EpisodeSampler`.
        tasks: tasks a meta-batch.
        root: the folder of the data; None for the environment variable FASTMAML_DATA or else
            ``~/.cache/fastmaml``.
        protocol: "chen2019" or "meta-dataset".
        download: whether the archive may be downloaded.
        settings: as of `images`: queries, size (84 if it is not given), channels, fit, normalise,
            augment (for training only), rotations, cache, seed and device.

    Raises:
        FileNotFoundError: no data, and `download` is False.
        ConnectionError: the archive cannot be downloaded.
        ValueError: damaged or missing files, or as `images`.
        ImportError: numpy or pillow is missing.
    """
    check_choice("protocol", protocol, PROTOCOLS)
    pictures = listed(_images(places(root, "cub", "cubirds200"), download))
    names = sorted(set(pictures.classes))
    if len(names) != CLASSES:
        raise ValueError(
            f"{pictures.origin} has {len(names)} species and needs {CLASSES}, since the splits "
            "number them in the order of their names. Unpack the archive anew, whole."
        )
    if protocol == "chen2019":
        parts = {"train": names[::2], "validation": names[1::4], "test": names[3::4]}
    else:
        numbered = ClassSplits(140, 30, 30)
        parts = {
            one: [names[i] for i in numbered.of(one)] for one in ("train", "validation", "test")
        }
    return sampler_of_set(
        replace(pictures, parts=parts),
        split,
        SIDE,
        ways=ways,
        shots=shots,
        tasks=tasks,
        **settings,
    )


def _images(folders: list[Path], download: bool) -> Path:
    """The folder of the species, unpacked or downloaded where it has to be."""
    for folder in folders:
        if (folder / "CUB_200_2011" / "images").is_dir():
            return folder / "CUB_200_2011" / "images"
    for folder in folders:
        if (folder / ARCHIVE).is_file():
            return _unpacked(folder / ARCHIVE)
    if not download:
        raise missing(
            "CUB-200-2011",
            folders,
            f"the folder CUB_200_2011 or its archive {ARCHIVE}",
            f"it is at {ADDRESS} and fetched where download=True; its md5 is {MD5}",
        )
    fetch(ADDRESS, folders[0] / ARCHIVE, MD5)
    return _unpacked(folders[0] / ARCHIVE)


def _unpacked(archive: Path) -> Path:
    """The archive's images, in a folder that is there once it is whole."""
    temporary = archive.with_name(f".{archive.stem}.{os.getpid()}.tmp")
    whole = archive.with_name("CUB_200_2011")
    try:
        with tarfile.open(archive) as files:
            files.extractall(temporary, filter="data")
        os.replace(temporary / "CUB_200_2011", whole)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(
            f"{archive} cannot be unpacked: {error}. Where it is damaged, fetch it again from "
            f"{ADDRESS}."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return whole / "images"
