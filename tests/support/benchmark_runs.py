"""How the tests run the programs under benchmarks/."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import precision
import pytest
import torch
from places import BENCHMARKS


@contextmanager
def beside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Their modules can be imported; what they set of the process is put back."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    with precision.kept():  # contestants set it
        yield
    torch.set_num_threads(threads)


def run(script: str, *arguments: str) -> None:
    """As from the command line, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [script, *arguments])
        runpy.run_path(str(BENCHMARKS / f"{script}.py"), run_name="__main__")


def result(path: Path) -> dict[str, Any]:
    """What was written, with all that says where it was measured."""
    found: dict[str, Any] = json.loads(path.read_text())
    for name in ("device", "torch", "python", "commit", "date"):
        assert found[name], name
    assert found["threads"] >= 1
    assert not {"machine_info", "node"} & found.keys()
    return found
