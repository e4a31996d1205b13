"""`OwnFolder`: whether what lies in a run's folder is this run's, and nobody else's by now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import final

from fastmaml._files import same_place
from fastmaml.training import checkpoint
from fastmaml.training.checkpoint import Checkpoint
from fastmaml.training.run_folder import BEST, CHECKPOINT
from fastmaml.training.run_lock import RunFolderError, RunLock


@final
class OwnFolder:
    """The folder of a run, as far as it is this run's.

    Args:
        path: of the folder, which may be still to be made.
        run: what the run is told from all others by.

    Attributes:
        run: as given; that of the run which was resumed.
        continued: whether the run that lies there goes on, so that nothing is moved away.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path, self.run, self.continued = path, run, False
        self._seen: tuple[int, ...] | None = None
        self._held = False

    def resumed(self, path: Path, run: str | None) -> None:
        """The run goes on from a file, of this folder or of another.

        Args:
            path: of the checkpoint.
            run: that it is of; None where it does not say.
        """
        last = self.path / CHECKPOINT
        there = checkpoint.run_of(last)
        self.continued = _beside(path, self.path) and (None in (run, there) or run == there)
        self.run = run or (there if self.continued and there else self.run)
        self._seen = _mark(last) if self.continued else None

    def require(self) -> None:
        """Raise RunFolderError where another run has written to the folder since."""
        if self._seen != _mark(self.path / CHECKPOINT):
            raise RunFolderError(
                f"{self.path / CHECKPOINT} is not the one that this trainer wrote or resumed: "
                "another run has the folder now, or it was removed. Give each trainer a folder of "
                "its own: LoopConfig(name=...) or LoopConfig(out=...)."
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, the run holds the folder's lock."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Inside, a checkpoint is written; one of the run's own only where the folder is, too.

        Args:
            path: of the checkpoint.

        Raises:
            RunFolderError: another run holds the folder, or has written to it since.
        """
        if path.name not in (CHECKPOINT, BEST) or not same_place(path.parent, self.path):
            yield
            return
        if self._held:
            yield
            self._seen = _mark(self.path / CHECKPOINT)
            return
        self.path.mkdir(parents=True, exist_ok=True)
        lock = RunLock(self.path)
        try:
            self.require()
            yield
            self._seen = _mark(self.path / CHECKPOINT)
        finally:
            lock.release()

    def best(self, iteration: int) -> Checkpoint:
        """The run's best checkpoint; raises as `best_in`."""
        return best_in(self.path, iteration, self.run)


def best_in(folder: Path, iteration: int, run: str | None) -> Checkpoint:
    """The best checkpoint of a run's folder.

    Args:
        folder: of the run.
        iteration: after which the best validation was.
        run: what the run is told from others by; None where it is not known.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is damaged.
        RunFolderError: it is of another iteration or run.
    """
    found = checkpoint.load(folder / BEST)
    other = None not in (run, found.run) and run != found.run
    if other or found.iteration != iteration:
        raise RunFolderError(
            f"{folder / BEST} is of {'another run' if other else f'iteration {found.iteration}'}, "
            f"and the best validation of this run was after iteration {iteration}: put the run's "
            "own back, or take last.safetensors alone (test_on='last')."
        )
    return found


def best_beside(path: Path, saved: Checkpoint) -> Path | None:
    """The file with the weights of the best validation of a run; None where there was none.

    Args:
        path: of a checkpoint of the run, which may be a link.
        saved: what it holds.

    Raises:
        ValueError: it is not beside the checkpoint.
    """
    best = saved.state.get("best")
    if best is None or best["value"] is None:
        return None
    if best["iteration"] == saved.iteration:
        return path
    folders = dict.fromkeys((path.parent, path.resolve().parent))
    folder = next((x for x in folders if (x / BEST).is_file()), path.parent)
    try:
        best_in(folder, best["iteration"], saved.run)
    except (FileNotFoundError, RunFolderError):
        raise ValueError(
            f"{path} is of a run whose best validation was at iteration {best['iteration']}, and "
            f"{folder / BEST} is not of that one: put the run's best.safetensors beside it, or "
            "resume another checkpoint."
        ) from None
    return folder / BEST


def _beside(path: Path, folder: Path) -> bool:
    """Whether a file, or what it is a link to, lies in the folder."""
    return same_place(path.parent, folder) or same_place(path.resolve().parent, folder)


def _mark(path: Path) -> tuple[int, ...] | None:
    """What tells this file from another that takes its place; None where there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
