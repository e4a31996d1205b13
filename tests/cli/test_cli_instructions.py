"""``fastmaml train instructions``, ``export`` and ``adapt`` with tiny models."""

from __future__ import annotations

import gzip
import itertools
import json
import runpy
from pathlib import Path
from typing import Any

import generating
import pytest
import torch
from places import EXAMPLES, data_beside
from tiny_language import mini_lm, save_model, write_json_lines

import fastmaml as fm
from fastmaml.cli import main
from fastmaml.integrations.transformers import sequence_classifier
from fastmaml.training import checkpoint
from fastmaml.training.presets import PRESETS
from fastmaml.training.recipes import build_episodes

transformers = pytest.importorskip("transformers", reason="no transformers (fastmaml[text])")
peft = pytest.importorskip("peft", reason="no peft (fastmaml[text])")
# Of a property of transformers' models that peft reads.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, tasks, another data set and a new task."""
    place = tmp_path_factory.mktemp("place")
    for kind in generating.KINDS:
        generating.save(kind, place / kind)
    save_model(place / "bert")
    write_json_lines(place / "tasks.jsonl.gz", generating.rows(6, 20))
    for name, first in (("other", 0), ("new", 0), ("new-test", 30)):
        rows = [
            {"input": f"w{(first + i) % 45} w7", "output": f"w{30 + i % 2} w9"} for i in range(20)
        ]
        write_json_lines(place / f"{name}.jsonl", rows)
    texts = [{"text": f"w{c} w{20 + i}", "intent": f"kind {c}"} for c in range(9) for i in range(6)]
    write_json_lines(place / "many.jsonl.gz", texts)
    write_json_lines(place / "two.jsonl", [row for row in texts if row["intent"] < "kind 2"])
    return place


def train(place: Path, kind: str, out: Path, *flags: str) -> int:
    return main([
        *("train", "instructions", "--model", str(place / kind), "--cache", str(place / "cache")),
        *("--data", str(place / "tasks.jsonl.gz"), "--test-tasks", "2", "--out", str(out)),
        *("--max-length", "32", "--tasks", "2", "--support", "4", "--query", "3"),
        *("--test-query", "4", "--test-episodes", "6", "--inner-steps", "2", "--threads", "1"),
        *("--no-plots", "--schedule", "constant", "--evaluate-every", "0", "--iterations", "3"),
        *flags,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """A finished run of the decoder."""
    assert train(place, "Llama", place / "run", "--validation-tasks", "1") == 0
    return place / "run"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: Any = checkpoint.load(folder / "last.safetensors").state
    return dict(state["maml"])


def logits(model: Any) -> torch.Tensor:
    words = generating.tokenizer()(["w1 w2", "w3 w4"], return_tensors="pt")
    words.pop("token_type_ids")
    with torch.no_grad():
        return model.eval()(**words).logits


def test_only_the_adapters_are_learned_and_the_test_is_told_by_task(run: Path, place: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    test = result["test"]
    assert len(test["by_name"]) == 2
    assert set(test["by_name"]) <= {f"task {t}" for t in range(6)}
    assert sum(part["episodes"] for part in test["by_name"].values()) == 6
    before = generating.model("Llama").state_dict()
    for name, learned in weights(run).items():
        if ".lora_" not in name and name.startswith("module."):
            own = name.removeprefix("module.base_model.model.").replace(".base_layer.", ".")
            assert torch.equal(learned, before[own])
    assert any(".lora_B" in n and x.any() for n, x in weights(run).items())


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("kind", ["GPT2", "T5"])
def test_other_models(kind: str, place: Path, tmp_path: Path) -> None:
    other = ("--test-data", str(place / "other.jsonl"), "--test-query", "3")
    assert train(place, kind, tmp_path / "run", *other, "--choose", "--scope", "last-1") == 2
    assert train(place, kind, tmp_path / "run", *other, "--scope", "last-1") == 0
    test = json.loads((tmp_path / "run" / "result.json").read_text())["test"]
    assert "other: other" in test["by_name"]
    assert any(name.startswith("tasks: task") for name in test["by_name"])


def test_resumed_is_as_uninterrupted(run: Path, place: Path, tmp_path: Path) -> None:
    flags = ("--validation-tasks", "1", "--iterations", "5")
    assert train(place, "Llama", tmp_path / "whole", *flags) == 0
    again = ["train", "instructions", "--resume", str(run), "--iterations", "5"]
    assert main([*again, "--out", str(tmp_path / "resumed")]) == 0
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("base", [pytest.param("bfloat16", marks=pytest.mark.slow), "int8"])
def test_adapters_on_frozen_weights_in_fewer_bits(base: str, place: Path, tmp_path: Path) -> None:
    """Trained, resumed, exported and adapted; of weights in 8 bits nothing is in the checkpoint."""
    if base == "int8":
        pytest.importorskip("torchao", reason="no torchao (fastmaml[quantized])")
    run, flags = tmp_path / "run", ("--scope", "lora", "--lora-rank", "2", "--base", base)
    assert train(place, "Llama", run, *flags, "--scope", "all") == 2
    assert train(place, "Llama", run, *flags) == 0
    learned = weights(run)
    kinds = {x.dtype for n, x in learned.items() if ".lora_" in n}
    assert kinds == {torch.float32}
    assert any("q_proj.base_layer.weight" in name for name in learned) == (base == "bfloat16")
    assert main(["train", "instructions", "--resume", str(run), "--iterations", "4"]) == 0
    assert main(["export", str(run), "--to", str(tmp_path / "out")]) == 0
    asked = ["--data", str(place / "new.jsonl"), "--limit", "4"]
    assert main(["adapt", str(run), *asked, "--to", str(tmp_path / "adapted")]) == 0
    for folder in ("out", "adapted"):
        assert (tmp_path / folder / "adapter_model.safetensors").stat().st_size < 20_000


def test_a_run_on_weights_in_eight_bits_is_of_these_alone(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchao", reason="no torchao (fastmaml[quantized])")
    run, flags = tmp_path / "run", ("--scope", "lora", "--lora-rank", "2", "--base", "int8")
    generating.save("Llama", tmp_path / "Llama")
    assert train(tmp_path, "Llama", run, *flags, "--data", str(place / "tasks.jsonl.gz")) == 0
    model = generating.model("Llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    model.save_pretrained(tmp_path / "Llama")
    assert main(["export", str(run), "--to", str(tmp_path / "out")]) == 2
    assert "the model's are others" in capsys.readouterr().err


def test_a_first_look_is_short_and_says_what_it_does(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--quick", "--iterations", "1000", "--test-episodes", "500")
    assert train(place, "GPT2", tmp_path / "run", *flags) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["iterations"] == 10
    assert result["test"]["episodes"] == 8
    said = capsys.readouterr()
    assert "fastmaml: loading the model" in said.err
    assert f"reading and tokenising {place / 'tasks.jsonl.gz'}\n" in said.err
    assert "first iteration: planning and recording" in said.out


def test_export_is_what_was_learned(
    run: Path, place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ["export", str(run), "--to", str(tmp_path / "out"), "--overwrite"]
    generating.save("Llama", tmp_path / "out")
    (tmp_path / "out" / "notes.txt").touch()
    capfd.readouterr()
    assert main(asked) == 0
    assert "%" not in capfd.readouterr().err, "no bar of transformers'"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"notes.txt", "adapter_model.safetensors"} <= names
    assert not {"config.json", "model.safetensors"} & names, "of the model that was there"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert main([*asked, "--to", str(place / "Llama")]) == 2
    assert "is the model that the run was trained from" in capfd.readouterr().err
    found = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    learned = weights(run)
    for name, parameter in found.named_parameters():
        assert torch.equal(parameter, learned[f"module.{name}"])


def test_adapt_gives_an_adapter_that_generates(
    run: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    data = ("--data", str(place / "new.jsonl"), "--test-data", str(place / "new-test.jsonl"))
    steps = ("--steps", "3", "--change", "inner_lr=2.0")
    assert main(["adapt", str(run), *data, "--to", str(out), *steps]) == 0
    printed = capsys.readouterr().out
    assert "the test examples: 20" in printed
    losses = [float(line.split("│")[2]) for line in printed.splitlines() if "│" in line]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    found = peft.AutoPeftModelForCausalLM.from_pretrained(out)
    words = transformers.AutoTokenizer.from_pretrained(out)
    test = fm.episodes.answered(place / "new-test.jsonl", words, max_length=32, cache=False)
    with torch.no_grad():
        loss = fm.losses.causal(found(**test.inputs), test.targets)
    assert f"{loss:.3g}" == f"{losses[-1]:.3g}"
    prompt = words("w1 w7", return_tensors="pt", add_special_tokens=False)["input_ids"]
    said = found.generate(input_ids=prompt, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert said.shape[1] > prompt.shape[1]


GLUE = {
    "SST-2": ("Is this review good? {text_a}", {"0": "no", "1": "yes"}),
    "RTE": ("{text_a} So: {text_b} True?", {"entailment": "yes", "not_entailment": "no"}),
    "MRPC": ("{text_a} {text_b} Is that the same?", {"0": "no", "1": "yes"}),
    "CoLA": ("Is this a sentence? {text_a}", {"0": "no", "1": "yes"}),
}
"""How each task is asked, and what its labels are as answers."""


def glue_as_prompts(place: Path) -> Path:
    """A file of 60 rows of each task that is there."""
    names = [f"glue/{name}.dev.jsonl.gz" for name in GLUE]
    folder, rows = data_beside(*names), []
    for name, (template, words) in GLUE.items():
        with gzip.open(folder / "glue" / f"{name}.dev.jsonl.gz", "rt") as file:
            for row in map(json.loads, itertools.islice(file, 60)):
                answer = words[str(row["label"])]
                prompt = template.format_map(row)
                options = ["yes", "no"]
                rows.append({"task": name, "input": prompt, "output": answer, "options": options})
    return write_json_lines(place / "glue.jsonl", rows)


def test_glue_as_prompts_from_training_to_an_adapter_that_generates(tmp_path: Path) -> None:
    """A decoder of random weights with a real tokenizer, on real rows."""
    data, words = glue_as_prompts(tmp_path), transformers.AutoTokenizer.from_pretrained(mini_lm())
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(words)}
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**sizes, **heads, pad_token_id=words.pad_token_id)
    ).save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    arguments = [
        *("train", "instructions", "--model", str(tmp_path / "model"), "--data", str(data)),
        *("--cache", str(tmp_path / "cache"), "--test-tasks", "CoLA", "--choose", "--no-plots"),
        *("--max-length", "64", "--tasks", "2", "--support", "4", "--query", "4"),
        *("--test-query", "4", "--test-episodes", "4", "--iterations", "3", "--threads", "1"),
        *("--evaluate-every", "0", "--out", str(tmp_path / "run"), "--inner-lr", "1.0"),
    ]
    assert main(arguments) == 0
    test = json.loads((tmp_path / "run" / "result.json").read_text())["test"]
    assert 0 <= test["scores"]["option"]["option"] <= 1
    assert test["loss"] < test["no_adaptation"], "yes and no are likelier after the inner steps"
    assert main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "adapter")]) == 0
    found = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    asked = transformers.AutoTokenizer.from_pretrained(tmp_path / "adapter")
    ids = asked("Is this a sentence? Yes it are.", return_tensors="pt")["input_ids"][:, :-1]
    said = found.generate(input_ids=ids, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert said.shape[1] > ids.shape[1]


def test_adapt_of_a_classifier_has_the_task_s_own_classes(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = [
        *("train", "intents", "--model", str(place / "bert"), "--cache", str(place / "cache")),
        *("--data", str(place / "many.jsonl.gz"), "--ways", "3", "--queries", "2"),
        *("--test-classes", "3", "--tasks", "2", "--test-episodes", "2", "--inner-steps", "2"),
        *("--threads", "1", "--no-plots", "--max-length", "8", "--iterations", "2"),
        *("--pooling", "model", "--out", str(out)),
    ]
    assert main(arguments) == 0
    adapt = ["adapt", str(out), "--data", str(place / "two.jsonl"), "--to", str(tmp_path / "new")]
    assert main(adapt) == 0
    found = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "new")
    assert found.config.id2label == {0: "kind 0", 1: "kind 1"}
    assert logits(found).shape == (2, 2)
    assert main(["export", str(out), "--to", str(tmp_path / "exported")]) == 0
    exported = sequence_classifier(str(tmp_path / "exported"), 3)
    learned = weights(out)
    for name, parameter in exported.named_parameters():
        assert torch.equal(parameter, learned[f"module.{name}"])
    many = ["adapt", str(out), "--data", str(place / "many.jsonl.gz"), "--to", str(tmp_path / "x")]
    assert main(many) == 2


def test_the_example_runs(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", str(place / "Llama"), "--data", str(place / "tasks.jsonl.gz")]
    flags += ["--iterations", "11", "--length", "32", "--rank", "2", "--steps", "2"]
    monkeypatch.setattr("sys.argv", ["instructions.py", *flags, "--out", str(tmp_path / "adapter")])
    runpy.run_path(str(EXAMPLES / "instructions.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "  10  loss " in printed
    assert printed.count("inner steps") == 3
    assert printed.count(", right: 'w2") == 8
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--change", "support=3"], "--change support=...: that has no effect"),
        (["--limit", "0"], "--limit 0: give at least 1"),
        (["--steps", "0"], "--steps 0: give at least 1"),
        (["--to", "FILE"], "is a file: give a folder"),
    ],
)
def test_what_adapt_refuses(
    run: Path, place: Path, tmp_path: Path, flags: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "file").touch()
    flags = [str(tmp_path / "file") if flag == "FILE" else flag for flag in flags]
    data = ["--data", str(place / "new.jsonl"), "--to", str(tmp_path / "out")]
    assert main(["adapt", str(run), *data, *flags]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_adapter_is_not_written_for_another_model(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generating.save("Llama", tmp_path / "model")
    assert train(tmp_path, "model", tmp_path / "run", "--data", str(place / "tasks.jsonl.gz")) == 0
    other = generating.model("Llama")
    torch.nn.init.normal_(other.model.embed_tokens.weight)
    other.save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "out")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "is not the model that the run was trained with" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metrics", "option"], "needs every option: give --choose"),
        (["--data", ""], "names no prompts and answers"),
        (["--data", "nowhere.jsonl"], "there is no such file or folder"),
        (["--test-tasks", "0"], "nothing to test on"),
        (["--test-tasks", "task 77"], "which is no task of the data"),
        (["--prompt", "question"], "no column for prompt='question'"),
        (["--support", "30"], "has 20 examples, and an episode takes support=30"),
        (["--max-length", "100"], "the most that the model takes"),
    ],
)
def test_bad_input_is_a_sentence(
    place: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(place, "Llama", tmp_path / "run", *flags) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_runs_of_other_kinds_cannot_be_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--iterations", "1", "--evaluate-every", "0", "--test-episodes", "2", "--no-plots"]
    assert main(["train", "digits", "--out", str(tmp_path / "run"), *flags]) == 0
    assert main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "out")]) == 2
    assert "this is for language models" in " ".join(capsys.readouterr().err.split())


def test_the_episodes_of_the_command_are_those_of_python(place: Path) -> None:
    values = {"model": str(place / "GPT2"), "data": str(place / "tasks.jsonl.gz")}
    more = {"max_length": 32, "test_tasks": "2", "cache": str(place / "cache")}
    config = PRESETS["instructions"].updated({**values, **more}, "the test")
    found = next(iter(build_episodes(config, "train")))
    source = fm.episodes.instructions(
        place / "tasks.jsonl.gz", generating.tokenizer(), test_tasks=2, max_length=32, cache=False
    )
    wanted = source.sample()
    assert all(map(torch.equal, found.support.tensors(), wanted.support.tensors()))
