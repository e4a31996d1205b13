"""`images`: few-shot episodes of a folder of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from fastmaml.episodes.augment import Augment
from fastmaml.episodes.class_splits import Splits, split_classes
from fastmaml.episodes.decoding import Fit, Shape
from fastmaml.episodes.image_listing import listed
from fastmaml.episodes.image_sampler import ImageSampler, Shots, channels_of, image_sampler, pair_of
from fastmaml.episodes.sizes import Number

Numbers = float | Sequence[float]


def images(
    folder: str | os.PathLike[str],
    *,
    ways: Number,
    shots: Shots,
    queries: int | None = None,
    tasks: int,
    split: str | None = None,
    splits: Splits | None = None,
    splits_seed: int = 0,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    fit: Fit = "crop",
    normalise: bool | tuple[Numbers, Numbers] = True,
    augment: Augment | None = None,
    rotations: bool = False,
    cache: str | os.PathLike[str] = "memory",
    seed: int = 0,
    device: torch.device | str | None = None,
) -> ImageSampler:
    """Episodes of the images of a folder: float32 ``[tasks, examples, channels, height, width]``.

    The folder has a folder of images for each class: ``photos/cat/1.jpg``; or folders ``train``,
    ``val`` and ``test`` of such. Or it is a ``.csv`` or ``.tsv`` file with the columns ``path``
    (seen from its folder), ``label`` and, if it wants, ``split``. Images are those that end like
    one (``.png``, ``.jpg``, ``.webp`` and others); a warning names other files, but for hidden
    ones. Class folders with folders inside are refused, as it is not plain what their class is.

    Images are read once, in threads, and held as uint8; every meta-batch is normalised on its
    device. Photographs are turned as their EXIF data says; what is transparent becomes white.
    Reading needs ``pip install "fastmaml[vision]"``.

    Do not use it for images that are drawn or changed while training: it holds what it read.

    Args:
        folder: of the images, or the table.
        ways: classes a task, or a range, as of `EpisodeSampler`.
        shots: support examples a class, or a range, or "meta-dataset", as of `EpisodeSampler`.
        queries: query examples a class; None for as many as `shots`.
        tasks: tasks a meta-batch.
        split: "train", "validation" or "test"; None for all classes.
        splits: which class is in which split, the same for all of them. Fractions ``(0.64, 0.16,
            0.2)`` for training, validation and testing; a dict of lists of names (or of files with
            a name a line), where "train" may be left out and has the rest; a ``.json`` file of such
            lists; a ``.csv`` file with the columns ``class`` and ``split``; or a folder with
            ``train.txt``, ``val.txt`` and ``test.txt``. None for the data's own (folders, or the
            table's column), else these fractions.
        splits_seed: of the order in which fractions hold classes out: it hangs on it and the names
            alone, and is the same on every machine.
        size: of the images, in pixels: a side, or (height, width). None for that of the files,
            where they are all alike.
        channels: 1 for grey, 3 for colour; None: colour where an image has colour.
        fit: "crop" keeps the middle of a picture of other proportions; "stretch" deforms it.
        normalise: True: less the mean and divided by the deviation of each channel, found on the
            training classes (on 2,000 images, evenly spaced, where there are more); (mean, std) of
            pixels from 0 to 1; False: pixels from 0 to 1.
        augment: as of `EpisodeSampler`: changes each image by draws of its own, such as
            "flip,crop,jitter", or a function from a uint8 image to one. Give it for training only.
        rotations: whether each class turned by 90, 180 and 270 degrees is three more, as in
            Omniglot's protocol.
        cache: "memory", or a folder where all images are kept decoded, in a file that is mapped
            into memory: for more than memory holds, and to start faster. Files that change are
            seen by size and time, and read again.
        seed: of the sampler's own generator.
        device: where the images are held and episodes are made; None for the CPU. Images of a cache
            stay on the CPU.

    Raises:
        FileNotFoundError: no such folder, table or file of splits, or an image that a table names.
        ValueError: no images, an image that cannot be read or has more than 8 bits a channel,
            images of several sizes and no `size`, a class in two splits or with too few images, an
            image twice in a table, more ways than classes in the split, more than half of the free
            memory, or an argument that is none of the above.
        OSError: the cache cannot be written.
        ImportError: numpy or pillow is missing.
    """
    pictures = listed(Path(folder))
    names = list(dict.fromkeys(pictures.classes))
    if split is None and splits is not None:
        raise ValueError(
            f"splits={splits!r} says which class is in which split: give split='train', "
            "'validation' or 'test' too."
        )
    parts = {} if split is None else split_classes(names, pictures.parts, splits, splits_seed)
    return image_sampler(
        pictures,
        parts,
        split,
        size=size,
        channels=channels,
        fit=fit,
        normalise=normalise,
        rotations=rotations,
        augment=augment,
        cache=cache,
        ways=ways,
        shots=shots,
        queries=queries,
        tasks=tasks,
        seed=seed,
        device=device,
    )


def image_shape(
    folder: str | os.PathLike[str],
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
) -> Shape:
    """Channels, height and width that `images` gives the images of a folder.

    Only the first bytes of files are read, and none where both are given.

    Args:
        folder: as of `images`.
        size: as of `images`.
        channels: as of `images`.

    Raises:
        FileNotFoundError, ValueError, ImportError: as `images`.
    """
    return listed(Path(folder)).shape(pair_of(size), channels_of(channels))


def image_splits(
    folder: str | os.PathLike[str], splits: Splits | None = None, splits_seed: int = 0
) -> dict[str, list[str]]:
    """The names of the classes of "train", "validation" and "test" that `images` uses.

    No image is read.

    Args:
        folder: as of `images`.
        splits: as of `images`.
        splits_seed: as of `images`.

    Raises:
        FileNotFoundError, ValueError: as `images`.
    """
    pictures = listed(Path(folder))
    return split_classes(list(dict.fromkeys(pictures.classes)), pictures.parts, splits, splits_seed)
