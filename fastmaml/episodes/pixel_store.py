"""`Pixels`: images as uint8, in memory or in a file that is mapped into it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from fastmaml._files import write_whole
from fastmaml.episodes.decoding import Fit, Shape
from fastmaml.episodes.pictures import WORKERS, Pictures

FORMAT = "1"
"""Of the file's content: another one where an older file must not be read any more."""
SILENT = 3.0
"""Seconds after which reading says how far it is, and again."""


@final
@dataclass(frozen=True)
class Pixels:
    """Some or all of the `Pictures` of a data set.

    Attributes:
        images: uint8 ``[images, channels, height, width]``.
        digests: of what each was made of.
        rows: where each picture lies, by its number.
        mapped: whether they lie in a file.
    """

    images: Tensor
    digests: Sequence[bytes]
    rows: dict[int, int]
    mapped: bool = False


def in_memory(pictures: Pictures, wanted: Sequence[int], shape: Shape, fit: Fit) -> Pixels:
    """Read pictures into memory.

    Args:
        pictures: all of them.
        wanted: the numbers of those to read.
        shape: that they get.
        fit: how.

    Raises:
        ValueError: one is damaged, or they would need more than half of the memory that is free.
    """
    size = len(wanted) * shape[0] * shape[1] * shape[2]
    free = _free_memory()
    if free is not None and size > free // 2:
        raise ValueError(
            f"{len(wanted):,} images of {pictures.origin} take {size / 2**30:.1f} GiB, more than "
            f"half of the memory that is free ({free / 2**30:.1f} GiB): give cache=FOLDER, which "
            "keeps them in a file there that is read as it is needed, or a smaller size=."
        )
    images = torch.empty(len(wanted), *shape, dtype=torch.uint8)
    digests = _read_into(images, pictures, wanted, shape, fit)
    return Pixels(images, digests, {number: row for row, number in enumerate(wanted)})


def in_file(pictures: Pictures, shape: Shape, fit: Fit, folder: Path) -> Pixels:
    """All pictures in a file of a folder, which is made where it is missing or of changed files.

    Args:
        pictures: all of them.
        shape: that they get.
        fit: how.
        folder: is made where it is missing.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
        ValueError: a picture is damaged, or `folder` is a file or lies in one.
    """
    folder = folder.expanduser()
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"cache={str(folder)!r}: {place} is a file; give a folder.")
    of = _digest(FORMAT, os.path.abspath(pictures.origin), *map(str, shape), fit)[:12]
    name = re.sub(r"\W+", "_", Path(pictures.origin).name)
    stem = f"{name}-{of}-{_digest(pictures.stamp())[:16]}"
    data, about = folder / f"{stem}.uint8", folder / f"{stem}.json"
    whole = len(pictures.names), *shape
    there = data.is_file() and data.stat().st_size == _product(whole)
    digests = _kept_digests(about, whole[0]) if there else None
    if digests is None:
        digests = _write(data, pictures, whole, fit)
        write_whole(about, json.dumps([one.hex() for one in digests]).encode())
        for old in folder.glob(f"{name}-{of}-*"):  # of files that have changed since
            if old.stem != stem and old.suffix in (".uint8", ".json"):
                old.unlink(missing_ok=True)
    images = torch.from_file(str(data), shared=False, size=_product(whole), dtype=torch.uint8)
    return Pixels(images.view(whole), digests, {i: i for i in range(whole[0])}, mapped=True)


def _kept_digests(about: Path, number: int) -> list[bytes] | None:
    """The digests that a file has; None where it is missing or damaged, as by a full disk."""
    if not about.is_file():
        return None
    try:
        found = [bytes.fromhex(one) for one in json.loads(about.read_bytes())]
    except (ValueError, TypeError):
        return None
    return found if len(found) == number else None


def _write(data: Path, pictures: Pictures, whole: tuple[int, ...], fit: Fit) -> list[bytes]:
    """Decode all pictures into a file, which is there once it is whole."""
    size = _product(whole)
    data.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(data.parent).free
    if size > free:
        raise OSError(
            f"cache={str(data.parent)!r} has {free / 2**30:.1f} GiB free, and the images take "
            f"{size / 2**30:.1f} GiB: give a folder on another disk, or a smaller size=."
        )
    temporary = data.with_name(f".{data.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if hasattr(os, "posix_fallocate"):  # else a full disk would end the process
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        images = torch.from_file(str(temporary), shared=True, size=size, dtype=torch.uint8)
        shape = (whole[1], whole[2], whole[3])
        digests = _read_into(images.view(whole), pictures, range(whole[0]), shape, fit)
        del images
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, data)
    finally:
        temporary.unlink(missing_ok=True)
    return digests


def _read_into(
    images: Tensor, pictures: Pictures, wanted: Sequence[int], shape: Shape, fit: Fit
) -> list[bytes]:
    """Fill `images` with the pictures of these numbers; their digests."""
    tell = _teller(len(wanted), pictures.origin)

    def read(row: int) -> bytes:
        pixels, digest = pictures.read(wanted[row], shape, fit)
        images[row] = pixels
        tell()
        return digest

    pool = ThreadPoolExecutor(WORKERS)
    try:
        return list(pool.map(read, range(len(wanted))))
    finally:
        pool.shutdown(cancel_futures=True)


def _teller(total: int, origin: str) -> Callable[[], None]:
    """Counts, and says so every few seconds."""
    numbers, started = count(1), time.monotonic()
    last = [started]

    def tell() -> None:
        done, now = next(numbers), time.monotonic()
        if now - last[0] > SILENT:
            last[0] = now
            print(
                f"fastmaml: {done:,} of {total:,} images of {origin} read, "
                f"{(now - started) * (total - done) / done:.0f} s to go",
                file=sys.stderr,
                flush=True,
            )

    return tell


def _free_memory() -> int | None:
    """Bytes that a process can still get; None where that cannot be told."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else None


def _digest(*texts: str) -> str:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()


def _product(numbers: Sequence[int]) -> int:
    found = 1
    for number in numbers:
        found *= number
    return found
