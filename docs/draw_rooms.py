"""Draw the rooms of the package, from its imports: docs/figures/rooms.svg and a table.

    python docs/draw_rooms.py            # writes the picture, and the table in docs/architecture.md
    python docs/draw_rooms.py --check    # fails if they are not what the imports say

The floors are those of tests/support/rooms.py, to which a test holds the code. An arrow goes
from a room to one that it imports from, unless others already say so (A to B, B to C: A to C).
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from html import escape
from itertools import pairwise
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "support"))

import rooms  # noqa: E402

PICTURE = ROOT / "docs" / "figures" / "rooms.svg"
PAGE = ROOT / "docs" / "architecture.md"

WIDTH, HEIGHT, GAP, FLOOR, MARGIN = 118, 34, 14, 58, 24
"""Of a room; between two of them; from floor to floor; around everything; in pixels."""


@dataclass
class House:
    """The rooms, floor by floor from the ground up, and what each imports from."""

    floors: list[list[str]]
    imports: dict[str, set[str]]
    about: dict[str, str]

    def arrows(self) -> list[tuple[str, str]]:
        """The imports that no other ones imply, in order."""

        @cache
        def below(room: str) -> frozenset[str]:
            found = self.imports[room]
            return frozenset(found).union(*(below(other) for other in found))

        return [
            (room, other)
            for floor in reversed(self.floors)
            for room in floor
            for other in sorted(self.imports[room])
            if not any(other in below(x) for x in self.imports[room] - {other})
        ]


def read() -> House:
    """The house as the code is now."""
    imports: dict[str, set[str]] = {room: set() for floor in rooms.FLOORS for room in floor}
    about: dict[str, str] = {}
    for path in rooms.FILES:
        module = rooms.module_of(path)
        room = rooms.room_of(module)
        if room not in imports:
            continue
        imports[room] |= rooms.imported(path) - {room}
        if module == room:
            about[room] = first_line(path)
    return House([list(floor) for floor in rooms.FLOORS], imports, about)


def first_line(path: Path) -> str:
    """What a module says of itself, in one sentence."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.split("\n\n")[0].replace("\n", " ").replace("``", "`")


@dataclass
class Drawing:
    """Where everything stands: a place on a floor is a room, or the way of an arrow past it."""

    house: House
    places: list[list[str]] = field(default_factory=list)
    ways: list[list[str]] = field(default_factory=list)
    x: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        floors = self.house.floors
        height = {room: i for i, floor in enumerate(floors) for room in floor}
        self.places = [list(floor) for floor in floors]
        for room, other in self.house.arrows():
            passed = range(height[room] - 1, height[other], -1)
            bends = [f"{room}>{other}@{i}" for i in passed]
            for i, bend in zip(passed, bends, strict=True):
                self.places[i].append(bend)
            self.ways.append([room, *bends, other])
        self._arrange()

    def _arrange(self) -> None:
        """Put each place near what it is joined to, without two of them in one spot."""
        joined: dict[str, list[str]] = {}
        for way in self.ways:
            for a, b in pairwise(way):
                joined.setdefault(a, []).append(b)
                joined.setdefault(b, []).append(a)
        for floor in self.places:
            self._spread(floor, {p: float(i) for i, p in enumerate(floor)})
        for turn in range(24):
            for floor in self.places if turn % 2 else reversed(self.places):
                wanted = {p: fmean(self.x[q] for q in joined[p]) for p in floor if p in joined}
                edge = min(wanted.values()) - WIDTH  # where those stand that nothing is joined to
                wanted |= {p: edge for p in floor if p not in joined}
                self._spread(floor, wanted)
        left = min(self.x[p] - self.wide(p) / 2 for floor in self.places for p in floor)
        self.x = {p: x - left + MARGIN for p, x in self.x.items()}

    def _spread(self, floor: list[str], wanted: dict[str, float]) -> None:
        """Stand in the wanted order, as near to the wanted spots as there is room."""
        floor.sort(key=lambda p: wanted[p])
        at: list[float] = []
        for p in floor:
            before = (self.wide(floor[len(at) - 1]) + self.wide(p)) / 2 + GAP
            at.append(max(wanted[p], at[-1] + before) if at else wanted[p])
        shift = sum(wanted[p] - x for p, x in zip(floor, at, strict=True)) / len(floor)
        self.x |= {p: x + shift for p, x in zip(floor, at, strict=True)}

    def wide(self, place: str) -> float:
        """The room that a place takes."""
        return WIDTH if place in self.house.imports else 4

    def top(self, floor: int) -> float:
        """The upper edge of the rooms on a floor."""
        return MARGIN + (len(self.places) - 1 - floor) * FLOOR

    def svg(self) -> str:
        """The whole picture."""
        width = max(self.x[p] + self.wide(p) / 2 for f in self.places for p in f) + MARGIN
        height = self.top(0) + HEIGHT + MARGIN
        on = {p: i for i, floor in enumerate(self.places) for p in floor}
        parts = [self._path(way, on) for way in self.ways]
        parts += [self._room(p, on[p]) for f in self.places for p in f if p in self.house.imports]
        return "\n".join([HEAD.format(w=round(width), h=round(height)), *parts, "</svg>", ""])

    def _path(self, way: list[str], on: dict[str, int]) -> str:
        start = (self.x[way[0]], self.top(on[way[0]]) + HEIGHT)
        points = [(self.x[p], self.top(on[p]) + HEIGHT / 2) for p in way[1:-1]]
        end = (self.x[way[-1]], self.top(on[way[-1]]) - 3)
        text = f"M{start[0]:.0f} {start[1]:.0f}"
        for (x, y), (u, v) in zip([start, *points], [*points, end], strict=True):
            middle = (y + v) / 2
            text += f" C{x:.0f} {middle:.0f} {u:.0f} {middle:.0f} {u:.0f} {v:.0f}"
        said = f"{escape(way[0])} imports from {escape(way[-1])}"
        return f'<path d="{text}"><title>{said}</title></path>'

    def _room(self, room: str, floor: int) -> str:
        x, y = self.x[room] - WIDTH / 2, self.top(floor)
        kind = "engine" if room.startswith("engine.") else "room"
        return (
            f'<g class="{kind}"><title>{escape(self.house.about.get(room, room))}</title>'
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="4"/>'
            f'<text x="{self.x[room]:.0f}" y="{y + HEIGHT / 2 + 4:.0f}">{escape(room)}</text></g>'
        )


HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}">
<style>
  rect {{ fill: #eceff1; stroke: #607d8b; }}
  .engine rect {{ fill: #cfd8dc; }}
  text {{ font: 12px sans-serif; text-anchor: middle; fill: #263238; }}
  path {{ fill: none; stroke: #78909c; stroke-width: 1.2; marker-end: url(#to); }}
</style>
<defs>
<marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L8 4L0 8z" style="fill: #78909c; stroke: none; marker-end: none"/></marker>
</defs>
<rect x="0" y="0" width="{w}" height="{h}" style="fill: #ffffff; stroke: none"/>"""


def table(house: House) -> str:
    """A row a room, from the top floor down."""
    rows = ["| room | what it is | imports from |", "|---|---|---|"]
    for floor in reversed(house.floors):
        for room in floor:
            others = ", ".join(f"`{other}`" for other in sorted(house.imports[room]))
            rows.append(f"| `{room}` | {house.about.get(room, '')} | {others or 'nothing'} |")
    return "\n".join(rows)


def made() -> dict[Path, str]:
    """What the picture and the page should hold."""
    house = read()
    pattern = r"(<!-- rooms -->\n).*?(<!-- end -->)"
    page, count = re.subn(
        pattern, lambda m: f"{m[1]}{table(house)}\n{m[2]}", PAGE.read_text(), flags=re.DOTALL
    )
    assert count == 1, f"{PAGE} has no place for the table of rooms"
    return {PICTURE: Drawing(house).svg(), PAGE: page}


def main() -> None:
    """Write them, or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    for path, text in made().items():
        if not options.check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{path} does not show the imports: run python docs/draw_rooms.py")


if __name__ == "__main__":
    main()
