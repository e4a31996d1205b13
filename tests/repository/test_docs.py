"""The README says what the results say, and its examples run."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pages import DOCS, name_of, pages
from places import EXAMPLES, ROOT
from torch import nn
from torch.nn import functional as F

import fastmaml as fm
from benchmarks.tables import documents


def test_tables_equal_the_results() -> None:
    for document in documents.TABLES:
        text = (ROOT / document).read_text()
        assert documents.filled(document) == text, "run python -m benchmarks.tables"


def test_plots_show_the_results() -> None:
    assert documents.stale_plots() == [], "run python -m benchmarks.tables"


def test_the_readme_example_runs() -> None:
    """The five lines, with digits in place of Omniglot and an end to the loop."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert "fm.episodes.omniglot(ways=5, shots=1, tasks=32)" in code
    code = code.replace(
        "fm.episodes.omniglot(ways=5, shots=1, tasks=32)", "(next(iter(digits)) for _ in range(3))"
    )
    model = fm.models.conv4(5, filters=8, image_size=8)
    before = next(model.parameters()).detach().clone()
    digits = fm.episodes.digits(ways=5, shots=1, tasks=4)
    task = digits.sample().support
    support = fm.Batch(task.inputs[0], task.targets[0])
    scope = {"torch": torch, "F": F, "model": model, "digits": digits, "support": support}
    exec(code, scope)
    assert isinstance(scope["learner"], nn.Module)
    assert not torch.equal(before, next(model.parameters()))


def messages() -> str:
    """Every text in the package's code, ``{}`` standing for what is put in."""
    found = []
    for path in (ROOT / "fastmaml").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (x.value if isinstance(x, ast.Constant) else "{}" for x in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_the_questions_quote_what_the_package_raises() -> None:
    headings = re.findall(r"^### (.*)$", (DOCS / "faq.md").read_text(), re.MULTILINE)
    quoted = [x for heading in headings for x in re.findall(r"(?<!\()`([^`]+)`", heading)]
    assert len(quoted) > 10
    said = messages()
    for text in quoted:
        assert text in said, f"nothing says {text!r}"
    for error in re.findall(r"\(`(\w+)`\)", "".join(headings)):
        assert issubclass(getattr(fm, error), Exception)


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Their anchors are checked where the site is built."""
    for link in re.findall(r"\]\((?!http|#)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("source", ["", "https://example.org/code/blob/main"])
def test_links_of_the_package_index_lead_somewhere(source: str, tmp_path: Path) -> None:
    """As text where no address is configured, else to that address."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "fastmaml/_version.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for package in ("fastmaml", "kernels/triton"):
        (tmp_path / package).mkdir(parents=True, exist_ok=True)
        (tmp_path / package / "__init__.py").touch()
    if source:
        project = tmp_path / "pyproject.toml"
        urls = f'[project.urls]\nSource = "{source}"\n\n[project.scripts]'
        project.write_text(project.read_text().replace("[project.scripts]", urls))
    command = [sys.executable, "setup.py", "--quiet", "dist_info", "--output-dir", "."]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    shown, written = (re.findall(LINK, x.read_text()) for x in (metadata, ROOT / "README.md"))
    assert len(written) > 10
    assert shown == [
        f"{source}/{link}" + "?raw=true" * (".png" in link) for link in written if source
    ]
    assert "## Install" in metadata.read_text()


LINK = r"\]\(([^)#]+)"


def test_the_citation_is_of_this_version() -> None:
    cited = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {fm.__version__}\n" in cited
    assert "\nlicense: Apache-2.0\n" in cited
    assert f"version = {{{fm.__version__}}}" in (DOCS / "citing.md").read_text()


@pytest.mark.slow
def test_the_example_runs_and_learns(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("own_model", EXAMPLES / "own_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["own_model.py", "--iterations", "40"])
        module.main()
    torch.set_num_threads(threads)
    after = re.findall(r"unseen digits after \d steps: ([\d.]+)%", capsys.readouterr().out)
    assert len(after) == 4
    assert float(after[3]) > 2 * float(after[0])  # chance is 20%
