"""GLUE, and data sets of one's own: labels of every kind, where files are, results by name."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from places import data_beside
from tiny_language import mini_lm, save_model, tokenizer, write_json_lines
from torch import Tensor
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.episodes import Mixture, glue, text_task
from fastmaml.episodes.glue import TASKS, task_names
from fastmaml.training.evaluation import evaluate


def lines(labels: list[Any], pair: bool = True) -> list[dict[str, Any]]:
    """The first word is the row's number."""
    second = {"text_b": "w50 w51"} if pair else {}
    return [{"text_a": f"w{i} w40", **second, "label": y} for i, y in enumerate(labels)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """GLUE's files with every kind of label that they have: numbers, names, strings, values."""
    place = tmp_path / "glue"
    place.mkdir()
    kinds: dict[str, list[Any]] = {
        "SST-2": [0, 1] * 6,
        "CoLA": [1, 0] * 6,
        "MNLI.sub10k": ["contradiction", "neutral", "entailment"] * 4,
        "RTE": ["not_entailment", "entailment"] * 6,
        "QQP": ["1", "0"] * 6,
        "STS-B": [0.0, 5.0, 2.5] * 4,
    }
    for name, labels in kinds.items():
        for split in ("train", "dev"):
            rows = lines(labels, pair=name not in ("SST-2", "CoLA"))
            write_json_lines(place / f"{name}.{split}.jsonl.gz", rows)
    (place / "README.md").write_text("not a task")
    return tmp_path


def read(names: str, folder: Path, **changes: Any) -> Mixture:
    given = {"data": folder, "support": 6, "query": 3, "tasks": 8, "cache": False}
    return glue(names, tokenizer(), **given | {"max_length": 16} | changes)


def label_of(source: Mixture) -> dict[tuple[str, int], float]:
    """The label of each row, by name of the data set and number of the row."""
    found = {}
    for episodes in islice(source, 10):
        rows = episodes.support.inputs["input_ids"][..., 1] - 4  # after [CLS]; token 4 is w0
        targets = episodes.support.targets
        for i, name in enumerate(episodes.names):
            key = "values" if targets["classes"][i].item() == 1 else "labels"
            labels = targets[key][i].tolist()
            found |= {(name, r): y for r, y in zip(rows[i].tolist(), labels, strict=True)}
    return found


def test_labels_of_every_kind_become_numbers(folder: Path) -> None:
    found = label_of(read("sst2,cola,mnli,rte,qqp,stsb", folder))
    expected = {
        "sst2": [0, 1],
        "cola": [1, 0],
        "mnli": [2, 1, 0],
        "rte": [1, 0],
        "qqp": [1, 0],
        "stsb": [0.0, 1.0, 0.5],
    }
    for (name, row), label in found.items():
        assert label == expected[name][row % len(expected[name])], (name, row)
    assert {name for name, _ in found} == set(expected)


@pytest.mark.parametrize("spelling", ["SST-2, CoLA,RTE", ["sst2", "COLA", "rte"], "sst_2,cola,Rte"])
def test_names_in_any_spelling(folder: Path, spelling: Any) -> None:
    assert read(spelling, folder).names == ("sst2", "cola", "rte")
    assert task_names(",".join(TASKS)) == list(TASKS)


def test_where_files_are_looked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (folder, folder / "glue", str(folder)):
        assert read("rte", data).names == ("rte",)
    monkeypatch.setenv("FASTMAML_DATA", str(folder))
    assert read("rte", None).names == ("rte",)  # type: ignore[arg-type]
    whole = write_json_lines(folder / "glue" / "MNLI.train.jsonl", lines([0, 1, 2] * 9))
    assert read("mnli", folder)._sizes.tolist() == [27]  # the whole one, not a sample
    whole.unlink()
    assert read("mnli", folder)._sizes.tolist() == [12]
    own = read("rte", folder, query_from="dev", query=12)
    assert own.sample().query.targets["labels"].shape == (8, 12)


@pytest.mark.parametrize(
    ("names", "data", "message"),
    [
        ("sst2,snli", None, "'snli' is no task of GLUE"),
        ("", None, "names='': name at least one"),
        ("sst2,,", "/no/such/folder", "there is no folder with GLUE's files"),
        ("wnli", None, "has no train part of 'wnli'"),
        ("sst2,sst2", None, "each once"),
    ],
)
def test_what_is_not_there(folder: Path, names: str, data: Any, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(names, data or folder)


def test_own_data_sets(tmp_path: Path) -> None:
    own = {"max_length": 16, "cache": False}
    path = write_json_lines(tmp_path / "a.jsonl", lines(["b", "a", "c"] * 3))
    assert text_task("x", path, tokenizer(), **own).support.labels.tolist() == [1, 0, 2] * 3
    task = text_task("x", path, tokenizer(), classes=["c", "b", "a"], query_data=path, **own)
    assert task.support.labels.tolist() == task.query.labels.tolist() == [1, 2, 0] * 3
    for options, message in (
        ({"classes": ["a", "b"]}, "the label 'c', which is none of the classes a, b"),
        ({"value_range": (0, 1)}, "is no regression: could not convert string to float: 'b'"),
        ({"value_range": (1, 1)}, "give a smaller and a larger number"),
        ({"classes": ["a"]}, "a task needs at least two"),
    ):
        with pytest.raises(ValueError, match=message):
            text_task("x", path, tokenizer(), **own, **options)
    splits = [{**row, "split": s} for s in ("train", "dev") for row in lines([0, 1])]
    path = write_json_lines(tmp_path / "b.jsonl", splits)
    task = text_task("x", path, tokenizer(), rows="train", query_rows="dev", **own)
    assert len(task.support.tokens) == len(task.query.tokens) == 2


# ---------------------------------------------------------------- results


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from fastmaml.integrations.transformers import sequence_classifier

    folder = save_model(tmp_path_factory.mktemp("model"))
    return sequence_classifier(str(folder), 3, dropout=0.0).double()


def by_hand(logits: Tensor, task: SimpleNamespace) -> tuple[float, float | None]:
    """Loss and accuracy of the query set."""
    count = int(task.query_classes)
    if count == 1:
        return F.mse_loss(logits[:, 0], task.query_values.double()).item(), None
    own = logits[:, :count]
    right = (own.argmax(1) == task.query_labels).double().mean().item()
    return F.cross_entropy(own, task.query_labels).item(), right


def test_results_by_name(folder: Path, model: Any) -> None:
    """Without inner steps, the results are those of the model itself."""
    source = read("mnli,rte,stsb", folder, sampling="equal", tasks=6)
    start = source.state_dict()
    maml = fm.MAML(model, lr=0.1, steps=1, loss=fm.losses.classification)
    found = evaluate(maml, iter(source), 12, 0)
    source.load_state_dict(start)
    losses: dict[str, list[float]] = {}
    rights: dict[str, list[float]] = {}
    for episodes in islice(source, 2):
        for i, name in enumerate(episodes.names):
            inputs = {k: v[i] for k, v in episodes.query.inputs.items()}
            targets = {f"query_{k}": v[i] for k, v in episodes.query.targets.items()}
            with torch.no_grad():
                loss, right = by_hand(model(**inputs).logits, SimpleNamespace(**targets))
            losses.setdefault(name, []).append(loss)
            rights.setdefault(name, []).extend([] if right is None else [right])
    assert list(found.by_name) == ["mnli", "rte", "stsb"]
    assert [found.by_name[n].episodes for n in found.by_name] == [4, 4, 4]
    assert [found.by_name[n].chance for n in found.by_name] == [pytest.approx(1 / 3), 0.5, None]
    assert found.by_name["stsb"].metric == "loss"
    assert found.by_name["stsb"].means[0] == pytest.approx(sum(losses["stsb"]) / 4, rel=1e-9)
    for name in ("mnli", "rte"):
        assert found.by_name[name].means[0] == pytest.approx(sum(rights[name]) / 4, rel=1e-6)
    assert (found.metric, found.episodes) == ("accuracy", 8)
    assert found.means[0] == pytest.approx(sum(rights["mnli"] + rights["rte"]) / 8, rel=1e-6)
    assert found.chance == pytest.approx(5 / 12)
    assert found.as_dict()["by_name"]["stsb"]["loss"] == found.by_name["stsb"].means[-1]


@pytest.mark.slow
def test_a_mixture_meta_trains(folder: Path, model: Any) -> None:
    """Tasks with 2 and 3 classes and a regression in one meta-step, each with its own loss."""
    episodes = read("mnli,rte,stsb", folder, sampling="equal", tasks=3).sample()
    maml = fm.MAML(model, lr=0.1, steps=1, loss=fm.losses.classification, head=fm.heads.Zero())
    out = maml(episodes)
    out.loss.backward()
    assert out.losses.shape == (3,)
    assert out.accuracies.isnan().tolist() == [name == "stsb" for name in episodes.names]
    together = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert together
    model.zero_grad()
    for task in episodes:
        alone = maml(task)
        assert alone.loss.item() == pytest.approx(
            out.losses[episodes.names.index(task.names[0])].item(), rel=1e-9
        )
        (alone.loss / 3).backward()
    for a, p in zip(together, (p for p in model.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-9, atol=1e-12)
    model.zero_grad()


# ---------------------------------------------------------------- real data


@pytest.mark.slow
def test_real_glue() -> None:
    data = data_beside("glue/MNLI.sub10k.train.jsonl.gz", "glue/STS-B.dev.jsonl.gz")
    from fastmaml.integrations.transformers import tokenizer as load_tokenizer

    own = load_tokenizer(mini_lm())
    names = ["cola", "mrpc", "mnli", "stsb"]
    source = glue(names, own, data=data, query_from="dev", support=6, query=32, cache=False)
    assert source.names == tuple(names)
    assert dict(zip(names, source._classes.tolist(), strict=True)) == {
        name: len(TASKS[name]) or 1 for name in names
    }
    values = source._values[source._values > 0]
    assert 0 < values.min() < values.max() == 1
    episodes = source.sample()
    assert episodes.query.inputs["input_ids"].shape[:2] == (4, 32)
    assert episodes.query.inputs["input_ids"].shape[2] <= 128
