"""Checks in several processes: one that takes its process with it costs only itself."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.gpu_parts import health
from benchmarks.gpu_parts.answer import Answer
from benchmarks.support.worker_lines import Lines

PATIENCE = {"cuda": 45.0, "cpu": 300.0}
"""Seconds for one check; Triton's interpreter is slow."""

SHARED = {
    "OMP_NUM_THREADS": "1",
    "FASTMAML_CACHE": f"{tempfile.gettempdir()}/fastmaml-tiles-not-kept",
}
"""Of a process among others: no threads of its own on the CPU, and tiles that were measured beside
others, which none that is timed shall use."""

Check = Callable[[str], dict[str, Any]]


def processes(answer: Answer) -> int:
    """How many at a time: eight share a GPU well."""
    return 1 if answer.quick else min(8, os.cpu_count() or 1)


def checked(answer: Answer, module: str, names: Iterable[str], count: int) -> None:
    """Have ``check(name)`` of a module called for each name, in that order, until time is over.

    Each gives a row: ``name``, ``outcome``, ``seconds``, ``why``, and what the check returned.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    names = list(names)
    for name in names:
        waiting.put(name)
    lock = threading.Lock()

    def work() -> None:
        worker: Worker | None = None
        while answer.left > 0:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                break
            if worker is None or not worker.alive():
                worker = Worker(module, answer.device)
            patience = PATIENCE[answer.device]
            row = worker.ask(name, patience, answer.end)
            if row["outcome"] == "late" and answer.left <= 0:
                break  # it was the box that ended; this one was not reached
            with lock:
                if row["outcome"] == "late":
                    row["outcome"] = "error"
                if row["outcome"] in ("failed", "error"):
                    why = (row["why"].strip().splitlines() or ["?"])[-1]
                    answer.failures.append(f"{name}: {why[:300]}")
                    print(f"\n{name}: {row['why']}", flush=True)
                answer.row(**row)
        if worker is not None:
            worker.close()

    threads = [threading.Thread(target=work) for _ in range(min(count, len(names)) or 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [row for row in answer.found["rows"] if "outcome" in row]
    answer.found["counts"] = counts = {
        what: sum(row["outcome"] == what for row in done)
        for what in ("passed", "failed", "error", "skipped")
    }
    answer.found["not_reached"] = len(names) - len(done)
    if not counts["passed"]:
        answer.fail("no check passed")
    told = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
    answer.say(f"{told or 'nothing'} of {len(names)}")


class Worker:
    """A process that checks one name at a time."""

    def __init__(self, module: str, device: str) -> None:
        command = [sys.executable, "-m", "benchmarks.gpu_parts.pool", module, device]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | SHARED
        )
        assert self.process.stdout
        self.answers = Lines(self.process.stdout.fileno())
        self.ready = self.closed = False

    def alive(self) -> bool:
        """Whether it can be asked; a process that was ended may still be held by a driver."""
        return not self.closed and self.process.poll() is None

    def ask(self, name: str, limit: float, end: float) -> dict[str, Any]:
        """The row of a check; a process that ends, or takes too long, is a row as well.

        Args:
            name: of the check.
            limit: seconds for it. To begin, a process has all the time that there is: eight that
                load PyTorch at once are slow.
            end: when that is, a time of `time.monotonic`.
        """
        start = time.monotonic()
        why, outcome, row = "its process ended", "error", None
        try:
            if not self.ready:
                self.ready = self.answers.next(end) is not None
                start = time.monotonic()
            assert self.process.stdin
            self.process.stdin.write(json.dumps(name).encode() + b"\n")
            self.process.stdin.flush()
            line = self.answers.next(min(start + limit, max(end, start + 0.1)))
            row = None if line is None else json.loads(line)
        except TimeoutError:
            why, outcome = f"took longer than {limit:.0f} s", "late"
        except BrokenPipeError:
            pass
        if row is None or row.pop("broken", False):
            self.close()
            row = row or {"outcome": outcome, "why": why}
        return {"name": name, "seconds": round(time.monotonic() - start, 3), **row}

    def close(self) -> None:
        """End it."""
        self.closed = True
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it
            self.process.wait(1)
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                assert pipe
                pipe.close()


def outcome_of(check: Check, name: str, device: str) -> dict[str, Any]:
    """What the check returns, or how it failed, and whether that broke this process."""
    import pytest  # the checks are tests' own, which skip

    try:
        return {"outcome": "passed", **(check(name) or {})}
    except pytest.skip.Exception as skipped:
        return {"outcome": "skipped", "why": str(skipped)}
    except AssertionError:
        outcome = "failed"
    except Exception:
        outcome = "error"
    why = traceback.format_exc()[-4000:]
    return {"outcome": outcome, "why": why, "broken": health.broken(device)}


def main() -> None:
    """The worker: a name a line on its input, a row a line on its output."""
    module, device = sys.argv[1:]
    # Libraries print: the answers go where nothing else does.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    check = importlib.import_module(module).checks(device)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(outcome_of(check, json.loads(line), device)), file=answers, flush=True)


if __name__ == "__main__":
    main()
