"""The studies of texts: the control learns plainly, and what is compared is of the same draws."""

from __future__ import annotations

import gzip
import json
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
import tiny_language
import torch
from benchmark_runs import result, run
from torch import nn

from benchmarks.support.multi_task import multi_task
from benchmarks.support.split_encoder import Lower, Upper
from benchmarks.tables import transfer as tables
from fastmaml import Batch
from fastmaml.episodes import NamedEpisodes
from fastmaml.integrations.transformers import sequence_classifier

GLUE = {
    "SST-2": ("text_a",), "QNLI": ("text_a", "text_b"), "MNLI": ("text_a", "text_b"),
    "QQP": ("text_a", "text_b"), "MRPC": ("text_a", "text_b"), "RTE": ("text_a", "text_b"),
    "CoLA": ("text_a",), "STS-B": ("text_a", "text_b"),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language.save_model(tmp_path_factory.mktemp("model"), num_hidden_layers=3)


def test_both_parts_are_the_whole_model(model: Path) -> None:
    whole: Any = sequence_classifier(str(model), 3, pooling="mean", dropout=0.0).eval()
    words = tiny_language.tokenizer()(
        ["w1 w2 w3", "w4", "w5 w6 w7 w8"], padding=True, return_tensors="pt"
    )
    expected = whole(**words)
    lower = Lower(str(model), 2)
    upper = Upper(whole, 2)
    found = lower.hidden(dict(words), 10)
    assert found["hidden"].shape == (3, 10, 16)
    torch.testing.assert_close(upper(**found), expected)
    assert len(lower.known) == 3
    again = lower.hidden({name: x[1:] for name, x in words.items()}, 10)
    assert len(lower.known) == 3
    torch.testing.assert_close(upper(**again), expected[1:])
    one = Batch({name: x.unsqueeze(0) for name, x in found.items()}, torch.zeros(1, 3))
    features = upper.features(NamedEpisodes(one, one, ("a",)))
    torch.testing.assert_close(upper.classifier(features.support.inputs[0]), expected)
    assert features.names == ("a",)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.classifier = nn.Linear(2, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.body(x).relu())


def test_the_control_trains_all_but_the_classifier() -> None:
    torch.manual_seed(0)
    model = Classifier()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = torch.randn(1, 64, 2)
    labels = (x.prod(-1) > 0).long()
    batch = Batch({"x": x}, {"labels": labels})
    found = multi_task(model, [NamedEpisodes(batch, batch, ("xor",))] * 200, {"xor": 2}, 200, 0.02)
    after = dict(model.named_parameters())
    assert found["training_cpu_seconds"] >= 0
    assert torch.equal(after["classifier.weight"], before["classifier.weight"])
    assert not torch.equal(after["body.weight"], before["body.weight"])
    features = model.body(x[0]).relu().detach()
    columns = torch.cat([features, torch.ones(64, 1)], 1)
    fit = torch.linalg.lstsq(columns, 2.0 * labels[0].float().unsqueeze(1) - 1).solution
    assert (((columns @ fit).squeeze(1) > 0) == labels[0].bool()).float().mean() > 0.9


def made_up(gain: float) -> dict[str, Any]:
    scores = {c: {"accuracy": [0.5 + gain + d for d in (0.0, 0.1)]} for c in ("rte", "held")}
    scores["held"]["accuracy"] = [x + gain for x in scores["held"]["accuracy"]]
    one = {"lr": 0.1, "steps": 3, "training_data_sets": 0.6 + gain, "scores": scores}
    worse = one | {
        "training_data_sets": 0.1,
        "scores": {c: {"accuracy": [0.0] * 2} for c in scores},
    }
    tests = {"prototypes": {"4": worse}, "new last layer": {"4": one}}
    return {"intents": True, "tests": tests, "training_cpu_seconds": 12.3}


def test_differences_are_of_the_same_draws_and_over_the_data_sets() -> None:
    found = {
        "held_out": ["rte", "held"],
        "methods": {"multi-task": made_up(0), "ANIL": made_up(0.1)},
    }
    lines = tables.accuracies(found, "4").splitlines()
    assert lines[0].count("|") == lines[3].count("|")
    # 10 points on one data set and 20 on the other; t of one degree of freedom is 12.706.
    width = 12.706 * statistics.stdev([10.0, 20.0]) / 2**0.5
    assert f"+15.0 ± {width:.1f}" in lines[3]
    assert "new last layer, 3 steps at 0.1" in lines[3]
    assert "±" in lines[2]
    assert "+" not in lines[2]
    assert "| 60.0 ± " not in lines[2]


def data(folder: Path) -> Path:
    """GLUE and two sets of intents, in random words."""
    draw = random.Random(0)

    def text() -> str:
        return " ".join(f"w{draw.randrange(60)}" for _ in range(4))

    (folder / "glue").mkdir()
    for name, columns in GLUE.items():
        classes = ["entailment", "neutral", "contradiction"] if name == "MNLI" else [0, 1]
        for part in ("train", "dev"):
            rows = [
                {column: text() for column in columns}
                | {"label": draw.random() * 5 if name == "STS-B" else classes[i % len(classes)]}
                for i in range(120)
            ]
            tiny_language.write_json_lines(folder / "glue" / f"{name}.{part}.jsonl.gz", rows)
    for name, classes in (("clinc150", 12), ("banking77", 6)):
        rows = [
            {"split": "train", "text": text(), "label": f"intent {i % classes}"}
            for i in range(40 * classes)
        ]
        lines = "\n".join(map(json.dumps, rows)).encode()
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines))
    return folder


@pytest.mark.slow
def test_the_study_runs(tmp_path: Path, model: Path) -> None:
    pytest.importorskip("sklearn")
    path = tmp_path / "transfer.json"
    small = ("--iterations", "2", "--draws", "2", "--grid-draws", "1", "--held-intents", "6")
    small += ("--test-query", "6", "--test-queries", "2", "--frozen-layers", "2", "--rows", "150")
    methods = ("--methods", "pretrained", "multi-task", "ANIL from prototypes", "MAML")
    common = ("--data", str(data(tmp_path)), "--json", str(path))
    run("transfer", str(model), *common, *small, *methods)
    found = result(path)
    assert list(found["methods"]) == list(methods[1:])
    for method in found["methods"].values():
        for test in method["tests"].values():
            for shots in ("4", "16"):
                assert test[shots]["scores"].keys() == set(found["held_out"])
                assert len(test[shots]["scores"]["mrpc"]["f1"]) == 2
    assert "ANIL from prototypes" in tables.study(found)
