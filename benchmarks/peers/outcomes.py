"""What came of comparing names, and which differences have a reason."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple


class Row(NamedTuple):
    """One name: `verdict` is "equal", "more" (takes more than the other), or what is different."""

    name: str
    verdict: str

    @property
    def same(self) -> bool:
        return self.verdict in ("equal", "more")


class Outcome(NamedTuple):
    """Names of one package: counts, differences with their reasons, and what has no reason."""

    counts: dict[str, int]
    explained: dict[str, list[str]]
    unexplained: dict[str, str]
    needless: list[str]

    @property
    def good(self) -> bool:
        return not (self.unexplained or self.needless)


def outcome(rows: list[Row], reasons: Mapping[str, str]) -> Outcome:
    """Sort rows by the first pattern of `reasons` that matches.

    Args:
        reasons: of patterns of names, as of `fnmatch`, why they are different.
    """
    explained: dict[str, list[str]] = {}
    unexplained, used = {}, set()
    for row in rows:
        if row.same:
            continue
        fitting = [pattern for pattern in reasons if fnmatchcase(row.name, pattern)]
        used.update(fitting)
        if fitting:
            explained.setdefault(reasons[fitting[0]], []).append(row.name)
        else:
            unexplained[row.name] = row.verdict
    verdicts = [row.verdict for row in rows]
    counts = {
        "names": len(rows),
        "equal": verdicts.count("equal"),
        "more": verdicts.count("more"),
        "explained": sum(map(len, explained.values())),
        "unexplained": len(unexplained),
    }
    return Outcome(counts, explained, unexplained, [p for p in reasons if p not in used])
