"""The Python of README and docs runs, page by page, warnings being errors; commands are checked."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import socket
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

import page_files
import pytest
import torch
from pages import DOCS, ROOT, blocks, name_of, pages

from fastmaml.cli.flags import parse
from fastmaml.training.config import TrainConfig, read_toml
from fastmaml.training.presets import PRESETS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = [
    # Of Dynamo's imports and looks at tensors, and of Lightning's use of torch's older names.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning"),
]

PAGES = {name_of(page): [*blocks(page.read_text())] for page in pages()}
APART = ("how_to/tools.md",)
"""Pages whose sections run by themselves, after what stands before the first."""
AFTER = {"state_dict": "DistributedDataParallel and torchrun"}
"""The section that another one goes on from."""
PACKAGES = (
    *("accelerate", "lightning", "pytorch_lightning", "transformers", "datasets", "PIL"),
    *("matplotlib", "gymnasium"),
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to run in, what torchrun sets, and no process group left behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FASTMAML_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
    if "accelerate" in sys.modules:  # its settings are the process's
        sys.modules["accelerate"].state.AcceleratorState._reset_state(reset_partial_state=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def code_of(name: str, sections: range | None = None) -> list[str]:
    """The Python that runs of a page, or of some of its sections."""
    return [
        block.as_run
        for block in PAGES[name]
        if block.language == "python" and block.reason is None
        if sections is None or block.section in sections
    ]


def run(code: list[str]) -> dict[str, object]:
    """Run a page's code in order, and give what it defined."""
    for package in PACKAGES:
        if re.search(rf"^(import|from) {package}\b", "\n".join(code), re.MULTILINE):
            pytest.importorskip(package, reason=f"{package} is not installed")
    torch.manual_seed(0)
    page = types.ModuleType("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "page", page)  # where dataclasses look
        for block in code:
            exec(compile(block, "page", "exec"), vars(page))
    return vars(page)


WHOLE = [name for name in PAGES if name not in (*APART, "README.md") and code_of(name)]
SAID = {
    "how_to/bench.md": ["second order against first order", "with 100.0 MB for a meta-step"],
    "how_to/profiling.md": ["meta-backward"],
    "how_to/images.md": ["unseen classes: ", "[4, 25, 1, 16, 16]", " support examples"],
    "index.md": ["after 2 inner steps", "unseen classes: "],
}
"""What the code of some pages prints."""


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("name", WHOLE)
def test_the_code_of_a_page_runs(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "how_to/text.md":
        pytest.importorskip("transformers")
    page_files.FILES.get(name, lambda _: None)(place)
    scope = run(code_of(name))
    printed = capsys.readouterr().out
    assert scope
    for said in SAID.get(name, ()):
        assert said in printed
    if name == "how_to/migrating.md":
        shows_what_verify_prints(printed)


ROW = re.compile(r"^ *(\S+) +([\d.]+) +[\d.]+e[+-]\d+ +[\d.]+e[+-]\d+$", re.MULTILINE)


def shows_what_verify_prints(printed: str) -> None:
    """But for rounding."""
    first = printed[: printed.index("first order alone")]
    page = (DOCS / "how_to" / "migrating.md").read_text()
    shown, found = dict(ROW.findall(page)), dict(ROW.findall(first))
    assert len(shown) == 5
    assert shown.keys() == found.keys()
    for name, size in shown.items():
        assert float(found[name]) == pytest.approx(float(size), rel=1e-3)


TITLES = {
    name: ["", *re.findall(r"^## (.*)$", (DOCS / name).read_text(), re.MULTILINE)] for name in APART
}
SECTIONS = [(name, title) for name, titles in TITLES.items() for title in titles[1:]]


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize(("name", "title"), SECTIONS)
def test_the_code_of_a_section_runs(name: str, title: str) -> None:
    number = TITLES[name].index(title)
    before = [TITLES[name].index(AFTER[title])] if title in AFTER else []
    own = code_of(name, range(number, number + 1))
    assert own
    run([c for i in (0, *before) for c in code_of(name, range(i, i + 1))] + own)


@pytest.mark.parametrize("name", PAGES)
def test_blocks_name_a_language_and_marks_a_reason(name: str) -> None:
    for block in PAGES[name]:
        assert block.language in {"python", "sh", "toml", "text"}, block.code
        if block.reason is not None:
            assert len(block.reason.split()) >= 4, f"say why it is not run: {block.reason!r}"
    text = (DOCS / name if name != "README.md" else ROOT / name).read_text()
    assert text.count("```") == 2 * len(PAGES[name])
    assert text.count("<!-- not run") == sum(b.reason is not None for b in PAGES[name])
    assert text.count("<!-- run with") == sum(bool(b.swaps) for b in PAGES[name])
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert not re.search(r"\n\n    \S(?!.*\n\n? {0,3}[-*])", outside), "fence the indented block"


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_lines_are_short(page: Path) -> None:
    """But for tables, and what is generated."""
    text = re.sub(r"<!-- results: .*?<!-- end -->", "", page.read_text(), flags=re.DOTALL)
    assert [line for line in text.splitlines() if len(line) > 120 and line[0] != "|"] == []


def test_most_code_runs() -> None:
    """What does not is marked, and little."""
    blocks = [b for found in PAGES.values() for b in found if b.language == "python"]
    code = [b for b in blocks if not b.code.startswith("--8<--")]  # a file with tests of its own
    left = [b for b in code if b.reason is not None]
    assert len(left) <= len(code) // 10


MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command, without what is set before it."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words:
            yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


def parses(arguments: Sequence[str]) -> bool:
    """Whether the command line takes them; ``--help`` is taken."""
    silent = io.StringIO()
    try:
        with contextlib.redirect_stderr(silent), contextlib.redirect_stdout(silent):
            parse(arguments, PRESETS)
    except SystemExit as ended:
        return ended.code == 0
    return True


def check(program: str, *arguments: str) -> None:
    """That such a command exists, with such flags."""
    if program == "fastmaml":
        assert parses(arguments), f"fastmaml {' '.join(arguments)}"
    elif program == "make":
        for target in (x for x in arguments if "=" not in x):
            assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
    elif program == "pip":
        for extras in re.findall(r"\[(.*)\]", " ".join(arguments)):
            assert set(extras.split(",")) <= set(EXTRAS)
    elif program == "torchrun" and "fastmaml" in arguments:
        at = arguments.index("fastmaml")
        assert arguments[at - 1] == "-m"
        check(*arguments[at:])
    elif program in {"python", "torchrun"}:
        (script,) = (x for x in arguments if x.endswith(".py"))
        assert (ROOT / script).exists()
    else:
        assert program == "mkdocs", f"what is {program}?"


@pytest.mark.parametrize("name", [n for n, found in PAGES.items() if found])
def test_commands_and_settings_exist(name: str, place: Path) -> None:
    for block in PAGES[name]:
        if block.language == "sh":
            for words in commands(block.code):
                check(*words)
        elif block.language == "toml":
            file = place / "settings.toml"
            file.write_text(block.code)
            TrainConfig().updated(read_toml(file), name)


def test_a_wrong_command_is_found() -> None:
    for words in (["fastmaml", "train", "digits", "--inner-lrs", "1"], ["make", "nothing"]):
        with pytest.raises(AssertionError):
            check(*words)
