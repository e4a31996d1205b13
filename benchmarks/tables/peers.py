"""Tables of `make peers`: names, numbers and tests beside the real learn2learn and higher."""

from __future__ import annotations

from typing import Any

from benchmarks.tables.cells import table

Result = dict[str, Any]


def peers(found: Result) -> str:
    """Names and their own tests by package, then what ran under both."""
    header = [
        "package",
        "public names",
        "equal",
        "take more",
        "explained",
        "unexplained",
        "its own tests: pass under the real one",
        "and through `install()`",
    ]
    rows = [row(package, found) for package in found["names"]]
    counts = found["numbers"]["counts"]
    text = (
        f"And {counts['passed'] + counts['failed']} tests of ours ran the same code under both: "
        f"{counts['failed']} failed. {found['device']}, torch {found['torch']}, "
        f"Python {found['python']}."
    )
    return f"{table(header, rows)}\n\n{text}"


def row(package: str, found: Result) -> list[str]:
    counts = found["names"][package]["counts"]
    kinds = ("names", "equal", "more", "explained", "unexplained")
    own = found["suites"].get(package)
    tests = [passed(own[which]) if own else "not run" for which in ("real", "here")]
    return [f"{package} {found['versions'][package]}", *(str(counts[k]) for k in kinds), *tests]


def passed(counts: dict[str, int]) -> str:
    return f"{counts['passed']} of {sum(counts.values())}"
