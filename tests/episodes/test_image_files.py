"""Files of images that Pillow would read otherwise than they are meant: deep ones, turned ones."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
import torch
from drawn_images import Image, numpy

from fastmaml.episodes.decoding import decoded, header


def chunk(name: bytes, content: bytes) -> bytes:
    checked = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checked)


def deep_png(channels: int) -> bytes:
    """2x3 pixels of 16 bits."""
    kind = {2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + struct.pack(f">{2 * channels}H", *[300] * 2 * channels) for _ in "123")
    about = struct.pack(">IIBBBBB", 2, 3, 16, kind, 0, 0, 0)
    parts = chunk(b"IHDR", about) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def deep_tiff() -> bytes:
    """1x1 pixel of three times 16 bits."""
    short, long = 3, 4
    after = 8 + 2 + 8 * 12 + 4
    tags = [
        (256, short, 1, 1),
        (257, short, 1, 1),
        (258, short, 3, after),
        (259, short, 1, 1),
        (262, short, 1, 2),
        (273, long, 1, after + 6),
        (277, short, 1, 3),
        (279, long, 1, 6),
    ]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    places = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8) + places + struct.pack("<6H", 16, 16, 16, 9, 9, 9)


@pytest.mark.parametrize(
    "content",
    [
        *(deep_png(channels) for channels in (2, 3, 4)),
        deep_tiff(),
        b"P6\n1 1\n65535\n" + b"\x01\x02" * 3,
    ],
    ids=["LA", "RGB", "RGBA", "TIFF", "PPM"],
)
def test_sixteen_bits_a_channel_are_refused_whatever_the_channels(content: bytes) -> None:
    said = r"a\.png has \w+ pixels of 16 bits a channel .* save it with 8 bits"
    with pytest.raises(ValueError, match=said):
        header(io.BytesIO(content), "a.png")
    with pytest.raises(ValueError, match=said):
        decoded(content, "a.png", (3, 3, 2), "crop")


def photograph(kind: str, orientation: int | bytes | None) -> bytes:
    """4 wide and 2 high, its left half white."""
    pixels = numpy.zeros((2, 4, 3), "uint8")
    pixels[:, :2] = 255
    exif, file = Image.Exif(), io.BytesIO()
    if isinstance(orientation, int):
        exif[0x0112] = orientation
    data = orientation if isinstance(orientation, bytes) else exif.tobytes()
    lossless = {"lossless": True} if kind == "webp" else {}
    Image.fromarray(pixels).save(file, kind, exif=data, **lossless)
    return file.getvalue()


def late(png: bytes) -> bytes:
    """The same with its EXIF data behind the pixels, as some programs write it."""
    start = png.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(png[start : start + 4], "big")
    return png[:start] + png[end:-12] + png[start:end] + png[-12:]


@pytest.mark.parametrize(
    "content",
    [
        photograph("webp", 6),
        photograph("png", 6),
        late(photograph("png", 6)),
        photograph("tiff", 6),
    ],
    ids=["webp", "png", "late png", "tiff"],
)
def test_photographs_are_turned_whatever_their_format(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "1").write_bytes(content)
    shape = header(tmp_path / "1", "1")
    assert shape == (3, 4, 2)
    pixels = decoded(content, "1", shape, "crop")
    assert torch.equal(pixels[:, :2], torch.full((3, 2, 2), 255, dtype=torch.uint8))
    assert not pixels[:, 2:].any()


@pytest.mark.parametrize("kind", ["webp", "png"])
def test_upright_photographs_stay(kind: str) -> None:
    text = b"Exif\0\0II*\0" + struct.pack("<IHHHI4sI", 8, 1, 0x0112, 2, 3, b"no", 0)
    for orientation in (None, 1, text):
        content = photograph(kind, orientation)
        assert header(io.BytesIO(content), "1") == (3, 2, 4)
        assert not decoded(content, "1", (3, 2, 4), "crop")[:, :, 2:].any()
