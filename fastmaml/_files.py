"""Files that are either whole or not there, and folders to write them to."""

from __future__ import annotations

import glob
import os
import platform
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a crash leaves the old file or the new one, never a part.

    The content goes to a temporary file of the same folder, is flushed to the disk, and takes the
    place of `path` in one step. The folder is made if it is missing. A temporary file that a killed
    process of this machine left is removed by the next one that writes the same path.

    Args:
        path: of the file.
        content: all of it.

    Raises:
        OSError: it cannot be written, and is as it was; no temporary file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{_host()}-{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # a write names no file
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def remove_leftovers(path: Path, of_all: bool = False) -> None:
    """Remove temporary files of `path` whose process was killed.

    Args:
        path: as given to `write_whole`.
        of_all: of any process and machine, for who knows that nobody else writes it.
    """
    start, end = f".{path.name}.{'' if of_all else f'{_host()}-'}", ".tmp"
    for name in glob.glob(f"{glob.escape(start)}*{end}", root_dir=path.parent):
        if of_all or _is_dead(name.removeprefix(start).removesuffix(end)):
            (path.parent / name).unlink(missing_ok=True)


def require_folder(folder: Path, said: str) -> None:
    """Raise where no files could be written to a folder, which may be still to be made.

    Args:
        folder: which.
        said: how the user gave it, such as "--out runs/a", for the error.

    Raises:
        ValueError: it or what it would lie in is a file, a link to nothing, or write-protected.
    """
    if folder.is_symlink() and not folder.exists():
        raise ValueError(f"{said} is a link to nothing: give a folder.")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        what = "is a file: give" if there == folder else f"cannot be: {there} is a file. Give"
        raise ValueError(f"{said} {what} a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{said}: {there} cannot be written to. Give another folder.")


def same_place(one: Path, other: Path) -> bool:
    """Whether two paths are of one file or folder, however they are written.

    Args:
        one: of either, there or not.
        other: the same.
    """
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def _host() -> str:
    """This machine, in a form for names of files."""
    return "".join(x if x.isalnum() else "_" for x in platform.node())


def _is_dead(number: str) -> bool:
    """Whether there is no such process; where that cannot be asked, it is taken to live."""
    if os.name != "posix" or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # another user's
    return False


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where folders can be opened (POSIX)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
