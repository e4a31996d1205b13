"""Every public name is on a page of the reference, and says what it is."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
import re
from typing import Any

import pytest
from pages import DOCS

import fastmaml
import fastmaml.compat

with contextlib.suppress(ImportError):  # learn2learn's modules take what was imported before them
    importlib.import_module("pytorch_lightning")

PUBLIC = (
    "fastmaml",
    "fastmaml.compat",
    "fastmaml.episodes",
    "fastmaml.frozen",
    "fastmaml.gradients",
    "fastmaml.heads",
    "fastmaml.integrations.transformers",
    "fastmaml.losses",
    "fastmaml.maml",
    "fastmaml.measure.bench",
    "fastmaml.measure.planning",
    "fastmaml.measure.profile",
    "fastmaml.measure.verify",
    "fastmaml.models",
    "fastmaml.ops",
    "fastmaml.rl",
    "fastmaml.rl.environments",
    "fastmaml.rules",
    "fastmaml.training.config",
    "fastmaml.training.evaluation",
    "fastmaml.training.intervals",
    "fastmaml.training.metrics",
    *(
        module.name
        for module in pkgutil.walk_packages(fastmaml.compat.__path__, "fastmaml.compat.")
        if hasattr(importlib.import_module(module.name), "__all__")
    ),
)

SHOWN = [
    name
    for page in sorted((DOCS / "api").glob("*.md"))
    for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
]


def found(name: str) -> Any:
    """What a directive shows: it takes a module for what it is, whatever hides it."""
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        try:
            at: Any = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            at = getattr(at, part)
        return at
    raise AssertionError(f"there is no {name}")


OBJECTS = [found(name) for name in SHOWN]


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_shown(module: str) -> None:
    home = importlib.import_module(module)
    assert len(set(home.__all__)) == len(home.__all__)
    for name in home.__all__:
        known = getattr(home, name)
        by_itself = f"{module}.{name}" in SHOWN and not inspect.ismodule(known)
        shown = by_itself or any(x is known for x in OBJECTS)
        assert shown, f"no page of docs/api shows {module}.{name}"


def test_nothing_is_shown_twice() -> None:
    assert len(set(SHOWN)) == len(SHOWN)
    things = [x for x in OBJECTS if inspect.isclass(x) or inspect.isfunction(x)]
    assert len({id(x) for x in things}) == len(things)


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_shown_says_what_it_takes(name: str) -> None:
    """Its text, or a base class's, names every argument; a field may have a text of its own."""
    thing = found(name)
    if not (inspect.isclass(thing) or inspect.isfunction(thing) or inspect.ismodule(thing)):
        return
    assert len((inspect.getdoc(thing) or "").split()) >= 3, f"{name} says nothing"
    if inspect.ismodule(thing) or (inspect.isclass(thing) and issubclass(thing, Exception)):
        return
    texts = told(thing)
    for argument in inspect.signature(thing).parameters.values():
        if argument.kind in {argument.VAR_POSITIONAL, argument.VAR_KEYWORD}:
            continue
        assert re.search(rf"\b{argument.name}\b", texts), f"{name} does not say {argument.name}="


FIELD = re.compile(r'^    (\w+): .*(?:\n        .*|\n    \].*)*\n    """', re.MULTILINE)
"""A field of a class with a text below it."""


def told(thing: Any) -> str:
    """The docstrings of a function or of a class and its bases, and the names of told fields."""
    texts = [inspect.getdoc(thing) or ""]
    for base in thing.__mro__[:-1] if inspect.isclass(thing) else ():
        if not base.__module__.startswith("fastmaml"):
            break
        source = inspect.getsource(base)
        texts += [base.__doc__ or "", base.__init__.__doc__ or ""]
        texts += re.findall(
            r'^    (\w+): .*(?:\n        .*|\n    \].*)*\n    """', source, re.MULTILINE
        )
    return "\n".join(texts)


def test_an_argument_that_is_not_told_is_found() -> None:
    def silent(given: int) -> None:
        """Says three words."""

    assert not re.search(r"\bgiven\b", told(silent))
