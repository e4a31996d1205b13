"""`Pictures`: images with the names of their classes, in files or in arrays."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from fastmaml.episodes.decoding import Fit, Shape, decoded, header

WORKERS = 8
"""Threads that read: Pillow lets others run while it decodes."""

Parts = Mapping[str, Sequence[str]]
"""The classes of each split."""


class Pictures(ABC):
    """Images, with a name and a class each.

    Attributes:
        origin: where they come from, for errors.
        names: of each image; with its content, what tells whether data is the same.
        classes: of each image.
        parts: the splits that the data has itself; None for none.
    """

    origin: str
    names: Sequence[str]
    classes: Sequence[str]
    parts: Parts | None

    @abstractmethod
    def shape(self, size: tuple[int, int] | None, channels: int | None) -> Shape:
        """The shape that all images get: found where it is not given.

        Raises:
            ValueError: the images differ in size, and none is given.
        """

    @abstractmethod
    def read(self, index: int, shape: Shape, fit: Fit) -> tuple[Tensor, bytes]:
        """An image as uint8 ``[channels, height, width]``, and a digest of what it is made of."""

    @abstractmethod
    def stamp(self) -> str:
        """What changes where files are replaced, without reading them."""


@final
@dataclass(frozen=True)
class Files(Pictures):
    """Files of images.

    Attributes:
        paths: of each.
        stats: size in bytes and time of the last change of each.
    """

    origin: str
    names: Sequence[str]
    classes: Sequence[str]
    paths: Sequence[Path]
    stats: Sequence[tuple[int, int]]
    parts: Parts | None = None

    def shape(self, size: tuple[int, int] | None, channels: int | None) -> Shape:
        """As given, else as the files' first bytes say."""
        if size is not None and channels is not None:
            return channels, *size
        with ThreadPoolExecutor(WORKERS) as pool:
            found = list(pool.map(header, self.paths, map(str, self.paths)))
        return _common(found, self.names, size, channels)

    def read(self, index: int, shape: Shape, fit: Fit) -> tuple[Tensor, bytes]:
        """The file, decoded."""
        content = self.paths[index].read_bytes()
        pixels = decoded(content, str(self.paths[index]), shape, fit)
        return pixels, hashlib.blake2b(content, digest_size=16).digest()

    def stamp(self) -> str:
        """Names, sizes and times of all files."""
        digest = hashlib.blake2b(digest_size=16)
        for name, of, stat in zip(self.names, self.classes, self.stats, strict=True):
            digest.update(f"{name}\0{of}\0{stat}\0".encode())
        return digest.hexdigest()


@final
@dataclass(frozen=True)
class Arrays(Pictures):
    """Images that are held already: as pixels, or as the content of image files.

    Attributes:
        arrays: of each image: uint8 ``[height, width, channels]``, or ``[bytes]`` of a file, as
            numpy has them.
    """

    origin: str
    names: Sequence[str]
    classes: Sequence[str]
    arrays: Sequence[Any] = field(repr=False)
    parts: Parts | None = None

    def shape(self, size: tuple[int, int] | None, channels: int | None) -> Shape:
        """As given, else as the arrays are."""
        if size is not None and channels is not None:
            return channels, *size
        found = [self._shape(i) for i in range(len(self.arrays))]
        return _common(found, self.names, size, channels)

    def _shape(self, index: int) -> Shape:
        array = self.arrays[index]
        if array.ndim == 1:
            return header(io.BytesIO(array.tobytes()), self.names[index])
        height, width, channels = array.shape
        return channels, height, width

    def read(self, index: int, shape: Shape, fit: Fit) -> tuple[Tensor, bytes]:
        """The image, decoded where it is a file's content."""
        array = self.arrays[index]
        content = array.tobytes()
        digest = hashlib.blake2b(content, digest_size=16).digest()
        if array.ndim == 1:
            return decoded(content, self.names[index], shape, fit), digest
        pixels = torch.from_numpy(array).permute(2, 0, 1)
        if tuple(pixels.shape) != shape:
            pixels = _resized(array, self.names[index], shape, fit)
        return pixels, digest

    def stamp(self) -> str:
        """Names and contents."""
        digest = hashlib.blake2b(digest_size=16)
        for name, of, array in zip(self.names, self.classes, self.arrays, strict=True):
            digest.update(f"{name}\0{of}\0".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()


def _resized(array: Any, name: str, shape: Shape, fit: Fit) -> Tensor:
    from fastmaml.episodes.decoding import need

    file = io.BytesIO()
    need("PIL.Image").fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).save(
        file, "png"
    )
    return decoded(file.getvalue(), name, shape, fit)


def _common(
    found: list[Shape], names: Sequence[str], size: tuple[int, int] | None, channels: int | None
) -> Shape:
    """One shape for all: colour where an image has colour."""
    if channels is None:
        channels = max(one[0] for one in found)
    if size is not None:
        return channels, *size
    (_, height, width), first = found[0], names[0]
    other = next((i for i, one in enumerate(found) if one[1:] != (height, width)), None)
    if other is not None:
        raise ValueError(
            f"the images differ in size: {first} has {width}x{height} pixels and {names[other]} "
            f"{found[other][2]}x{found[other][1]}. Give size=, such as size=84, to bring them to "
            "one."
        )
    return channels, height, width
