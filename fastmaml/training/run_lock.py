"""One run writes to a folder at a time: a file that a run holds locked while it goes on."""

from __future__ import annotations

import errno
import os
import platform
from pathlib import Path
from typing import final

NAME = ".running"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What a file system says that has none."""


class RunFolderError(ValueError):
    """A run's folder cannot be used; the message says why, and what to do."""


@final
class RunLock:
    """A lock on a folder, which the system gives back when the process ends, killed or not.

    The file has the process's number and machine in it. It is removed when the lock is given back;
    one that a killed process left is taken over. Linux's network file systems have such locks
    across machines, too.

    Args:
        folder: there already.

    Attributes:
        unlocked: why the file system has no locks, so that nobody is kept out; None where it has.

    Raises:
        RunFolderError: another run holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self.unlocked: str | None = None
        self._descriptor: int | None = None
        while self._descriptor is None and self.unlocked is None:
            self._try()

    def release(self) -> None:
        """Give it back; nothing happens the second time."""
        if self._descriptor is None:
            return
        self._path.unlink(missing_ok=True)  # while it is still ours
        os.close(self._descriptor)
        self._descriptor = None

    def _try(self) -> None:
        """Take the lock; neither it nor a reason where the file was removed meanwhile."""
        if os.name != "posix":
            self.unlocked = "this system has none"
            return
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if self._taken(descriptor) and _is_at(self._path, descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()} on {platform.node()}".encode(), 0)
                self._descriptor = descriptor
        finally:
            if self._descriptor is None:
                os.close(descriptor)

    def _taken(self, descriptor: int) -> bool:
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "(unknown)"
            raise RunFolderError(
                f"out={self._path.parent}: process {holder} is training into this folder. Wait "
                "until it has ended, stop it, or give another folder."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self._path.unlink(missing_ok=True)
            self.unlocked = error.strerror
            return False
        return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
