"""Compare `fastmaml.compat` with the real learn2learn and higher; `make peers` runs it.

It runs in the environment that benchmarks/peers/install.sh makes, from the repository's root:

    PYTHONPATH=. FOLDER/torch/bin/python -m benchmarks.peers --sources FOLDER/sources

Names: every public name of theirs is there, takes the same arguments, or is explained in
benchmarks/peers/explained.py. Numbers: the tests that run the same scripts on both. Suites: the
tests that they publish, under the real one and through `fastmaml.compat.install`. It ends with 1
where a name differs without a reason, a reason is not needed, a test of ours fails or misses its
peer, or one of theirs passes under the real one alone.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
import warnings
from pathlib import Path
from typing import Any

from benchmarks.peers import suites
from benchmarks.peers.explained import EXPLAINED, PRIVATE
from benchmarks.peers.names import compare
from benchmarks.peers.outcomes import outcome
from benchmarks.support.results import about, place, save

Result = dict[str, Any]
PARTS = ("names", "numbers", "suites")


def names() -> Result:
    """By package."""
    found = {}
    for package, reasons in EXPLAINED.items():
        told = outcome(compare(package, "fastmaml.compat", PRIVATE), reasons)
        found[package] = {"good": told.good, **told._asdict()}
        counts = ", ".join(f"{count} {kind}" for kind, count in told.counts.items())
        print(f"{package}: {counts}")
        for reason, those in told.explained.items():
            print(f"  {len(those):4}  {reason}")
        for name, why in told.unexplained.items():
            print(f"  UNEXPLAINED {name}: {why}")
        for pattern in told.needless:
            print(f"  NEEDLESS the reason for {pattern}, which nothing needs")
    return found


def numbers() -> Result:
    """The tests of ours that run under both."""
    found = suites.ours()
    bad = [n for n, o in found.items() if o == "failed" or "`make peers`" in o]
    print(f"numbers: {told(found)}")
    for name in bad:
        print(f"  FAILED or without its peer: {name}")
    skipped = {n: o for n, o in found.items() if o.startswith("skipped") and n not in bad}
    return {"good": not bad, "counts": suites.counted(found), "failed": bad, "skipped": skipped}


def own_suites(*folders: Path | None) -> Result:
    """By package: what it publishes, run twice."""
    found = {}
    for package, tests in suites.find(*folders).items():
        theirs, here = suites.both(tests)
        gone = suites.lost(theirs, here)
        print(f"{package}'s own tests: {told(theirs)} under the real one; {told(here)} here")
        for name in gone:
            print(f"  LOST {name}")
        found[package] = {
            "good": not gone,
            "real": suites.counted(theirs),
            "here": suites.counted(here),
            "lost": gone,
            "fail in both": [n for n, o in here.items() if o == "failed" and n not in gone],
        }
    return found


def told(found: dict[str, str]) -> str:
    counts = suites.counted(found)
    return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)


def versions() -> dict[str, str]:
    """Of the peers; learn2learn lies there without a record of its release."""
    real = importlib.import_module("learn2learn")
    return {"learn2learn": real.__version__, "higher": importlib.metadata.version("higher")}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--sources", type=Path, help="what the peers' packages publish, unpacked")
    parser.add_argument(
        "--suites", type=Path, help="a folder with clones of theirs, to be preferred"
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run"
    )
    parser.add_argument("--json", type=Path, help="the file that is written instead of results/")
    options = parser.parse_args()
    for folder in (options.sources, options.suites):
        if folder is not None and not suites.find(folder):
            parser.error(f"{folder} has neither learn2learn*/tests nor higher*/tests")
    warnings.simplefilter("ignore")  # the peers' and the old gym's
    found: Result = {**about(), "versions": versions()}
    if "names" in options.only:
        found["names"] = names()
    if "numbers" in options.only:
        found["numbers"] = numbers()
    if "suites" in options.only:
        found["suites"] = own_suites(options.sources, options.suites)
    found["good"] = all(part["good"] for part in judged(found))
    if options.json or set(options.only) == set(PARTS):
        save(place(options.json, "cpu", "peers"), found)
    print("as the real ones, or explained" if found["good"] else "DIFFERENT, as said above")
    return 0 if found["good"] else 1


def judged(found: Result) -> list[Result]:
    packages = [*found.get("names", {}).values(), *found.get("suites", {}).values()]
    return [*packages, *([found["numbers"]] if "numbers" in found else [])]


if __name__ == "__main__":
    sys.exit(main())
