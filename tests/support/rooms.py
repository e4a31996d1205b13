"""The rooms of the package, the floors that they stand on, and what each file imports."""

from __future__ import annotations

import ast
from pathlib import Path

from places import ROOT

PACKAGE = ROOT / "fastmaml"
KERNELS = ROOT / "kernels" / "triton"

FLOORS: tuple[tuple[str, ...], ...] = (
    # from the ground up; rooms of one floor do not know each other
    ("_version", "_files", "heads", "losses"),
    ("ops", "episodes", "integrations", "frozen"),
    ("kernels", "rules", "models"),
    ("gradients",),
    ("engine.base",),
    ("engine.guards",),
    ("engine.model",),
    ("engine.derivatives",),
    ("engine.routing",),
    ("engine.step",),
    ("engine.recording",),
    ("engine.memory",),
    ("engine.planning",),
    ("maml", "_environment"),
    ("rl",),
    ("compat", "training"),
    ("measure",),
    ("cli",),
)
HEIGHT = {room: height for height, floor in enumerate(FLOORS) for room in floor}

FILES = sorted(
    path
    for path in (*PACKAGE.rglob("*.py"), *KERNELS.rglob("*.py"))
    if path not in {PACKAGE / "__init__.py", PACKAGE / "__main__.py"}
)


def module_of(path: Path) -> str:
    """``engine.step.forward``, without the package's name."""
    if path.is_relative_to(KERNELS):
        parts: tuple[str, ...] = ("kernels", *path.relative_to(KERNELS).with_suffix("").parts)
    else:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room_of(module: str) -> str:
    """The room that a module lies in; a name that is none is the package itself."""
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] == "engine" else 1])


def imported(path: Path) -> set[str]:
    """The rooms of fastmaml that a file imports from, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fastmaml":
            assert node.module is not None
            inner = node.module.split(".")[1:]
            if inner in ([], ["engine"]):  # `from fastmaml import ops`
                found |= {room_of(".".join((*inner, alias.name))) for alias in node.names}
            else:
                found.add(room_of(".".join(inner)))
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("fastmaml.")]
            found |= {room_of(name.removeprefix("fastmaml.")) for name in names}
    return found
