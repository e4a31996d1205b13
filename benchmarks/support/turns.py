"""Worker processes that take turns: one computes, the others wait."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.contestants import CONTESTANTS, LOOP, LOOP_FIRST
from benchmarks.support.origin import PATHS
from benchmarks.support.worker_lines import Lines

BESIDE = (LOOP, LOOP_FIRST, "torch.func vmap", "fastmaml")
"""What those that take minutes to begin are timed beside."""

OURS, JAX = ("fastmaml", "fastmaml, first order"), ("JAX jit of vmap", "JAX jit of lax.map")
OF_SECONDS = (LOOP, LOOP_FIRST, *JAX, *OURS)
"""Who is timed where a meta-step takes seconds."""


class WorkerError(Exception):
    """A worker cannot do what it was asked; the message says why."""


def jax_on(arguments: list[str]) -> str:
    """The platform that JAX shall use: that of the run."""
    return "cuda" if "cuda" in arguments else "cpu"


class Process:
    """A contestant's worker process.

    Args:
        python: the Python that runs it.
        arguments: of contestants/worker.py.
        threads: how many it may use; on the CPU.
        inherit: whether it finds packages where this process does.
    """

    def __init__(self, python: str, arguments: list[str], threads: int, inherit: bool) -> None:
        self.name = arguments[0]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # until the process ends
        known = [os.environ["PYTHONPATH"]] if inherit and "PYTHONPATH" in os.environ else []
        counts = dict.fromkeys(("OMP_NUM_THREADS", "NPROC", "PJRT_NPROC"), str(threads))
        path = os.pathsep.join([*PATHS, *known])
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.contestants.worker", *arguments, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=os.environ | counts | {"PYTHONPATH": path, "JAX_PLATFORMS": jax_on(arguments)},
            start_new_session=True,  # so that what it starts ends with it
        )
        assert self.process.stdout
        self.answers = Lines(self.process.stdout.fileno())

    def ask(self, do: str, limit: float, **arguments: Any) -> dict[str, Any]:
        """Have it do something, and wait for the answer.

        Raises:
            WorkerError: it failed, ended, or took longer than `limit` seconds, and was ended.
        """
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self.process.stdin.flush()
            answer = self.answers.next(time.monotonic() + limit)
        except BrokenPipeError:
            answer = None
        except TimeoutError:
            self.close()
            raise WorkerError(f"took longer than {limit:.0f} s") from None
        if answer is None:
            reason = self.last_words()
            self.close()
            raise WorkerError(f"its process ended: {reason}")
        found: dict[str, Any] = json.loads(answer)
        if "error" in found:
            self.close()
            raise WorkerError(found["error"][:300])
        return found

    def alive(self) -> bool:
        """Whether it can be asked."""
        return self.process.poll() is None

    def last_words(self) -> str:
        """The end of what it wrote to its standard error."""
        self.errors.seek(0)
        return " ".join(self.errors.read().split()[-40:])[-300:]

    def close(self) -> None:
        """End it, and what it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream and not stream.closed:
                stream.close()
        self.errors.close()


class Field:
    """The contestants of this run, and what keeps the others out of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.absent = {n: reason for n in CONTESTANTS if (reason := self._reason(n))}
        self.names = [n for n in CONTESTANTS if n not in self.absent and self._wanted(n)]
        self.absent = {n: reason for n, reason in self.absent.items() if self._wanted(n)}

    def _wanted(self, name: str) -> bool:
        asked = self.options.contestants
        if not asked and self.options.slow:
            return name in BESIDE or CONTESTANTS[name].slow
        if not asked and self.options.large:
            return name in OF_SECONDS
        if not asked or name in (LOOP, LOOP_FIRST):
            return True
        return any(a == name if a in CONTESTANTS else a in name for a in asked)

    def _reason(self, name: str) -> str | None:
        contestant = CONTESTANTS[name]
        if self.options.device not in contestant.devices:
            return f"not on {self.options.device}: {contestant.elsewhere}"
        if contestant.slow and not self.options.slow:
            return "takes minutes to begin: runs with --slow"
        if contestant.python(self.options.peers, sys.executable) is None:
            return "needs an environment of its own: see benchmarks/peers/install.sh, and --peers"
        return None

    def process(self, name: str, dtype: str) -> Process:
        o = self.options
        python = CONTESTANTS[name].python(o.peers, sys.executable)
        assert python
        arguments = [name, "--device", o.device, "--dtype", dtype, *(["--tf32"] if o.tf32 else [])]
        return Process(python, arguments, o.threads, inherit=python == sys.executable)
