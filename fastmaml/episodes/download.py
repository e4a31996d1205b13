"""`fetch`: a file from the network, whole and verified or not at all."""

from __future__ import annotations

import hashlib
import urllib.request
from http.client import HTTPException
from pathlib import Path

from fastmaml._files import write_whole


def fetch(url: str, path: Path, md5: str, timeout: float = 30.0) -> None:
    """Download `url` to `path`, which appears only once its checksum is right.

    Args:
        url: anything that urllib opens, of a size that fits into memory.
        path: where the file is to be; its folder is made where it is missing.
        md5: hexadecimal checksum of the whole file.
        timeout: seconds without an answer after which to give up.

    Raises:
        ConnectionError: the file cannot be had.
        ValueError: its checksum is wrong, or `url` is no address.
    """
    try:
        with urllib.request.urlopen(url, timeout=timeout) as source:
            content = source.read()
    except (OSError, HTTPException) as error:
        raise ConnectionError(
            f"cannot download {url}: {error}. Without a network, fetch that file elsewhere and "
            f"put it at {path} by hand (its md5 is {md5})."
        ) from error
    check_md5(content, md5, url)
    write_whole(path, content)


def check_md5(content: bytes, md5: str, origin: object) -> None:
    """Raise a ValueError that names `origin` if the checksum of its content is not `md5`."""
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise ValueError(
            f"{origin} is damaged, incomplete or another file: its md5 is {found} and should be "
            f"{md5}. Fetch it again, and delete the copy on this machine if there is one."
        )
