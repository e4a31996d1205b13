"""What the recipes of language models make of a configuration's data sets and models."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language import save_model, write_json_lines

from fastmaml.cli import main
from fastmaml.episodes.glue import TASKS
from fastmaml.training.config import GlueConfig
from fastmaml.training.metrics import chosen
from fastmaml.training.presets import PRESETS
from fastmaml.training.recipes import build_episodes
from fastmaml.training.recipes.glue import METRICS, Glue
from fastmaml.training.recipes.hub import tell

if find_spec("datasets") is None:  # which takes seconds to import: not while tests are collected
    pytest.skip("datasets is not installed (fastmaml[text])", allow_module_level=True)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of texts beside a model."""
    place = tmp_path_factory.mktemp("place")
    save_model(place / "model")
    rows = [{"text": f"w{c} w{20 + i}", "intent": f"{c}"} for c in range(9) for i in range(6)]
    return write_json_lines(place / "many.jsonl.gz", rows)


def test_other_data_has_rows_and_columns_of_its_own(many: Path, tmp_path: Path) -> None:
    rows = [
        {"words": f"w{c}", "kind": f"c{c}", "split": "held" if c < 3 else "rest"}
        for c in range(6)
        for _ in range(5)
    ]
    other = write_json_lines(tmp_path / "other.jsonl", rows)
    config = replace(
        PRESETS["intents"], data=str(many), test_data=str(other),
        model=str(many.parent / "model"), cache=str(many.parent / "cache"), max_length=8,
        ways=3, queries=2, test_classes=0, text="text", label="intent",
        test_text="words", test_label="kind",
    )  # fmt: skip

    def shown(**changes: Any) -> set[int]:
        source: Any = build_episodes(replace(config, **changes), "test")
        found = [next(iter(source)).support.inputs["input_ids"][..., 1] - 4 for _ in range(20)]
        return set(torch.cat(found).flatten().tolist())

    assert shown() == set(range(6))
    assert shown(test_rows="held") == {0, 1, 2}
    assert shown(rows="rest") == {3, 4, 5}  # as for the data that is trained on
    assert shown(rows="rest", test_rows="") == set(range(6))
    with pytest.raises(ValueError, match=r"label='intent' from .*other\.jsonl"):
        shown(test_label=None)


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize(
    ("command", "flags", "line"),
    [
        ("intents", ["--model", "no/model"], "model 'no/model'"),
        ("intents", ["--data", "no/data"], "data set 'no/data'"),
        ("intents", ["--test-data", "no/other"], "data set 'no/other'"),
        ("glue", ["--data", "no/glue"], "data set 'no/glue'"),
        ("glue", ["--model", "no/second", "--data", "no/third"], "model 'no/second'"),
    ],
)
def test_what_the_hub_is_asked_for_is_said_first(
    many: Path,
    command: str,
    flags: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import huggingface_hub

    # Read once when that is imported: without it no line is printed, with it none would be tried.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    own = ["--model", str(many.parent / "model"), "--cache", str(tmp_path)]
    own += ["--max-length", "8"]
    if command == "intents":
        own += ["--data", str(many), "--ways", "2", "--queries", "2", "--test-classes", "3"]
    for offline in (False, True):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1" if offline else "0")
        tell.cache_clear()
        assert main(["train", command, *own, "--out", str(tmp_path / "out"), *flags]) == 2
        printed = capsys.readouterr().err.splitlines()
        said = [x for x in printed if "on the Hugging Face hub (" in x]
        assert len(said) == (not offline)
        if said:
            stages = ("fastmaml: loading the model", "fastmaml: reading and tokenising")
            assert said[0] == next(x for x in printed if not x.startswith(stages))
            assert said[0].startswith(f"fastmaml: looking for the {line} on")


def test_metrics_of_glue() -> None:
    """Its own suit its tasks; others go to those tasks that they are of."""
    pytest.importorskip("sklearn")
    assert METRICS.keys() == TASKS.keys()
    for name, metrics in METRICS.items():
        kind = "classification" if TASKS[name] else "regression"
        assert all(kind in metric.kinds for metric in chosen(metrics).everywhere)
    own = Glue(GlueConfig()).metrics()
    assert [metric.name for metric in own.of("cola")] == ["matthews"]
    found = Glue(GlueConfig(test="STS-B", metrics="f1,pearson")).metrics()
    assert [metric.name for metric in found.of("stsb")] == ["pearson"]
    assert [metric.name for metric in found.of("mnli")] == ["f1"]
