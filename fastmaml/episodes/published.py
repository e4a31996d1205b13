"""What the readers of published data sets share: places, pickles of data alone, samplers."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmaml.episodes.decoding import need
from fastmaml.episodes.image_sampler import ImageSampler, image_sampler
from fastmaml.episodes.pictures import Arrays, Pictures

SHORT = {"train": "train", "validation": "val", "test": "test"}
"""What splits are called in names of files."""

_ALLOWED = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}
"""What pickles of arrays, lists and dicts name; anything else could run a program."""


def places(root: str | os.PathLike[str] | None, *names: str) -> list[Path]:
    """`root` (or FASTMAML_DATA, or the cache) and its subfolders of these names."""
    base = Path(root or os.environ.get("FASTMAML_DATA") or "~/.cache/fastmaml").expanduser()
    return [base, *(base / name for name in names)]


def missing(what: str, folders: list[Path], layouts: str, where: str) -> FileNotFoundError:
    """The error of a data set that is not there, and cannot be fetched.

    Args:
        what: it is called.
        folders: where it was looked for.
        layouts: the files that are read.
        where: they are to be had.
    """
    return FileNotFoundError(
        f"no {what} in {folders[0]}: put there, or into {folders[-1].name}/ below it, {layouts} "
        f"({where}). Or name another folder with root= (--data), or the environment variable "
        "FASTMAML_DATA."
    )


def read_pickle(content: bytes, origin: object) -> Any:
    """What a pickle of arrays, lists and dicts holds, also one of Python 2.

    Raises:
        ValueError: it is damaged, or names a class or function: such a pickle could run anything.
    """
    need("numpy")
    try:
        return _Data(io.BytesIO(content), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ImportError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{origin} is damaged, or no pickle of arrays alone: {error}. Fetch it again."
        ) from error


def pickled(origin: str, parts: Mapping[str, tuple[Any, Any]]) -> Arrays:
    """Pictures of the images and labels of every split, whose labels count for themselves.

    Args:
        origin: for errors.
        parts: by split, arrays as of `Arrays`, and a label each.

    Raises:
        ValueError: another number of labels than of images.
    """
    arrays, names, classes = [], [], []
    splits: dict[str, list[str]] = {}
    for split, (images, labels) in parts.items():
        if len(images) != len(labels):
            raise ValueError(
                f"{origin} has {len(images)} images and {len(labels)} labels for {split}: the "
                "files do not belong together. Fetch them again."
            )
        own = [f"{split}/{label}" for label in labels]
        splits[split] = list(dict.fromkeys(own))
        arrays += list(images)
        classes += own
        names += [f"{split} {i}" for i in range(len(images))]
    return Arrays(origin, names, classes, arrays, splits)


def sampler_of_set(
    pictures: Pictures, split: str, side: int, *, size: int | None = None, **settings: Any
) -> ImageSampler:
    """The sampler of a split of a data set; images have `side` pixels unless `size` is given."""
    settings = {"channels": 3} | settings
    parts = {split: list(names) for split, names in (pictures.parts or {}).items()}
    return image_sampler(pictures, parts, split, size=side if size is None else size, **settings)


class _Data(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not loaded")
        if int(need("numpy").__version__.split(".")[0]) > 1:  # files are mostly of older ones
            module = module.replace("numpy.core", "numpy._core")
        return super().find_class(module, name)
