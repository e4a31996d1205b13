"""`decoded`: the content of an image file as uint8 pixels of one shape."""

from __future__ import annotations

import importlib
import io
from typing import Any, Literal

import torch
from torch import Tensor

Shape = tuple[int, int, int]
"""Channels, height and width."""

Fit = Literal["crop", "stretch"]
"""How a picture of other proportions is fitted: its middle, or all of it, deformed."""

GREY_MODES = ("1", "L", "LA", "La")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_WITH_EXIF = ("JPEG", "MPO", "WEBP", "PNG")
_TURNED = {5, 6, 7, 8}
"""Orientations of photographs whose pixels lie on their side."""


def header(content: Any, name: str) -> Shape:
    """The shape of an image, as it is shown, of its first bytes.

    Args:
        content: a path, or a file of bytes.
        name: of the image, for errors.

    Raises:
        ValueError: it is no image, or one of more than 8 bits.
    """
    image = need("PIL.Image")
    try:
        with image.open(content) as picture:
            width, height = picture.size
            if _orientation(picture) in _TURNED:
                width, height = height, width
            return _channels(picture, name), height, width
    except (OSError, SyntaxError, image.DecompressionBombError) as error:
        raise unreadable(name, error) from error


def decoded(content: bytes, name: str, shape: Shape, fit: Fit) -> Tensor:
    """The image's pixels, uint8 ``[channels, height, width]``.

    Photographs are turned as their camera says, and what is transparent becomes white. Of a file
    with several images it is the first.

    Args:
        content: of the file.
        name: for errors.
        shape: that it gets, with 1 or 3 channels.
        fit: how, where its proportions differ.

    Raises:
        ValueError: it cannot be read, or has more than 8 bits a channel.
    """
    numpy, image, operations = need("numpy"), need("PIL.Image"), need("PIL.ImageOps")
    channels, height, width = shape
    try:
        with image.open(io.BytesIO(content)) as picture:
            _channels(picture, name)
            shown = operations.exif_transpose(picture) if _orientation(picture) > 1 else picture
            if shown.mode in _WITH_ALPHA or "transparency" in shown.info:
                shown = shown.convert("RGBA")
                white = image.new("RGBA", shown.size, "white")
                shown = image.alpha_composite(white, shown)
            shown = shown.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
        raise unreadable(name, error) from error
    if shown.size != (width, height):
        how = image.Resampling.LANCZOS
        crop = fit == "crop"
        to = (width, height)
        shown = operations.fit(shown, to, method=how) if crop else shown.resize(to, how)
    pixels = torch.from_numpy(numpy.array(shown, dtype="uint8"))
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1)


def need(module: str) -> Any:
    """Import an optional package, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"reading images needs {module.split('.')[0]}: pip install 'fastmaml[vision]'."
        ) from error


def unreadable(name: str, error: Exception) -> ValueError:
    """The error of a file that is damaged."""
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "cannot identify" in said:
        said = "it is no image that Pillow knows"
    return ValueError(f"{name} cannot be read: {said}. Replace or remove that file.")


def _orientation(picture: Any) -> int:
    """How the camera was held, from 1 (upright) to 8; Pillow itself turns TIFF files."""
    if picture.format not in _WITH_EXIF or (picture.format == "PNG" and not _png_exif(picture.fp)):
        return 1
    said = picture.getexif().get(0x0112)
    return said if isinstance(said, int) else 1  # damaged data may hold anything


def _png_exif(file: Any) -> bool:
    """Whether a PNG has EXIF data, maybe behind its pixels, for which Pillow would decode them."""
    place = file.tell()
    file.seek(8)
    try:
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            if head[4:] == b"eXIf":
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, 1)
        return False
    finally:
        file.seek(place)


def _channels(picture: Any, name: str) -> int:
    mode = picture.mode
    cut = mode not in (*GREY_MODES, *COLOUR_MODES)
    if cut or _more_than_8_bits(picture):
        said = f"pixels of the mode {mode}" if cut else f"{mode} pixels of 16 bits a channel"
        raise ValueError(
            f"{name} has {said} (more than 8 bits), which would be cut off: save it with 8 bits a "
            "channel, scaled as is right for it."
        )
    return 1 if mode in GREY_MODES else 3


def _more_than_8_bits(picture: Any) -> bool:
    """Of what Pillow opens as 8 bits a channel: it keeps the upper ones of colours and alpha."""
    how = picture.tile[0][3] if picture.tile else ()
    if picture.format == "PNG":
        return ";16" in str(how)
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(258, (1,))) > 8
    return picture.format == "PPM" and isinstance(how, tuple) and how[-1] > 255
