"""Why the native module was not built, and the command that builds it.

Pip hides what a build says, so `setup.py` leaves the reason in a file of the package.
"""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

PACKAGE = Path(__file__).resolve().parent.parent
REASON = PACKAGE / "_not_built.txt"


def why() -> str:
    """What comes after "was not built": the reason, where it is known, and what builds it."""
    known = REASON.read_text(encoding="utf-8").strip().rstrip(".") if REASON.is_file() else ""
    return f"{f' ({known})' if known else ''}; to build it: {command()}"


def command() -> str:
    """A line for a shell that builds the module and puts it in place, or shows why it fails."""
    root, python = shlex.quote(str(PACKAGE.parent)), shlex.quote(sys.executable)
    installed, origin = _installed()
    if installed is None:
        return f"cd {root} && FASTMAML_BUILD=1 {python} setup.py build_ext --inplace"
    source = _source(origin, installed.version)
    if (installed.read_text("INSTALLER") or "").strip() != "uv":
        return f"FASTMAML_BUILD=1 {python} -m pip install --force-reinstall --no-deps {source}"
    install = f"uv pip install --python {python}"  # its isolated builds know no other environment
    options = "--no-build-isolation --reinstall --no-deps"
    tools = f"{install} setuptools ninja pybind11"
    return f"{tools} && FASTMAML_BUILD=1 {install} {options} {source}"


def _installed() -> tuple[importlib.metadata.Distribution | None, dict[str, Any]]:
    """What was installed as this package, None where that is another or a tree; its direct_url."""
    try:
        found = importlib.metadata.distribution("fastmaml")
    except importlib.metadata.PackageNotFoundError:
        return None, {}
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    if _is_editable(origin):
        return (found if Path(_path(origin)).resolve() == PACKAGE.parent else None), origin
    there = Path(str(found.locate_file("fastmaml"))).resolve() == PACKAGE
    return (found if there and not (PACKAGE.parent / "setup.py").exists() else None), origin


def _is_editable(origin: dict[str, Any]) -> bool:
    return bool(origin.get("dir_info", {}).get("editable"))


def _path(origin: dict[str, Any]) -> str:
    return url2pathname(urlsplit(origin["url"]).path)


def _source(origin: dict[str, Any], version: str) -> str:
    """What is given to an installer to have the same fastmaml from its source."""
    if not origin:  # from an index; a wheel that was built and kept would be taken again
        return f"--no-binary fastmaml --no-cache-dir fastmaml=={version}"
    url = str(origin["url"])
    if "dir_info" in origin:
        return ("-e " if _is_editable(origin) else "") + shlex.quote(_path(origin))
    if vcs := origin.get("vcs_info"):
        return shlex.quote(f"{vcs['vcs']}+{url}@{vcs['commit_id']}")
    return "FOLDER_OF_ITS_SOURCE" if url.endswith(".whl") else shlex.quote(url)
