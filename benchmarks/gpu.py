"""One short run on a machine with a GPU: builds, tests and measures, in order of value.

    make gpu                            # all parts, at most 8.5 minutes
    make gpu PARTS=build,smoke          # some
    make gpu-rehearsal                  # the same program on a CPU, in a copy of the tree

Needs the Python that has torch for CUDA, with setuptools, ninja, pybind11, pytest and nvcc, and no
network. Every part is a process of its own with a box of time; one that fails or is stopped leaves
what it had found. Writes ``gpu.json`` after each part, ``gpu.log``, and ``gpu_tests.xml`` (JUnit).
What is built is kept: a second run on the same machine does not build again.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

if not __package__:  # run by its path, which has its folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_parts import PARTS, Part
from benchmarks.gpu_parts.health import BROKEN
from benchmarks.gpu_parts.junit import junit
from benchmarks.support.origin import PATHS, ROOT, commit, cpu_name, save

KEPT = ROOT / "build" / "gpu"
ENVIRONMENT = ROOT / ".venv-gpu"
LONGEST_TABLE = 40
SECONDS = 505.0  # of ten minutes a command: to start and to copy take some
GRACE = 5.0  # seconds from asking a part to end to ending it


class Run:
    """The parts, one after another, until the time is over."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.end = time.monotonic() + options.seconds
        self.out: Path = options.out
        self.out.mkdir(parents=True, exist_ok=True)
        KEPT.mkdir(parents=True, exist_ok=True)
        self.result: dict[str, Any] = {
            "commit": commit(),
            "processor": cpu_name(),
            "device": options.device,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "quick": options.quick,
            "seconds": options.seconds,
            "parts": {},
        }

    def all(self, parts: list[Part]) -> bool:
        """Whether all of them ended well."""
        start = time.monotonic()
        with (self.out / "gpu.log").open("w") as log:
            for part in parts:
                found = self.one(part, log)
                self.result["parts"][part.name] = found
                self.result |= about(self.options.device)
                self.result["took"] = round(time.monotonic() - start, 1)
                save(self.out / "gpu.json", self.result)
                (self.out / "gpu_tests.xml").write_text(junit(self.result["parts"]))
                self.told(part, found)
        if self.options.device == "cpu":
            print("A rehearsal on a CPU, with Triton interpreted: its times mean nothing.")
        print("\n".join(table(self.result["parts"])), flush=True)
        return all(found["outcome"] == "done" for found in self.result["parts"].values())

    def one(self, part: Part, log: IO[str]) -> dict[str, Any]:
        """What a part found, and how it ended."""
        left = self.end - time.monotonic()
        # Sized for a GPU's machine. A CPU builds more slowly; and where small work shall show that
        # every part does it, a slow machine is no failure.
        stretched = part.name == "build" or self.options.quick
        box = min(part.box * (self.options.boxes if stretched else 1), left)
        if box <= GRACE:
            return {"outcome": "no time left", "seconds": 0.0, "rows": [], "table": []}
        answer = KEPT / f"{part.name}.json"
        answer.unlink(missing_ok=True)
        log.write(f"\n==== {part.name}: {part.what} ({box:.0f} s) ====\n")
        log.flush()
        start = time.monotonic()
        code = stopped(self.command(part, box, answer), self.environment(), box, log)
        while code == BROKEN and (left := start + box - time.monotonic()) > GRACE:
            log.write(f"\n==== {part.name} again, in another process ({left:.0f} s) ====\n")
            log.flush()
            command = [*self.command(part, left, answer), "--resume"]
            code = stopped(command, self.environment(), left, log)
        seconds = round(time.monotonic() - start, 1)
        found: dict[str, Any] = {"rows": [], "table": []}
        with contextlib.suppress(FileNotFoundError):
            found = json.loads(answer.read_text())
        outcome = "out of time" if code is None else "done" if code == 0 else f"failed ({code})"
        return {"outcome": outcome, "seconds": seconds, "box": box, **found}

    def command(self, part: Part, box: float, answer: Path) -> list[str]:
        python = ENVIRONMENT / "bin" / "python"
        own = part.name == "build" or self.options.here or not python.exists()
        command = [sys.executable if own else str(python)]
        command += ["-m", "benchmarks.gpu_parts.run", part.name]
        command += ["--device", self.options.device, "--seconds", f"{box - GRACE:.1f}"]
        command += ["--place", str(KEPT), "--json", str(answer)]
        return command + (["--quick"] if self.options.quick else [])

    def environment(self) -> dict[str, str]:
        """Of every part: what is compiled lies in the tree, and JAX leaves room for others."""
        given = os.environ.get("PYTHONPATH", "")  # of packages that were brought along, say
        mine = {
            "PYTHONPATH": os.pathsep.join([*PATHS, *filter(None, given.split(os.pathsep))]),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "TRITON_CACHE_DIR": str(KEPT / "triton"),
            "FASTMAML_CACHE": str(KEPT / "tiles"),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "JAX_PLATFORMS": self.options.device,  # else it would take the CPU without a word
        }
        if self.options.here:
            mine["FASTMAML_GPU_HERE"] = "1"
        if self.options.device == "cpu":
            mine |= {"CUDA_VISIBLE_DEVICES": ""}
        mine["TRITON_INTERPRET"] = "1" if self.options.device == "cpu" else "0"
        return os.environ | mine

    def told(self, part: Part, found: Mapping[str, Any]) -> None:
        """The line of a part that has ended."""
        first = (found.get("failures") or found["table"] or [""])[0]
        print(f"{part.name:10} {found['outcome']:12} {found['seconds']:6.1f} s  {first}"[:160])
        sys.stdout.flush()


def about(device: str) -> dict[str, Any]:
    """What the first part found, in this run or in one before: the device and versions."""
    path = KEPT / f"about-{device}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def stopped(
    command: list[str], environment: dict[str, str], box: float, log: IO[str]
) -> int | None:
    """Run it for at most so many seconds, with all that it starts; its exit code, or None."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    code: int | None = None
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(box - GRACE / 2)
    finally:
        with contextlib.suppress(ProcessLookupError):  # whatever it left running, too
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it
            process.wait(2)
    return code


def table(parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The end of the run: what was found, in so many lines at most."""
    lines = [f"-- {name}: {line}" for name, found in parts.items() for line in found["table"]]
    failed = [f"!! {name}: {why}" for name, f in parts.items() for why in f.get("failures", ())]
    room = LONGEST_TABLE - min(len(failed), LONGEST_TABLE // 4)
    kept = lines[:room] + failed[: LONGEST_TABLE - len(lines[:room])]
    return [line[:160] for line in kept]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--parts", default="", help=f"of {','.join(names)}; all by default")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="small: does every part work?")
    parser.add_argument("--seconds", type=float, help=f"for all parts together; {SECONDS:.0f}")
    parser.add_argument("--here", action="store_true", help="no environment of its own")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cuda")
    parser.add_argument(
        "--boxes", type=float, help="times the build's box, --quick times every box; 4 on a CPU"
    )
    options = parser.parse_args()
    options.boxes = options.boxes or (4 if options.device == "cpu" else 1)
    options.seconds = options.seconds or SECONDS * (options.boxes if options.quick else 1)
    options.parts = [name for name in options.parts.split(",") if name] or names
    if unknown := sorted(set(options.parts) - set(names)):
        parser.error(f"--parts: there is no part {', '.join(unknown)}; choose from {names}.")
    return options


def main() -> None:
    options = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # what it started ends with it
    if not Run(options).all([part for part in PARTS if part.name in options.parts]):
        sys.exit(1)


if __name__ == "__main__":
    main()
