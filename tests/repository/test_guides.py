"""The Python of the guides runs, section by section, warnings being errors."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator

import pytest
import torch
from places import DOCS

pytestmark = [
    # Of Dynamo's imports and looks at tensors, and of Lightning's use of torch's older names.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def sections(name: str) -> list[tuple[str, str]]:
    """The title and text of each section; what is before the first belongs to all."""
    text = (DOCS / name).read_text()
    return [(part.partition("\n")[0], part) for part in re.split(r"\n## ", text)]


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What torchrun sets, and no process group left behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port)
    yield
    if "accelerate" in sys.modules:  # its settings are the process's
        sys.modules["accelerate"].state.AcceleratorState._reset_state(reset_partial_state=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


TOOLS = sections("tools.md")


@pytest.mark.parametrize(("title", "text"), TOOLS[1:], ids=[title for title, _ in TOOLS[1:]])
def test_tools(title: str, text: str) -> None:
    for package in ("accelerate", "lightning"):
        if f"import {package}" in text or f"from {package}" in text:
            pytest.importorskip(package, reason=f"{package} is not installed")
    distributed = next(text for title, text in TOOLS if title.startswith("Distributed"))
    before = [TOOLS[0][1], *([distributed] if title == "state_dict" else [])]
    scope: dict[str, object] = {}
    for code in (code for part in (*before, text) for code in blocks(part)):
        exec(code, scope)
    assert len(blocks(text)) >= 1


ROW = re.compile(r"^ *(\S+) +([\d.]+) +[\d.]+e[+-]\d+ +[\d.]+e[+-]\d+$", re.MULTILINE)


def test_migrating(capsys: pytest.CaptureFixture[str]) -> None:
    """And what `verify` prints is what the page shows, but for rounding."""
    text = (DOCS / "migrating.md").read_text()
    scope: dict[str, object] = {}
    for code in blocks(text):
        exec(code, scope)
    printed = capsys.readouterr().out
    first = printed[: printed.index("first order alone")]
    shown, found = dict(ROW.findall(text)), dict(ROW.findall(first))
    assert len(shown) == 5
    assert shown.keys() == found.keys()
    for name, size in shown.items():
        assert float(found[name]) == pytest.approx(float(size), rel=1e-3)
