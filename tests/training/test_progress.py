"""Progress where no bar can move: a line now and then."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from fastmaml.cli import main
from fastmaml.training.progress import progress_bar

console = pytest.importorskip("rich.console", reason="no rich (fastmaml[train])")


def lines(seconds: list[float], done: int = 0, terminal: bool = False, every: float = 30) -> str:
    """What is printed where the iterations end at these seconds."""
    file = io.StringIO()
    screen = console.Console(file=file, force_terminal=terminal, width=100)
    clock = iter([0.0, *seconds])
    total = done + len(seconds)
    given = "training", done, total, every, lambda: next(clock)
    with progress_bar(screen, *given) as show:
        show(done, "planning")  # nothing was done yet: it takes no line and asks for no time
        for number in range(done, total):
            show(number + 1, f"loss {number}")
    return file.getvalue()


def test_the_first_the_last_and_one_in_half_a_minute() -> None:
    assert lines([60.0, *(60 + 8.0 * n for n in range(1, 11))]).splitlines() == [
        "training 1/11, 60 s so far, loss 0",
        "training 5/11, 8.0 s each, 48 s left, loss 4",
        "training 9/11, 8.0 s each, 16 s left, loss 8",
        "training 11/11, 8.0 s each, loss 10",
    ]


def test_a_resumed_run_and_a_quick_one() -> None:
    assert lines([0.5, 0.75, 1.0], done=40).splitlines() == [
        "training 41/43, 0.5 s so far, loss 40",
        "training 43/43, 4.0/s, loss 42",
    ]
    assert len(lines([1.0, 2.0, 3.0], every=0.0).splitlines()) == 3
    assert lines([7200.0]) == "training 1/1, 2.0 h so far, loss 0\n"


def test_a_terminal_has_the_bar() -> None:
    assert "so far" not in lines([1.0, 2.0], terminal=True)


def test_a_run_whose_output_is_no_terminal_says_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--iterations", "2", "--evaluate-every", "0", "--test-episodes", "4", "--no-plots"]
    asked = ["--tasks", "2", "--filters", "4", "--threads", "1", "--out", str(tmp_path)]
    assert main(["train", "digits", *flags, *asked]) == 0
    said = capsys.readouterr().out
    assert "\nmeta-training 1/2, " in said
    assert "\nmeta-training 2/2, " in said
    assert ", loss " in said
    assert "\nfinal test " in said
    assert main(["eval", str(tmp_path), "--episodes", "4"]) == 0
    assert "test episodes 4/4, " in capsys.readouterr().out
