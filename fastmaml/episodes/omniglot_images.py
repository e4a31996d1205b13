"""The Omniglot images: found on this machine or downloaded, as one tensor a part."""

from __future__ import annotations

import importlib
import io
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmaml._files import write_whole
from fastmaml.episodes.download import check_md5, fetch

URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
CACHE = "omniglot28.npz"
PARTS = ("images_background", "images_evaluation")
MD5 = {
    "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
}
CHARACTERS = {"images_background": 964, "images_evaluation": 659}


@dataclass(frozen=True)
class Characters:
    """Images uint8 ``[characters, drawings, 28, 28]``, ink = 1, and ``Alphabet/characterNN``."""

    images: Tensor
    names: tuple[str, ...]

    def __getitem__(self, kept: list[int]) -> Characters:
        return Characters(self.images[kept], tuple(self.names[i] for i in kept))


def load(
    root: str | os.PathLike[str] | None, download: bool, url: str
) -> tuple[Characters, Characters]:
    """The background and the evaluation characters; arguments and errors as `omniglot`."""
    base = Path(root or os.environ.get("FASTMAML_DATA") or "~/.cache/fastmaml").expanduser()
    if base.is_file():
        return _read_npz(base)
    if base.suffix in {".npz", ".zip"}:
        raise FileNotFoundError(
            f"there is no file {base}; root is a folder or an {CACHE} that exists."
        )
    folders = (base, base / "omniglot")
    for folder in folders:
        if (folder / CACHE).is_file():
            return _read_npz(folder / CACHE)
        for kind in ("", ".zip"):
            if all((folder / (part + kind)).exists() for part in PARTS):
                return _convert(folder, kind)
    if not download:
        raise FileNotFoundError(
            f"no Omniglot in {base}: put there {CACHE}, or the folders {PARTS[0]} and {PARTS[1]}, "
            f"or their official archives {' and '.join(MD5)} from {url}. Or name another place "
            "with root= or the environment variable FASTMAML_DATA, or allow download=True."
        )
    for name, md5 in MD5.items():
        if not (folders[1] / name).exists():
            fetch(f"{url}/{name}", folders[1] / name, md5)
    return _convert(folders[1], ".zip")


def _convert(folder: Path, kind: str) -> tuple[Characters, Characters]:
    """Read the images of the folders (kind "") or archives (".zip") and keep them as one file."""
    if kind:
        background, evaluation = (read_archive(folder / name, md5) for name, md5 in MD5.items())
    else:
        background, evaluation = (read_folder(folder / part) for part in PARTS)
    found = {PARTS[0]: len(background.names), PARTS[1]: len(evaluation.names)}
    if found != CHARACTERS:  # Not kept: the missing ones may come later.
        warnings.warn(
            f"the Omniglot in {folder} is incomplete: it has {found} characters of {CHARACTERS}.",
            stacklevel=4,
        )
    elif os.access(folder, os.W_OK):
        _write_npz(folder / CACHE, background, evaluation)
    return background, evaluation


def read_folder(folder: Path) -> Characters:
    """All drawings ``Alphabet/characterNN/*.png`` of a folder."""
    paths = sorted(folder.glob("[!.]*/[!.]*/[!.]*.png"))
    return _stack(folder, (("/".join(path.parts[-3:-1]), path) for path in paths))


def read_archive(path: Path, md5: str) -> Characters:
    """All drawings ``NAME/Alphabet/characterNN/*.png`` of the archive NAME.zip.

    Raises:
        ValueError: the archive's checksum is not `md5`.
    """
    content = path.read_bytes()
    check_md5(content, md5, path)
    pattern = re.compile(rf"{re.escape(path.stem)}/([^/]+/[^/]+)/[^./][^/]*\.png")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        found = [match for name in sorted(archive.namelist()) if (match := pattern.fullmatch(name))]
        return _stack(path, ((m[1], io.BytesIO(archive.read(m[0]))) for m in found))


def _stack(source: Path, drawings: Iterable[tuple[str, Path | io.BytesIO]]) -> Characters:
    """The characters of pairs of a character's name and a drawing."""
    images: dict[str, list[Tensor]] = {}
    for name, file in drawings:
        images.setdefault(name, []).append(_read_png(file))
    counts = sorted({len(same) for same in images.values()})
    if len(counts) != 1:
        raise ValueError(
            f"{source} has {' or '.join(map(str, counts)) or 'no'} drawings a character; every "
            "character must have the same number (officially 20), as Alphabet/characterNN/*.png."
        )
    return Characters(torch.stack([torch.stack(x) for x in images.values()]), tuple(images))


def _read_png(file: Path | io.BytesIO) -> Tensor:
    """One drawing, black on white, as uint8 [28, 28] with ink = 1."""
    numpy, image = _need("numpy"), _need("PIL.Image")
    with image.open(file) as picture:
        small = picture.convert("L").resize((28, 28), image.Resampling.NEAREST)
    return torch.from_numpy((numpy.asarray(small) < 128).astype(numpy.uint8))


def _read_npz(path: Path) -> tuple[Characters, Characters]:
    """Images packed to bits as in `_write_npz`."""
    numpy = _need("numpy")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .npz file. Give root= a folder, or an {CACHE}.")
    try:
        with numpy.load(path) as arrays:
            background, evaluation = (
                _unpack(numpy, arrays[part], arrays[f"{part}_names"])
                for part in ("background", "evaluation")
            )
    except (KeyError, ValueError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is damaged or not an Omniglot file: {error}. Delete it, and it is made again "
            "from the image folders or the official archives."
        ) from error
    return background, evaluation


def _unpack(numpy: Any, packed: Any, names: Any) -> Characters:
    if packed.dtype != numpy.uint8 or packed.ndim != 3 or packed.shape[2] != 98:
        raise ValueError(
            f"images are {packed.dtype} {packed.shape}, not uint8 [characters, 20, 98]"
        )
    if len(names) != len(packed):
        raise ValueError(f"{len(packed)} characters have {len(names)} names")
    bits = torch.from_numpy(numpy.unpackbits(packed, axis=-1))
    return Characters(bits.unflatten(-1, (28, 28)), tuple(str(name) for name in names))


def _write_npz(path: Path, background: Characters, evaluation: Characters) -> None:
    """Keep all images, 98 bytes each: arrays ``background``, ``background_names``, and so on."""
    numpy = _need("numpy")
    arrays = {}
    for part, characters in {"background": background, "evaluation": evaluation}.items():
        arrays[part] = numpy.packbits(characters.images.flatten(2).numpy(), axis=-1)
        arrays[f"{part}_names"] = numpy.array(characters.names)
    file = io.BytesIO()
    numpy.savez_compressed(file, **arrays)
    write_whole(path, file.getvalue())


def _need(module: str) -> Any:
    """Import an optional package, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"Omniglot needs {module.split('.')[0]}: pip install 'fastmaml[vision]'."
        ) from error
