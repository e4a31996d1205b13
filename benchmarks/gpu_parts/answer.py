"""What a part is asked, and what it answers: written as it goes, as it may be stopped."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts import health
from benchmarks.support.origin import save


class Broken(BaseException):
    """CUDA no longer works in this process; no guard holds it."""


class Answer:
    """The part's arguments, and its results so far.

    Attributes:
        device: "cuda" or "cpu".
        quick: whether to show only that it works.
        place: a folder for files of this run, shared by the parts.
        found: what will stand under the part's name in ``gpu.json``: ``rows``; ``table``, lines
            for the end of the run; and anything else.
        failures: what is wrong; a part with failures has failed.
    """

    def __init__(
        self,
        device: str,
        quick: bool,
        seconds: float,
        place: Path,
        path: Path,
        resume: bool = False,
    ) -> None:
        self.device, self.quick, self.place, self.path = device, quick, place, path
        self.end = time.monotonic() + seconds
        self.found: dict[str, Any] = {"rows": [], "table": []}
        self.failures: list[str] = []
        place.mkdir(parents=True, exist_ok=True)
        if resume:
            self.found = json.loads(path.read_text())
            self.failures = self.found.pop("failures")

    @classmethod
    def asked(cls) -> Answer:
        """By the command line of a part."""
        parser = argparse.ArgumentParser()
        parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
        parser.add_argument("--quick", action="store_true")
        parser.add_argument("--seconds", type=float, required=True)
        parser.add_argument("--place", type=Path, required=True)
        parser.add_argument("--json", type=Path, required=True)
        parser.add_argument("--resume", action="store_true", help="after a process that broke")
        o = parser.parse_args()
        return cls(o.device, o.quick, o.seconds, o.place, o.json, o.resume)

    @property
    def small(self) -> bool:
        """Whether sizes are: on a CPU Triton's interpreter runs the kernels."""
        return self.quick or self.device == "cpu"

    @property
    def left(self) -> float:
        """Seconds until the part is stopped."""
        return self.end - time.monotonic()

    def row(self, **row: Any) -> None:
        """Add a result."""
        self.found["rows"].append(row)
        self.write()

    def say(self, line: str) -> None:
        """Add a line to the table, and to the log."""
        print(line, flush=True)
        self.found["table"].append(line)
        self.write()

    def fail(self, why: str) -> None:
        """Add a failure; the part goes on."""
        print(f"FAILED: {why}", flush=True)
        self.failures.append(why)
        self.write()

    def begins(self, what: object) -> bool:
        """Whether to do it: not where an earlier process of this part has begun with it."""
        begun: list[object] = self.found.setdefault("begun", [])
        if what in begun:
            return False
        begun.append(what)
        self.write()
        return True

    @contextlib.contextmanager
    def guarding(self, what: str) -> Iterator[None]:
        """A measurement that fails leaves the others: to another process, if it broke this one."""
        try:
            yield
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            self.fail(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            if health.broken(self.device):
                self.found.setdefault("broke", []).append(what)
                self.write()
                raise Broken from error

    def write(self) -> None:
        """All of it."""
        save(self.path, {**self.found, "failures": self.failures})
