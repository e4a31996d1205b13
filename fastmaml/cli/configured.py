"""Commands whose flags are those of a configuration and a few of their own."""

from __future__ import annotations

from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from tyro.conf import Suppress, arg

from fastmaml.training.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Configured:
    """The flags of a command, of which `of_each` makes one class a kind of configuration."""

    dataset: Suppress[str] = ""
    config: Annotated[Path | None, arg(metavar="FILE")] = None
    """TOML file with the names of a configuration's flags (`inner_lr = 0.4`); flags override it."""

    def __post_init__(self) -> None:
        """Leave the checks to `configuration`: their errors read better outside the parser."""

    def configuration(self) -> RunConfig:
        """The checked configuration, without what concerns the command line only."""
        kinds = (x for x in type(self).__mro__ if issubclass(x, RunConfig))
        kind = next(x for x in kinds if not issubclass(x, Configured))
        return kind(**self._values(kind))

    def _values(self, kind: type[RunConfig]) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(kind)}


Command = TypeVar("Command", bound=Configured)


def of_each(
    command: type[Command], *kinds: type[RunConfig]
) -> dict[type[RunConfig], type[Command]]:
    """Of every kind of configuration a class with its fields and those of the command."""
    return {kind: _of(command, kind) for kind in kinds}


def _of(command: type[Command], kind: type[RunConfig]) -> type[Command]:
    usual = next(f.default for f in fields(kind) if f.name == "dataset")
    found: type[Command] = make_dataclass(
        f"{command.__name__}{kind.__name__}",
        [("dataset", Suppress[str], usual)],
        bases=(command, kind),
        namespace={"__doc__": f"{command.__name__}, on what `{kind.__name__}` describes."},
        frozen=True,
        kw_only=True,
    )
    return found
