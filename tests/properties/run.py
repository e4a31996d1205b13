"""Run the properties on new random cases for as long as one likes: `make fuzz MINUTES=10`.

    python tests/properties/run.py --minutes 10 [tapes modules changes]
    python tests/properties/run.py --seed 123 tapes     # the round that this seed makes, again

Rounds take turns, each in a process of its own, so that a crash is a failure like any other and
the next round begins afresh. A failure is printed once, as its smallest case; to run it again:

    python tests/properties/run.py --case "Program(moves=(...))" tapes
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import random
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import UnsatisfiedAssumption

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "support")]

from properties import changes, modules, tapes  # noqa: E402

PROPERTIES: dict[str, tuple[Any, Any]] = {
    "tapes": (tapes.programs(), tapes),
    "modules": (modules.cases(), modules),
    "changes": (changes.cases(), changes),
}
ROUND = 40.0
"""Seconds that a round looks for cases, and that it makes a failing one smaller."""


class Round:
    """Cases of one property, until the time is over or one fails."""

    def __init__(self, name: str, seconds: float, note: Path) -> None:
        self.strategy, self.place = PROPERTIES[name]
        self.note, self.ends = note, time.monotonic() + seconds
        self.failed: dict[str, Exception] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.last = ""

    def one(self, case: Any) -> None:
        """Check it; once the time is over, only what failed before fails."""
        text = repr(case)
        if time.monotonic() > self.ends:
            if text in self.failed:
                self.last = text
                raise self.failed[text]
            return
        self.note.write_text(text)
        try:
            self.place.check(case)
            self.counts["right"] += 1
        except UnsatisfiedAssumption:
            self.counts["not a case"] += 1
            raise
        except self.place.RefusedError as refusal:
            self.counts["refused"] += 1
            self.counts[f"  {str(refusal)[:110]}"] += 1
        except Exception as error:
            if not self.failed:  # from here on the time is for a smaller one
                self.ends = time.monotonic() + ROUND
            self.failed[text], self.last = error, text
            raise

    def run(self, number: int) -> dict[str, Any]:
        """What was found, as plain data."""

        @seed(number)
        @settings(
            max_examples=10**6,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        @given(self.strategy)
        def held(case: Any) -> None:
            if time.monotonic() > self.ends and not self.failed:
                raise KeyboardInterrupt  # the one thing that ends hypothesis early
            self.one(case)

        found: dict[str, Any] = {}
        try:
            held()
        except KeyboardInterrupt:
            pass
        except Exception as raised:
            error = self.failed.get(self.last, raised)
            text = "".join(traceback.format_exception(error, limit=-4))
            kind = f"{type(error).__name__}: {error}".splitlines()[0]
            found = {"case": self.last, "error": text, "kind": kind}
        return {"counts": dict(self.counts), **found}


def child(name: str, number: int, seconds: float, note: Path) -> dict[str, Any]:
    """A round in another process: its result, or how it died."""
    command = [sys.executable, __file__, name, "--seed", str(number), "--seconds", str(seconds)]
    limit = seconds + 6 * ROUND
    try:
        done = subprocess.run(
            [*command, "--note", str(note)], capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        kind, more = f"no end after {limit:.0f} s", ""
    else:
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1])
        kind, more = f"exit {done.returncode}", done.stderr[-2000:]
    case = note.read_text() if note.exists() else ""
    return {"counts": {}, "case": case, "error": f"{kind}\n{more}", "kind": kind}


def fuzz(names: list[str], minutes: float) -> int:
    """Take turns; print every failure once, and the counts; how many failures there were."""
    ends, turn = time.monotonic() + 60 * minutes, 0
    totals = {name: collections.Counter() for name in names}
    kinds: set[str] = set()
    note = Path(tempfile.mkdtemp()) / "case.txt"
    while (left := ends - time.monotonic()) > 5:
        name, number = names[turn % len(names)], random.SystemRandom().randrange(2**32)
        found = child(name, number, min(ROUND, left), note)
        totals[name].update(found["counts"])
        totals[name]["failures"] += "error" in found
        turn += 1
        if "error" not in found:
            continue
        kind = "".join(c for c in found["kind"] if not c.isdigit())[:60]
        known = (name, kind) in kinds
        kinds.add((name, kind))
        print(f"\n{name}, seed {number}: {found['case']}", flush=True)
        print(f"{'again: ' + kind if known else found['error'][-2500:]}", flush=True)
    print()
    for name, counts in totals.items():
        print(f"{name}: " + ", ".join(f"{n} {k}" for k, n in counts.items() if k[0] != " "))
        print("".join(f"{n:8} {k}\n" for k, n in counts.most_common() if k[0] == " "), end="")
    return sum(counts["failures"] for counts in totals.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="|".join(PROPERTIES), help="all by default")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=ROUND, help="of one round")
    parser.add_argument("--seed", type=int, help="run one round, of this seed")
    parser.add_argument("--case", help="run this one")
    parser.add_argument("--note", type=Path, default=Path(tempfile.gettempdir()) / "case.txt")
    given = parser.parse_args()
    names = given.names or list(PROPERTIES)
    if wrong := set(names) - PROPERTIES.keys():
        parser.error(f"{', '.join(wrong)}: choose among {', '.join(PROPERTIES)}.")
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    if given.case is not None:
        place = PROPERTIES[names[0]][1]
        place.check(eval(given.case, vars(sys.modules[place.__name__])))
        return 0
    if given.seed is not None:
        print(json.dumps(Round(names[0], given.seconds, given.note).run(given.seed)))
        return 0
    return min(fuzz(names, given.minutes), 1)


if __name__ == "__main__":
    sys.exit(main())
