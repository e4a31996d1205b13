"""What is held back in several threads at once."""

from __future__ import annotations

import contextlib
import io
import sys
import threading

import pytest

from fastmaml.engine.base.held_output import HeldOutput


def test_holders_may_end_in_any_order(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    first, second = HeldOutput(), HeldOutput()
    for one in (first, second):
        one.__enter__()
    print("held by the second")
    first.__exit__(None, None, None)
    assert sys.stdout is second
    second.release()
    second.__exit__(None, None, None)
    assert sys.stdout is before
    print("and after")
    assert capsys.readouterr().out == "held by the second\nand after\n"


def test_other_threads_print_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with HeldOutput() as held:
        print("mine")
        other = threading.Thread(target=print, args=("another's",))
        other.start()
        other.join()
        assert held.printed
    assert capsys.readouterr().out == "another's\n"


def test_threads_that_hold_at_the_same_time(capsys: pytest.CaptureFixture[str]) -> None:
    """The one that began first ends first: its text is gone, that of the other is not."""
    before, inside, out = sys.stdout, threading.Event(), threading.Event()

    def other() -> None:
        with HeldOutput() as held:
            inside.set()
            out.wait()
            print("the other's")
            held.release()

    with HeldOutput():
        thread = threading.Thread(target=other)
        thread.start()
        inside.wait()
        print("mine")
    out.set()
    thread.join()
    assert sys.stdout is before
    assert capsys.readouterr().out == "the other's\n"


def other_redirects(to: io.StringIO, inside: threading.Event) -> threading.Thread:
    """A thread that redirects stdout until `inside` is set."""
    redirected = threading.Event()

    def other() -> None:
        with contextlib.redirect_stdout(to):
            redirected.set()
            inside.wait()

    thread = threading.Thread(target=other)
    thread.start()
    redirected.wait()
    return thread


def test_a_redirection_of_another_thread_that_ends_later(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It puts back what it found: that holds nothing any more."""
    before, elsewhere, left = sys.stdout, io.StringIO(), threading.Event()
    monkeypatch.setattr(sys, "stdout", before)
    with HeldOutput() as held:
        thread = other_redirects(elsewhere, left)
    assert sys.stdout is elsewhere, "is the other thread's"
    print("within it")
    left.set()
    thread.join()
    assert sys.stdout is held
    print("afterwards")
    assert (held.isatty(), held.fileno()) == (before.isatty(), before.fileno())
    with HeldOutput():
        print("held")
        with pytest.raises(io.UnsupportedOperation):
            sys.stdout.fileno()
    assert sys.stdout is before, "and the next that holds puts it right"
    assert (elsewhere.getvalue(), capfd.readouterr().out) == ("within it\n", "afterwards\n")


def test_a_redirection_between_two_that_hold(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before, elsewhere, left = sys.stdout, io.StringIO(), threading.Event()
    monkeypatch.setattr(sys, "stdout", before)
    first, second = HeldOutput(), HeldOutput()
    first.__enter__()
    thread = other_redirects(elsewhere, left)
    second.__enter__()
    first.__exit__(None, None, None)
    assert sys.stdout is second, "which the first does not stand behind"
    left.set()
    thread.join()
    assert sys.stdout is first
    second.__exit__(None, None, None)
    assert sys.stdout is first
    print("seen")
    assert (elsewhere.getvalue(), capfd.readouterr().out) == ("", "seen\n")
