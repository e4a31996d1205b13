"""What a run tells: on the screen, in ``metrics.jsonl``, TensorBoard, a PNG and ``result.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, final

from fastmaml._files import remove_leftovers, require_folder, write_whole
from fastmaml.training.progress import progress_bar
from fastmaml.training.reports import Report
from fastmaml.training.run_lock import RunFolderError, RunLock
from fastmaml.training.shown import show_evaluation, validation_line
from fastmaml.training.summary import Evaluation

CHECKPOINT, BEST = "last.safetensors", "best.safetensors"
_OF_A_RUN = (
    CHECKPOINT,
    BEST,
    "metrics.jsonl",
    "result.json",
    "curves.png",
    "paths.png",
    "tensorboard",
)
_PLOT_EXTRA = 'pip install "fastmaml[plot]"'


@final
class RunReport(Report):
    """The folder of a run and the screen.

    Args:
        folder: made if it is missing.
        iteration: of the run in this folder that goes on; metrics beyond it are dropped, as they
            will come again. None for a new run: what lies there of an earlier one is moved into a
            subfolder ``earlier-N``.
        plots: whether to write TensorBoard files and the PNG.
        screen: whether to print.
        board: whether to write TensorBoard files where there are no plots, too.
        require: raises where the folder may not be used after all; called once it is locked, before
            anything there is changed.

    Raises:
        RunFolderError: it is a file or write-protected, another run writes to it, or what would be
            moved is not of a run.
    """

    def __init__(
        self,
        folder: Path,
        iteration: int | None,
        plots: bool,
        screen: bool = True,
        board: bool = False,
        require: Callable[[], None] | None = None,
    ) -> None:
        from rich.console import Console

        self.folder = folder
        self.console = Console(quiet=not screen, highlight=False)
        self._plots = plots
        try:
            require_folder(folder, f"out={folder}")
        except ValueError as error:
            raise RunFolderError(error) from None
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = RunLock(folder)
        try:
            if require is not None:
                require()
            self._make_ready(iteration)
            self._lines = _truncated(folder / "metrics.jsonl", iteration or 0)
            self._metrics = (folder / "metrics.jsonl").open("a", buffering=1, encoding="utf-8")
            self._board = self._open_board(iteration or 0) if plots or board else None
        except BaseException:
            self._lock.release()
            raise

    def line(self, values: dict[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``, and its numbers to TensorBoard."""
        self._lines.append(values)
        if "validation" in values:
            self.say(validation_line(values))
        self._metrics.write(json.dumps(values) + "\n")
        if self._board is not None:
            for name, value in numbers(values):
                self._board.add_scalar(name, value, values["iteration"])

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        self.console.print(text, soft_wrap=True, markup=False)

    @contextmanager
    def bar(self, what: str, done: int, total: int) -> Iterator[Callable[..., None]]:
        """Progress with rate and remaining time; yields ``show(done, note)``."""
        with progress_bar(self.console, what, done, total) as shown:

            def show(completed: int, note: str = "") -> None:
                shown(completed, note)

            yield show

    def stage(self, show: Callable[..., None], done: int, what: str) -> None:
        """Say what takes a while: beside the bar, or in a line where no bar moves."""
        if self.console.is_terminal:
            show(done, what)
        else:
            self.say(what)

    @property
    def lines(self) -> Sequence[dict[str, Any]]:
        """Of ``metrics.jsonl``."""
        return self._lines

    def finish(
        self, test: Evaluation, result: dict[str, Any], title: str, more: Sequence[str] = ()
    ) -> None:
        """Print the final test; write ``result.json`` and ``curves.png``; name `more` files."""
        show_evaluation(self.console, test, title)
        write_whole(self.folder / "result.json", (json.dumps(result, indent=2) + "\n").encode())
        written = "result.json, metrics.jsonl"
        if self._plots and self._plot(test, title):
            written += ", curves.png"
        written = ", ".join((written, *more))
        self.say(f"Written to {self.folder}: {CHECKPOINT}, {written}.")

    def stopping(self, name: str) -> None:
        """Say that a signal has arrived."""
        self.say(
            f"{name}: stopping now, or after this iteration; once more to stop without saving."
        )

    def __enter__(self) -> RunReport:
        return self

    def __exit__(self, *error: object) -> None:
        failed = error[:1] not in ((), (None,))
        try:
            for file in (self._metrics, self._board):
                if file is not None:
                    _close(file, quietly=failed)
        finally:
            self._lock.release()

    @property
    def plots(self) -> bool:
        """Whether pictures are wanted."""
        return self._plots

    def _plot(self, test: Evaluation, title: str) -> bool:
        from fastmaml.training.plots import plot_run

        try:
            plot_run(self.folder / "curves.png", self._lines, test, title)
        except ImportError:
            self.say(f"No curves.png, as matplotlib is not installed: {_PLOT_EXTRA}")
            return False
        return True

    def _open_board(self, iteration: int) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.say(f"No TensorBoard files, as tensorboard is not installed: {_PLOT_EXTRA}")
            return None
        return SummaryWriter(self.folder / "tensorboard", purge_step=iteration + 1)

    def _make_ready(self, iteration: int | None) -> None:
        """Remove what killed runs left, and move what finished ones left."""
        if self._lock.unlocked is None:
            for name in _OF_A_RUN:
                remove_leftovers(self.folder / name, of_all=True)
        else:
            self.say(
                f"{self.folder} cannot be locked ({self._lock.unlocked}): take care that no other "
                "run writes to it."
            )
        if iteration is None:
            self._set_aside()

    def _set_aside(self) -> None:
        found = [self.folder / name for name in _OF_A_RUN if (self.folder / name).exists()]
        if not found:
            return
        _require_own(self.folder, found)
        number = 1
        while (self.folder / f"earlier-{number}").exists():
            number += 1
        aside = self.folder / f"earlier-{number}"
        aside.mkdir()
        for path in found:
            path.rename(aside / path.name)
        self.say(f"The earlier run in {self.folder} was moved to {aside}.")


def _close(file: Any, quietly: bool) -> None:
    """Close a file; a full disk says so here again, which is told where nothing was before."""
    try:
        file.close()
    except OSError:
        if not quietly:
            raise


def _require_own(folder: Path, found: Sequence[Path]) -> None:
    """Raise RunFolderError where files have the names of a run's, and are not of one."""
    foreign = ", ".join(path.name for path in found if not _is_of_a_run(path))
    if foreign:
        raise RunFolderError(
            f"out={folder} has {foreign}, which a run would write, and which no run of fastmaml's "
            "wrote, or is damaged: give another folder, or move that away."
        )


def _is_of_a_run(path: Path) -> bool:
    """Whether a run may have written it; of pictures and TensorBoard's files nobody can say."""
    try:
        if path.suffix == ".jsonl":
            with path.open("rb") as file:
                return "iteration" in json.loads(file.readline() or b'{"iteration": 0}')
        if path.suffix == ".json":
            return "config" in json.loads(path.read_bytes())
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                return "fastmaml" in json.loads(file.read(_header(file)))["__metadata__"]
    except (ValueError, TypeError, KeyError, IsADirectoryError):
        return False
    return True


def _header(file: BinaryIO) -> int:
    """The length of a safetensors file's header, of JSON; 0 where it is longer than they are."""
    length = int.from_bytes(file.read(8), "little")
    return length if length < 100_000_000 else 0


def note(line: dict[str, Any]) -> str:
    """What the progress bar says of an iteration."""
    if "return" in line:
        return f"return {line['no_adaptation']:.3g} to {line['return']:.3g}"
    return f"loss {line['loss']:.3f}"


def _truncated(path: Path, iteration: int) -> list[dict[str, Any]]:
    """The lines up to `iteration`; later ones, and one that was cut off, are removed."""
    if not path.exists():
        return []
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if line["iteration"] > iteration:
            break
        kept.append(line)
    write_whole(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
    return kept


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a line but that of the iteration, by names such as ``validation/accuracy``.

    Args:
        values: the line.
        prefix: of the names.
    """
    for name, value in values.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "iteration":
            yield f"{prefix}{name}", float(value)
