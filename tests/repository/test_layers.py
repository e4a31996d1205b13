"""Imports go one way: every room stands on a floor, and imports from the floors below it alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from rooms import FILES, HEIGHT, imported, module_of, room_of


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_room_imports_upwards(path: Path) -> None:
    own = room_of(module_of(path))
    if own == "engine":
        assert not imported(path), "the engine's own file is a description"
        return
    for other in imported(path) - {own}:
        assert HEIGHT[other] < HEIGHT[own], f"{own} imports from {other}"


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(module_of(path)) for path in FILES} - {"engine"}
    assert rooms == set(HEIGHT)


def test_one_file_names_the_private_parts_of_torch_func() -> None:
    naming = [
        module_of(path) for path in FILES if re.search(r"\b_functorch\b", path.read_text("utf-8"))
    ]
    assert naming == ["engine.base.functorch"]


def test_a_first_call_does_not_load_torch_compile() -> None:
    """It takes as long as all of the planning and recording."""
    code = (
        "import sys, torch, fastmaml as fm; x = torch.randn(3, 4, 2); batch = fm.Batch(x, x); "
        "maml = fm.MAML(torch.nn.Linear(2, 2), lr=0.1, steps=2, loss=torch.nn.functional.mse_loss);"
        "maml(fm.Episodes(batch, batch)).loss.backward(); print('torch._dynamo' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout == "False\n"


def test_import_needs_torch_only() -> None:
    """No extra is imported, and none of torch's own heavy parts that torch itself leaves out."""
    code = (
        "import sys, torch; before = set(sys.modules); import fastmaml; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "print(' '.join(sorted(new - set(sys.stdlib_module_names))))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert set(result.stdout.split()) <= {"fastmaml", "torch"}
