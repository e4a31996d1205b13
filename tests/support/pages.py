"""The code in README and docs: fences, and the marks above them.

A fence names its language: ``python`` runs, the commands of ``sh`` and the settings of ``toml`` are
checked, ``text`` is what something prints. The line above a fence may be one of two comments:

    <!-- not run: REASON -->                it is left alone, for that reason
    <!-- run with: OLD -> NEW; ... -->      it runs with these pieces exchanged, all of which occur
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from places import ROOT

DOCS = ROOT / "docs"

_FENCE = re.compile(
    r"^(?:<!-- (?P<mark>.*) -->\n)?```(?P<language>.*)\n(?P<code>(?:.*\n)*?)```$", re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A fence of a page.

    Attributes:
        section: the number of second-level headings before it.
        reason: why it does not run; None where it does.
        swaps: what is exchanged, piece by piece, when it runs.
    """

    section: int
    language: str
    code: str
    reason: str | None = None
    swaps: tuple[tuple[str, str], ...] = ()

    @property
    def as_run(self) -> str:
        code = self.code
        for old, new in self.swaps:
            assert old in code, f"the mark exchanges {old!r}, which is not in the code:\n{code}"
            assert " -> " not in new, f"exchanges are parted by semicolons: {old} -> {new}"
            code = code.replace(old, new)
        return code


def pages() -> list[Path]:
    """README and every page of docs."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def name_of(page: Path) -> str:
    """The path of a page below docs, or README.md."""
    return str(page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT))


def blocks(text: str) -> Iterator[Block]:
    """The fences of a page's text."""
    for found in _FENCE.finditer(text):
        section = len(re.findall(r"^## ", text[: found.start()], re.MULTILINE))
        kind, _, rest = (found["mark"] or "").partition(": ")
        reason = rest if kind == "not run" else None
        swaps = [x.partition(" -> ")[::2] for x in rest.split("; ")] if kind == "run with" else []
        yield Block(section, found["language"], found["code"], reason, tuple(swaps))
