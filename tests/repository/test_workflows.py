"""What runs elsewhere (workflows, hooks, forms) is well-formed, and runs what there is here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
FORMS.remove(ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml")
PUBLISH = "pypa/gh-action-pypi-publish@release/v1"
HOOKS = ROOT / ".pre-commit-config.yaml"


class OnceLoader(yaml.SafeLoader):
    """YAML in which no key stands twice, of which a plain loader drops the first."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        assert len(set(keys)) == len(keys), f"{node.start_mark}: a key stands twice"
        return super().construct_mapping(node, deep)


def loaded(path: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.load(path.read_text(), OnceLoader)
    assert isinstance(found, dict), path
    return found


def targets() -> set[str]:
    """Of the Makefile."""
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def commands(workflow: dict[Any, Any]) -> list[str]:
    """The lines that its jobs run."""
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    return [line for step in steps for line in step.get("run", "").splitlines()]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_workflows_have_jobs_and_no_more_rights_than_to_read(path: Path) -> None:
    found = loaded(path)
    # YAML 1.1 reads the word `on` as true.
    assert found.keys() - {"env", "concurrency"} == {"name", True, "permissions", "jobs"}
    assert found["permissions"] == {"contents": "read"}
    for name, job in found["jobs"].items():
        assert job["runs-on"] == "ubuntu-latest", name
        assert 0 < job["timeout-minutes"] <= 180, name
        publishes = job.get("environment") == "pypi"
        assert job.get("permissions") == ({"id-token": "write"} if publishes else None), name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), name
            if "uses" in step:
                known = r"actions/[\w-]+@v\d+" + (f"|{re.escape(PUBLISH)}" if publishes else "")
                assert re.fullmatch(known, step["uses"]), step
        first = "download-artifact" if publishes else "checkout"  # what publishes runs no code
        assert job["steps"][0]["uses"].startswith(f"actions/{first}@")
    assert commands(found)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_workflows_run_commands_that_there_are(path: Path) -> None:
    """A target of the Makefile, or a program of the repository's own."""
    for line in commands(loaded(path)):
        program, first, *_ = line.split()
        if program == "make":
            assert first in targets(), line
        else:
            own = first if program == "bash" else program
            assert own.startswith(".ci/"), line
            assert os.access(ROOT / own, os.X_OK), line


def test_what_runs_here_is_run_there() -> None:
    lines = [line for path in WORKFLOWS for line in commands(loaded(path))]
    for what in (
        "make check",
        "make test",
        "make docs",
        "make package",
        "make wheels",
        "bash .ci/run",
    ):
        assert any(line.startswith(what) for line in lines), what


def test_every_promised_python_is_tested() -> None:
    versions = ["3.10", "3.11", "3.12", "3.13", "3.14"]
    assert project()["requires-python"] == f">={versions[0]}"
    for name, job in (("ci", "tests"), ("wheels", "package")):
        jobs = loaded(ROOT / ".github" / "workflows" / f"{name}.yml")["jobs"]
        assert jobs[job]["strategy"]["matrix"]["python"] == versions


def test_wheels_are_of_every_promised_python() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    assert settings["build"] == "cp3{10,11,12,13,14}-manylinux_x86_64"
    said = {f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 15)}
    assert said <= set(project()["classifiers"])


def release(root: Path, tag: str) -> list[str]:
    """The lines in which .ci/release refuses."""
    (root / ".ci").mkdir(exist_ok=True)
    program = shutil.copy(ROOT / ".ci" / "release", root / ".ci" / "release")
    done = subprocess.run([sys.executable, program, tag], capture_output=True, text=True)
    assert done.returncode == bool(done.stderr), done.stderr
    return done.stderr.splitlines()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the release runs on 3.11, with tomllib")
def test_a_release_needs_an_address_a_version_and_a_date(tmp_path: Path) -> None:
    (tmp_path / "fastmaml").mkdir()
    (tmp_path / "fastmaml" / "_version.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 (unreleased)\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "fastmaml"\n')
    version, address, date = release(tmp_path, "v1.2.4")
    assert "the tag is v1.2.4, and fastmaml/_version.py says 1.2.3" in version
    assert "[project.urls], Source" in address
    assert "## 1.2.3 (YYYY-MM-DD)" in date
    assert release(tmp_path, "v1.2.3") == [address, date]
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 (2027-01-31)\n")
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nSource = "https://a.b/c/blob/main"\n')
    assert release(tmp_path, "v1.2.3") == []


def test_wheels_are_made_again_where_what_they_hold_changes() -> None:
    found = loaded(ROOT / ".github" / "workflows" / "wheels.yml")
    for pattern in found[True]["pull_request"]["paths"]:
        assert any(ROOT.glob(pattern)), pattern


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.stem)
def test_forms_for_issues_are_well_formed(path: Path) -> None:
    form = loaded(path)
    assert form.keys() == {"name", "description", "labels", "body"}
    kinds = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
    names = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(set(names)) == len(names) > 0
    for part in form["body"]:
        assert part["type"] in kinds
        assert part.keys() <= {"type", "id", "attributes", "validations"}
        assert ("value" if part["type"] == "markdown" else "label") in part["attributes"]
    assert any(part.get("validations", {}).get("required") for part in form["body"])


@pytest.mark.slow
def test_a_report_of_a_fault_comes_with_fastmaml_info() -> None:
    parts = loaded(ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml")["body"]
    (info,) = (part for part in parts if part.get("id") == "info")
    assert info["validations"] == {"required": True}
    assert info["attributes"]["label"] == "The output of `fastmaml info`"
    done = subprocess.run(
        [sys.executable, "-m", "fastmaml", "info"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "backend cpp" in done.stdout


def test_hooks_take_their_tools_from_the_environment() -> None:
    """So that the versions of constraints.txt are the only ones."""
    config = loaded(HOOKS)
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    extras = project()["optional-dependencies"]["test"]
    tools = {re.match(r"[\w-]+", requirement)[0] for requirement in extras} | {"python"}
    pinned = (ROOT / "constraints.txt").read_text()
    for hook in hooks:
        tool, *rest = hook["entry"].split()
        assert hook["language"] == "system"
        assert tool.startswith(".venv/bin/")
        name = tool.removeprefix(".venv/bin/")
        assert name in tools, hook
        assert name == "python" or f"\n{name}==" in pinned
        for argument in rest:
            assert "/" not in argument or (ROOT / argument).exists(), hook
        if "files" in hook:
            re.compile(hook["files"])
    asked = (ROOT / "Makefile").read_text().split("\ncheck:")[1].split("\n\n")[0]
    for words in ("ruff check", "ruff format", ".ci/text_files.py", "mypy"):
        assert words in asked
        assert any(words in hook["entry"] for hook in hooks), words
