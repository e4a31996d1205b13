"""`install`: ``import learn2learn`` and ``import higher`` reach this package, wherever they stand.

A finder on `sys.meta_path` gives a module of ours a second name. It is never imported a second
time: ``learn2learn.algorithms`` *is* ``fastmaml.compat.learn2learn.algorithms``, so that classes,
registries and ``isinstance`` are the same through both names.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import DistributionFinder
from pathlib import Path
from types import ModuleType

from fastmaml.compat.releases import Release

HOME = "fastmaml.compat."
_FOLDER = Path(__file__).parent
RELEASES = {"learn2learn": "0.2.0", "higher": "0.2.1"}
"""The names that can be taken, and the releases whose interfaces stand behind them."""


def install(*names: str) -> None:
    """Let ``import learn2learn`` and ``import higher`` reach `fastmaml.compat` in this process.

    Call it at the top of a script, before anything that imports them: whatever is imported later,
    packages of others included, gets our modules. ``python -m fastmaml.compat SCRIPT`` does it for
    a script that stays as it is. Where the real library is installed too, ours is found first.
    `importlib.metadata` says 0.2.0 of learn2learn and 0.2.1 of higher, whose interfaces ours are.

    It imports nothing, and once more changes nothing. It holds for this process and those forked
    from it. A process that is *spawned* (by default on macOS and Windows, and its like, forkserver,
    on Linux from Python 3.14) runs the top of the script again, and with it this call; one that
    ``python -m`` made is not repeated there. Pickles of our objects name ``fastmaml.compat`` and
    load without it; those of the real library's load with it.

    Args:
        *names: ``"learn2learn"``, ``"higher"``; none for both. Leave one out that is a module of
            your own.

    Raises:
        ValueError: there is no drop-in of that name.
        RuntimeError: the real library was imported before; its classes are in use.
    """
    wanted = _known(names)
    for name in wanted:
        _refuse_a_second(name)
    for name in wanted:
        if _Finder(name) not in sys.meta_path:
            sys.meta_path.insert(0, _Finder(name))


def uninstall(*names: str) -> None:
    """Take back what `install` did: imports from now on find the real libraries, or nothing.

    Modules that have imported ours keep them.

    Args:
        *names: as for `install`.

    Raises:
        ValueError: there is no drop-in of that name.
    """
    for name in _known(names):
        if _Finder(name) in sys.meta_path:
            sys.meta_path.remove(_Finder(name))
        for alias in _imported(name):
            if _is_ours(alias):
                del sys.modules[alias]


@dataclass(frozen=True)
class _Finder(DistributionFinder):
    """Finds `name` and its sub-modules in `fastmaml.compat`, and a release of that name."""

    name: str

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name and not fullname.startswith(f"{self.name}."):
            return None
        # Nothing is imported here, as `importlib.util.find_spec` would: one lock of all imports is
        # held, for which another thread that is importing waits.
        folder = _FOLDER.joinpath(*fullname.split(".")[:-1])
        ours = PathFinder.find_spec(HOME + fullname, [str(folder)])
        if ours is None:
            return None
        spec = ModuleSpec(fullname, _SecondName(), origin=ours.origin)
        spec.submodule_search_locations = ours.submodule_search_locations
        return spec

    def find_distributions(
        self,
        context: DistributionFinder.Context = DistributionFinder.Context(),  # noqa: B008
    ) -> Iterable[Release]:
        asked = context.name
        if asked is None or asked.lower() == self.name:
            yield Release(self.name, RELEASES[self.name])


class _SecondName(Loader):
    """Imports our module by its own name, and enters the very same object under the other one."""

    def exec_module(self, module: ModuleType) -> None:
        # The import system takes what stands in sys.modules afterwards, not the empty module that
        # it has made, so that ours keeps its __name__, __spec__ and __path__.
        assert module.__spec__ is not None
        alias = module.__spec__.name
        # Package by package: each waits until another thread that is importing it is done.
        parts = alias.split(".")
        for end in range(1, len(parts) + 1):
            found = importlib.import_module(HOME + ".".join(parts[:end]))
        sys.modules[alias] = found


def _known(names: Sequence[str]) -> Sequence[str]:
    for name in names:
        if not isinstance(name, str) or name not in RELEASES:
            raise ValueError(
                f"there is no drop-in for {name!r}: install() takes {' and '.join(RELEASES)}, and "
                "both if none is named."
            )
    return names or tuple(RELEASES)


def _imported(name: str) -> list[str]:
    return [n for n in sys.modules if n == name or n.startswith(f"{name}.")]


def _is_ours(alias: str) -> bool:
    return sys.modules[alias] is sys.modules.get(HOME + alias, alias)


def _refuse_a_second(name: str) -> None:
    for alias in _imported(name):
        if not _is_ours(alias):
            module = sys.modules[alias]
            place = getattr(module, "__file__", None) or repr(module)
            raise RuntimeError(
                f"{alias} was imported already, from {place}: what imported it would go on with "
                f"that one. Call fastmaml.compat.install() first, before anything that imports "
                f"{name}."
            )
