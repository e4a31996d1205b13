"""What is held back in several threads at once."""

from __future__ import annotations

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
