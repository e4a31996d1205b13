"""The picture and the table of rooms are what the imports say."""

from __future__ import annotations

import importlib
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
from places import DOCS


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("draw_rooms")


def test_picture_and_table_show_the_imports(drawing: Any) -> None:
    for path, text in drawing.made().items():
        assert path.read_text() == text, "run python docs/draw_rooms.py"


def test_arrows_that_others_imply_are_left_out(drawing: Any) -> None:
    imports = {"a": {"b", "c", "d"}, "b": {"c"}, "c": set(), "d": {"c"}}
    house = drawing.House([["c"], ["b", "d"], ["a"]], imports, {})
    assert house.arrows() == [("a", "b"), ("a", "d"), ("b", "c"), ("d", "c")]


def test_every_room_stands_apart_and_says_what_it_is(drawing: Any) -> None:
    house = drawing.read()
    assert house.about.keys() == house.imports.keys()
    shown = drawing.Drawing(house)
    for floor in shown.places:
        xs = sorted((shown.x[p], shown.wide(p)) for p in floor)
        for (x, wide), (y, wider) in pairwise(xs):
            assert y - x >= (wide + wider) / 2
    svg = ElementTree.fromstring(shown.svg())
    rooms = [e.text for e in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert sorted(rooms) == sorted(house.imports)
