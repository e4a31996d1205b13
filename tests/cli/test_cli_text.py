"""``fastmaml train intents | glue`` and ``eval`` with a tiny model, and what they leave behind."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from places import EXAMPLES, data_beside
from tiny_language import mini_lm, save_model, tokenizer, write_json_lines

import fastmaml as fm
from fastmaml.cli import main
from fastmaml.integrations.transformers import sequence_classifier
from fastmaml.training import checkpoint
from fastmaml.training.config import GlueConfig, IntentsConfig, TrainConfig
from fastmaml.training.config.toml import assignments
from fastmaml.training.presets import PRESETS
from fastmaml.training.recipes import build_maml, build_trainer

SMALL = [
    *("--tasks", "2", "--test-episodes", "6", "--inner-steps", "2", "--threads", "1"),
    *("--no-plots", "--schedule", "constant", "--max-length", "8", "--meta-lr", "1e-3"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and data for both commands."""
    place = tmp_path_factory.mktemp("place")
    save_model(place / "model")
    for name, classes in (("many", 9), ("other", 4)):
        rows = [
            {"text": f"w{c} w{20 + i}", "intent": f"{name} {c}"}
            for c in range(classes)
            for i in range(6)
        ]
        write_json_lines(place / f"{name}.jsonl.gz", [*rows, {"text": "w0", "intent": "oos"}])
    (place / "glue").mkdir()
    for name, classes in (("SST-2", 2), ("MNLI", 3), ("RTE", 2), ("MRPC", 2)):
        pair = {} if name == "SST-2" else {"text_b": "w50"}
        rows = [{"text_a": f"w{i}", **pair, "label": i % classes} for i in range(36)]
        for split in ("train", "dev"):
            write_json_lines(place / "glue" / f"{name}.{split}.jsonl.gz", rows)
    return place


def arguments(place: Path, command: str, out: Path, *flags: str) -> list[str]:
    own = {
        "intents": [
            *("--data", str(place / "many.jsonl.gz"), "--ways", "2", "--queries", "2"),
            *("--test-classes", "3"),
        ],
        "glue": [
            *("--data", str(place), "--train", "SST-2,MNLI", "--test", "mrpc,rte"),
            *("--support", "6", "--query", "4", "--test-query", "6", "--evaluate-every", "0"),
            *("--executor", "eager"),
        ],
    }[command]
    model = ["--model", str(place / "model"), "--cache", str(place / "cache")]
    return ["train", command, *model, *own, *SMALL, "--out", str(out), *flags]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: Any = checkpoint.load(folder / "last.safetensors").state
    return dict(state["maml"])


@pytest.fixture(scope="module")
def runs(place: Path) -> Path:
    """The folder of a finished run of each command."""
    assert main(arguments(place, "glue", place / "run-glue", "--iterations", "3")) == 0
    both = ["--test-data", str(place / "other.jsonl.gz"), "--iterations", "3"]
    assert main(arguments(place, "intents", place / "run-intents", *both)) == 0
    return place


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize(
    ("command", "names"), [("glue", ["mrpc", "rte"]), ("intents", ["many", "other"])]
)
def test_a_run_and_eval_agree(
    runs: Path, command: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs / f"run-{command}"
    result = json.loads((folder / "result.json").read_text())
    saved = checkpoint.load(folder / "last.safetensors")
    assert result["config"] == saved.config
    assert saved.config["dataset"] == command
    test = result["test"]
    assert test["chance"] == pytest.approx(0.5)
    assert list(test["by_name"]) == names
    parts = test["by_name"].values()
    assert sum(part["episodes"] for part in parts) == test["episodes"] == 6
    total = sum(part["accuracy"] * part["episodes"] for part in parts)
    assert test["accuracy"] == pytest.approx(total / 6)
    assert main(["eval", str(folder)]) == 0
    printed = capsys.readouterr().out
    for name, part in test["by_name"].items():
        accuracy = f"{100 * part['accuracy']:.1f} ± {100 * part['interval_95']:.1f}%"
        assert any(name in line and accuracy in line for line in printed.splitlines())


def test_metrics_of_a_run(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GLUE's own by default; others when resuming or evaluating, for the same parameters."""
    pytest.importorskip("sklearn")
    test = json.loads((runs / "run-glue" / "result.json").read_text())["test"]
    scores = {name: list(one["scores"]) for name, one in test["by_name"].items()}
    assert scores == {"mrpc": ["f1", "accuracy"], "rte": ["accuracy"]}
    assert test["over_names"]["names"] == ["mrpc", "rte"]
    again = ["train", "glue", "--resume", str(runs / "run-glue"), "--out", str(tmp_path)]
    assert main([*again, "--metrics", "matthews,loss"]) == 0
    other = json.loads((tmp_path / "result.json").read_text())["test"]
    assert list(other["scores"]) == ["matthews", "loss"]
    assert other["accuracy"] == test["accuracy"]
    capsys.readouterr()
    command = ["eval", str(runs / "run-intents"), "--episodes", "6", "--change"]
    assert main([*command, "metrics=f1,accuracy"]) == 0
    assert "query f1" in capsys.readouterr().out
    assert "scores" not in json.loads((runs / "run-intents" / "result.json").read_text())["test"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["glue", "intents"])
def test_resumed_is_as_uninterrupted(runs: Path, tmp_path: Path, command: str) -> None:
    extra = ["--test-data", str(runs / "other.jsonl.gz")] if command == "intents" else []
    flags = [*extra, "--iterations", "5"]
    assert main(arguments(runs, command, tmp_path / "whole", *flags)) == 0
    again = ["train", command, "--resume", str(runs / f"run-{command}"), "--iterations", "5"]
    assert main([*again, "--out", str(tmp_path / "resumed")]) == 0
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], x) for k, x in weights(runs / f"run-{command}").items())


@pytest.mark.slow
def test_eval_with_other_settings(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "elsewhere.jsonl.gz"
    moved.write_bytes((runs / "many.jsonl.gz").read_bytes())
    change = ["--change", f"data={moved}", "shots=3", "test_data=none.jsonl"]
    command = ["eval", str(runs / "run-intents"), "--episodes", "4", "--split", "train"]
    assert main([*command, *change]) == 0
    assert "2-way 3-shot" in capsys.readouterr().out
    assert main([*command[:-1], "test", *change]) == 2
    assert "none.jsonl" in capsys.readouterr().err
    glue = ["eval", str(runs / "run-glue"), "--episodes", "2", "--change"]
    assert main([*glue, "test=rte", "support=10"]) == 0
    assert "to rte, 10 examples" in capsys.readouterr().out
    for wrong, message in (
        ("testing=rte", "did you mean 'test'"),
        ("rte", "'rte' is no setting: write NAME=VALUE"),
        ("support=x", "support='x' is a str; give a int"),
        ("pooling=mean", "do not fit the model"),
    ):
        assert main([*glue, wrong]) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_assignments_are_toml_or_text() -> None:
    words = ["a=5", "b=sst2,rte", "c=true", 'd="x"', "e=0.5", "f=/a/b=c"]
    values = [5, "sst2,rte", True, "x", 0.5, "/a/b=c"]
    assert assignments(words) == dict(zip("abcdef", values, strict=True))


@pytest.mark.slow
def test_settings_from_toml(place: Path, tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text(
        f'data = "{place}"\nmodel = "{place}/model"\ncache = "{place}/cache"\ntest = "rte"\n'
        'train = "sst2"\nhead = "shared"\ndropout = 0.1\nsupport = 8\nmax_length = 8\n'
        "plots = false\niterations = 1\ntest_episodes = 1\ntest_query = 4\nevaluate_every = 0\n"
    )
    out = ["--out", str(tmp_path / "run")]
    assert main(["train", "glue", "--config", str(toml), "--support", "9", *out]) == 0
    saved = checkpoint.load(tmp_path / "run" / "last.safetensors").config
    assert (saved["test"], saved["head"], saved["dropout"], saved["support"]) == (
        *("rte", "shared", 0.1, 9),
    )


def test_each_command_has_the_flags_that_concern_it(capsys: pytest.CaptureFixture[str]) -> None:
    helps = {}
    for command in ("digits", "intents", "glue"):
        with pytest.raises(SystemExit):
            main(["train", command, "--help"])
        helps[command] = capsys.readouterr().out
    for name in ("filters", "protocol", "root"):
        assert [f"--{name} " in helps[c] for c in helps] == [True, False, False]
    for name in ("model", "pooling", "max-length", "lora-rank"):
        assert [f"--{name} " in helps[c] for c in helps] == [False, True, True]
    assert ["--ways " in helps[c] for c in helps] == [True, True, False]
    assert ["--sampling " in helps[c] for c in helps] == [False, False, True]
    for command in helps:
        assert "--executor " in helps[command]
        assert "--dataset" not in helps[command]


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("glue", ["--train", "sst2,snli"], "'snli' is no task of GLUE"),
        ("glue", ["--test", "sst2"], "sst2 is in train='SST-2,MNLI' and in test='sst2'"),
        ("glue", ["--test", "cola"], "has no dev part of 'cola'"),
        ("glue", ["--data", "/no/such"], "there is no folder with GLUE's files"),
        ("glue", ["--support", "100"], "the smallest class of 'sst2' has 18 examples"),
        ("glue", ["--balance", "bath"], "both"),
        ("glue", ["--scope", "last-9"], "the model has 2 layers"),
        ("glue", ["--metrics", "f1,pearson"], "'pearson', which is of regression, and these tasks"),
        ("intents", ["--metrics", "f1,perplexity"], "'perplexity', which is of tokens, and these"),
        ("intents", ["--metrics", "f2"], "metrics has 'f2': choose from accuracy, f1, matthews"),
        ("glue", ["--max-length", "999"], "max_length=999: give a length from"),
        ("intents", ["--data", "none.jsonl"], "there is no such file"),
        ("intents", ["--test-classes", "9"], "all 9 classes are held out"),
        ("intents", ["--test-classes", "0"], "there is nothing to test on"),
        ("intents", ["--label", "lable"], "label='lable' from"),
        ("intents", ["--shots", "6"], "has 6 texts of class"),
        ("intents", ["--scope", "nosuch"], "scope='nosuch'"),
        ("intents", ["--model", "/no/model"], "there is no model '/no/model'"),
        ("intents", ["--model", "./no/model"], "'./no/model' to load (there is no such folder)"),
        ("intents", ["--lora-rank", "0"], "lora_rank=0: give at least 1"),
    ],
)
def test_bad_input_is_a_paragraph(
    place: Path,
    command: str,
    flags: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        code = main(arguments(place, command, tmp_path / "out", *flags))
    except SystemExit as exit_:  # the parser's own
        code = exit_.code
    assert code == 2
    printed = capsys.readouterr().err
    assert message in " ".join(printed.split())
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_without_transformers(place: Path, tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("transformers", "datasets", "peft", "tokenizers")))
from fastmaml.cli import main
print(main({arguments(place, "glue", tmp_path)!r}))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "fastmaml[text]"' in run.stderr
    assert run.stdout == "2\n"


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize(
    ("changes", "moved", "still"),
    [
        ({"scope": "head", "head": "shared"}, ["classifier"], []),
        ({"scope": "last-1", "head": "prototype", "prototype_scale": 0.1}, ["layer.1"], []),
        ({"scope": "bias", "executor": "captured"}, ["bias"], []),
        ({"scope": "lora", "lora_rank": 2}, ["lora_"], ["embeddings"]),
        ({"pooling": "mean", "head": "prototype"}, ["embeddings"], ["classifier"]),
        ({"pooling": "model", "dropout": 0.2, "rule": "lslr"}, ["rates.", "pooler"], []),
        ({"dtype": "float64", "gradient": "mixed-mode"}, ["layer.0"], []),
        ({"backend": "reference", "gradient": "first-order", "dropout": None}, ["layer.0"], []),
    ],
)
def test_every_option_reaches_the_meta_step(
    place: Path, tmp_path: Path, changes: dict[str, Any], moved: list[str], still: list[str]
) -> None:
    config = replace(
        PRESETS["intents"],
        data=str(place / "many.jsonl.gz"),
        model=str(place / "model"),
        out=str(tmp_path),
        cache=str(place / "cache"),
        max_length=8,
        test_classes=3,
        ways=2,
        tasks=2,
        queries=2,
        **{"executor": "eager"} | changes,
    )
    trainer = build_trainer(config)
    before = {n: p.detach().clone() for n, p in trainer.maml.named_parameters()}
    assert trainer.step()["loss"] > 0
    changed = {n for n, p in trainer.maml.named_parameters() if not torch.equal(p, before[n])}
    for part in moved:
        assert any(part in name for name in changed), part
    for part in still:
        assert not any(part in name for name in changed), part
    maml = trainer.maml
    assert maml.executor == config.executor
    assert maml.backend == (None if config.backend == "auto" else config.backend)
    assert next(maml.parameters()).dtype == getattr(torch, config.dtype)
    assert maml.module.config.hidden_dropout_prob == (
        0.1 if config.dropout is None else config.dropout
    )


def test_configurations_say_what_they_are_of() -> None:
    kinds = {name: type(preset) for name, preset in PRESETS.items()}
    assert kinds["intents"] is IntentsConfig
    assert kinds["glue"] is GlueConfig
    assert kinds["digits"] is kinds["omniglot"] is kinds["sinusoid"] is TrainConfig
    for name, preset in PRESETS.items():
        assert preset.dataset == name
        assert name in preset.title
        assert all(field.name.islower() for field in fields(preset))


@pytest.mark.slow
def test_the_example_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = EXAMPLES / "bert_glue.py"
    spec = importlib.util.spec_from_file_location("bert_glue", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    flags = ["--model", str(place / "model"), "--data", str(place), "--train", "sst2,mnli"]
    flags += ["--iterations", "11", "--tasks", "2", "--examples", "6", "--length", "8"]
    monkeypatch.setattr("sys.argv", ["bert_glue.py", *flags, "--steps", "2", "--batches", "2"])
    module.main()
    printed = capsys.readouterr().out
    assert printed.count("mrpc after 2 steps") == 2
    assert re.search(r"^  10  loss \d", printed, re.MULTILINE)


@pytest.mark.slow
def test_a_learner_for_new_texts(place: Path) -> None:
    """What docs/how_to/text.md ends with."""
    words = tokenizer()
    model = sequence_classifier(str(place / "model"), classes=3, dropout=0.0)
    maml = fm.MAML(model, lr=0.1, steps=2, loss=fm.losses.classification, head=fm.heads.Zero())
    source = fm.episodes.glue("rte", words, data=place, support=6, max_length=8, cache=False)
    task = source.sample()[0]
    learner = maml.adapt_to(
        fm.Batch(
            {name: x[0] for name, x in task.support.inputs.items()},
            {name: x[0] for name, x in task.support.targets.items()},
        )
    )
    assert type(learner) is type(model)
    logits = learner(**words("w1", "w50", return_tensors="pt")).logits
    assert logits.shape == (1, 3)
    query = {name: x[0] for name, x in task.query.inputs.items()}
    expected = maml.evaluate(task).outputs["logits"][0]
    torch.testing.assert_close(learner(**query).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_real_model(tmp_path: Path) -> None:
    """One meta-step of MiniLM on real intents, second order."""
    folder = data_beside("clinc150.jsonl.gz")
    config = replace(
        PRESETS["intents"],
        data=str(folder / "clinc150.jsonl.gz"),
        model=mini_lm(),
        cache=str(tmp_path),
        tasks=2,
        inner_steps=1,
        queries=1,
        max_length=16,
        executor="eager",
        out=str(tmp_path / "out"),
    )
    trainer = build_trainer(config)
    line = trainer.step()
    assert 0 < line["loss"] < 5
    assert line["gradient_norm"] > 0
    assert build_maml(config).steps == 1
