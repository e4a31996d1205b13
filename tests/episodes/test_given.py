"""Support and query sets that someone else drew: each as it is, once a pass, told apart by name."""

from __future__ import annotations

import importlib
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language import save_model, tokenizer, write_json_lines
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.episodes import GivenTask, GivenTasks, NamedEpisodes, given
from fastmaml.training.evaluation import evaluate

SMALL: dict[str, Any] = {"max_length": 16, "cache": False}
VERDICTS = ["entailment", "neutral", "contradiction"]


def rows(first: int, labels: list[Any], words: int = 1) -> list[dict[str, Any]]:
    """The first word is the row's number, from `first` on."""
    return [{"text": " ".join([f"w{first + i}"] * words), "label": y} for i, y in enumerate(labels)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three draws of one task, another with three classes, and a regression."""
    for draw in range(3):
        content = rows(4 * draw, ["no", "yes", "yes", "no"])
        write_json_lines(tmp_path / f"cola_train_{draw}.json", content)
    write_json_lines(tmp_path / "cola_eval.json", rows(20, ["yes", "yes", "yes", "no", "yes"], 5))
    write_json_lines(tmp_path / "cb_train.jsonl", rows(30, [*VERDICTS, "neutral"]))
    write_json_lines(tmp_path / "cb_eval.jsonl", rows(36, ["neutral"] * 3, 12))
    write_json_lines(tmp_path / "score_train.jsonl", rows(40, [0.0, 2.5, 5.0, 1.0]))
    write_json_lines(tmp_path / "score_eval.jsonl", rows(46, [5.0, 4.0, 1.0]))
    return tmp_path


def tasks(folder: Path) -> list[GivenTask]:
    draws = [
        GivenTask("cola", folder / f"cola_train_{draw}.json", folder / "cola_eval.json")
        for draw in range(3)
    ]
    return [
        *draws[:2],
        GivenTask("cb", folder / "cb_train.jsonl", folder / "cb_eval.jsonl", classes=VERDICTS),
        GivenTask(
            "score", folder / "score_train.jsonl", folder / "score_eval.jsonl", value_range=(0, 5)
        ),
        draws[2],
    ]


def source(folder: Path, **more: Any) -> GivenTasks:
    return given(tasks(folder), tokenizer(), **SMALL | more)


def numbers(batch: fm.Batch) -> list[list[int]]:
    """Which rows these are: after [CLS]; token 4 is w0."""
    found: list[list[int]] = (batch.inputs["input_ids"][..., 1] - 4).tolist()
    return found


def seen(episodes: NamedEpisodes) -> tuple[Any, ...]:
    return episodes.names, numbers(episodes.support), numbers(episodes.query)


# ---------------------------------------------------------------- what is handed out


def test_sets_are_as_they_were_given(folder: Path) -> None:
    """Nothing is drawn, balanced or left out, and every row has its label."""
    found = list(source(folder).once())
    assert [e.names for e in found] == [("cola",)] * 3 + [("cb",), ("score",)]
    for draw, episodes in enumerate(found[:3]):
        assert numbers(episodes.support) == [list(range(4 * draw, 4 * draw + 4))]
        assert numbers(episodes.query) == [list(range(20, 25))]
        assert episodes.support.targets["labels"].tolist() == [[0, 1, 1, 0]]
        assert episodes.query.targets["labels"].tolist() == [[1, 1, 1, 0, 1]]
        assert episodes.query.targets["classes"].tolist() == [[2]]
    cb, score = found[3:]
    assert cb.support.targets["labels"].tolist() == [[0, 1, 2, 1]]
    assert cb.query.targets["labels"].tolist() == [[1, 1, 1]]
    assert score.support.targets["values"].tolist() == [[0.0, 0.5, 1.0, pytest.approx(0.2)]]
    assert score.query.targets["values"].tolist() == [[1.0, pytest.approx(0.8), pytest.approx(0.2)]]
    assert score.query.targets["classes"].tolist() == [[1]]
    assert score.query.targets["labels"].tolist() == [[0, 0, 0]]
    kinds = {name: x.dtype for name, x in score.query.targets.items()}
    assert kinds == {"labels": torch.int64, "values": torch.float32, "classes": torch.int64}
    for episodes in found:
        assert set(episodes.query.inputs) == {"input_ids", "attention_mask", "token_type_ids"}


@pytest.mark.parametrize(("most", "sizes"), [(1, [1] * 5), (2, [2, 1, 2]), (9, [3, 2])])
def test_only_tasks_of_equal_sizes_share_a_meta_batch(
    folder: Path, most: int, sizes: list[int]
) -> None:
    found = list(source(folder, tasks_per_batch=most).once())
    assert [len(e) for e in found] == sizes
    alone = {str(seen(e)) for e in source(folder).once()}
    assert {str(seen(one)) for e in found for one in e} == alone
    mixed = next(e for e in found if "score" in e.names)
    if most > 1:
        assert mixed.names == ("cb", "score")
        assert mixed.query.targets["classes"].tolist() == [[3], [1]]


def test_meta_batches_of_tasks_of_equal_sizes_have_one_shape(folder: Path) -> None:
    """A meta-step is planned and recorded once a shape; support sets are not padded to queries."""
    shapes = {
        e.names[0]: (e.support.inputs["input_ids"].shape, e.query.inputs["input_ids"].shape)
        for e in source(folder).once()
    }
    assert shapes["cola"] == ((1, 4, 8), (1, 5, 8))
    assert shapes["cb"] == shapes["score"] == ((1, 4, 8), (1, 3, 16))


def test_every_file_is_read_and_tokenised_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("fastmaml.episodes.given")
    counts = {"read_table": 0, "tokenised": 0}
    for name in counts:
        original = getattr(module, name)

        def counted(*args: Any, _name: str = name, _of: Any = original, **kwargs: Any) -> Any:
            counts[_name] += 1
            return _of(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)
    source(folder)
    assert counts == {"read_table": 8, "tokenised": 8}


def test_rows_and_columns_and_data_sets(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    content = [
        {"a": f"w{i}", "b": "w50", "text": "w59", "y": i % 2, "split": "train" if i < 4 else "dev"}
        for i in range(7)
    ]
    path = write_json_lines(folder / "one.jsonl", content)
    both = datasets.DatasetDict(
        {
            s: datasets.Dataset.from_list([r for r in content if r["split"] == s])
            for s in ("train", "dev")
        }
    )
    how: dict[str, Any] = {"text": ("a", "b"), "label": "y"}
    kinds = (
        GivenTask("x", path, path, rows="train", query_rows="dev", **how),
        GivenTask("x", both, both, rows="train", query_rows="dev", **how),
        GivenTask("x", both["train"], both["dev"], **how),
    )
    found = list(given(kinds, tokenizer(), **SMALL).once())
    assert len(found) == 3
    for episodes in found:
        assert seen(episodes) == (("x",), [[0, 1, 2, 3]], [[4, 5, 6]])
        assert episodes.query.inputs["token_type_ids"].any()


# ---------------------------------------------------------------- passes and resuming


def test_the_endless_stream_is_pass_after_pass(folder: Path) -> None:
    stream = source(folder, tasks_per_batch=2)
    once = [str(seen(e)) for e in stream.once()]
    endless = [str(seen(e)) for e in islice(stream, 7)]
    assert endless == [*once, *once, once[0]]
    assert [str(seen(e)) for e in stream.once()] == once  # it stays where it is
    assert str(seen(stream.sample())) == once[1]
    assert len(stream) == len(stream.names) == 5


def test_every_pass_has_an_order_of_its_own(folder: Path) -> None:
    stream = source(folder, tasks_per_batch=2, shuffle=True, seed=3)
    passes = []
    for _ in range(12):
        found = list(islice(stream, 3))
        passes.append(str([seen(e) for e in found]))
        together = sorted(str(seen(one)) for e in found for one in e)
        assert together == sorted(str(seen(e)) for e in source(folder).once())
    assert len(set(passes)) > 3
    again = source(folder, tasks_per_batch=2, shuffle=True, seed=3)
    assert str([seen(e) for e in islice(again, 3)]) == passes[0]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("after", range(8))
def test_a_resumed_stream_continues(folder: Path, shuffle: bool, after: int) -> None:
    stream = source(folder, tasks_per_batch=2, shuffle=shuffle)
    for _ in range(after):
        stream.sample()
    state = {name: x.clone() for name, x in stream.state_dict().items()}
    ahead = [str(seen(e)) for e in islice(stream, 9)]
    resumed = source(folder, tasks_per_batch=2, shuffle=shuffle, seed=77)
    resumed.sample()
    resumed.load_state_dict(state)
    assert [str(seen(e)) for e in islice(resumed, 9)] == ahead


def test_states_of_others_are_refused(folder: Path) -> None:
    stream = source(folder)
    for _ in range(5):
        stream.sample()
    with pytest.raises(
        ValueError, match="after 5 meta-batches of a pass, and these 5 tasks make 2"
    ):
        source(folder, tasks_per_batch=9).load_state_dict(stream.state_dict())
    with pytest.raises(ValueError, match="needs 'generator' and 'position'"):
        stream.load_state_dict({"generator": stream.generator.get_state()})
    with pytest.raises(ValueError, match="no state of an episode source"):
        stream.load_state_dict({"position": torch.tensor(1)})


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"query": "cola_train_0.json"},
            r"task 1 \('new'\): support and query are both .*judged on",
        ),
        ({"query": "cb_eval.jsonl"}, r"task 1 \('new'\): .*cb_eval.jsonl has the label 'neutral'"),
        ({"text": "words"}, r"task 1 \('new'\): cannot take text=\['words'\]"),
        ({"value_range": (0, 1)}, r"task 1 \('new'\): .* is no regression"),
        (
            {"name": "cola", "classes": ["no", "yes", "perhaps"]},
            "tasks 0 and 1 are both called 'co",
        ),
        ({"name": "cola", "classes": ["yes", "no"]}, "one has the classes no, yes and the other t"),
    ],
)
def test_impossible_tasks_are_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    names = {"support": "cola_train_0.json", "query": "cola_eval.json"}
    options = {"name": "new"} | names | change
    places = {name: folder / options.pop(name) for name in names}
    with pytest.raises(ValueError, match=message):
        given([tasks(folder)[0], GivenTask(**places, **options)], tokenizer(), **SMALL)


def test_draws_in_which_other_classes_occur_are_refused(folder: Path) -> None:
    """Class 0 would be "no" in the one and "perhaps" in the other."""
    other = write_json_lines(folder / "other.jsonl", rows(0, ["perhaps", "yes"]))
    query = write_json_lines(folder / "query.jsonl", rows(9, ["yes"]))
    both = [GivenTask("x", folder / "cola_train_0.json", query), GivenTask("x", other, query)]
    with pytest.raises(
        ValueError, match="the classes no, yes and the other the classes perhaps, yes"
    ):
        given(both, tokenizer(), **SMALL)
    every = ["no", "perhaps", "yes"]
    both = [GivenTask(x.name, x.support, x.query, classes=every) for x in both]
    found = [e.support.targets["labels"].tolist() for e in given(both, tokenizer(), **SMALL).once()]
    assert found == [[[0, 2, 2, 0]], [[1, 2]]]
    ranges = [
        GivenTask("x", folder / "score_train.jsonl", folder / "score_eval.jsonl", value_range=r)
        for r in ((0, 5), (0, 1))
    ]
    with pytest.raises(ValueError, match=r"one has value_range=\(0, 5\) and the other value_range"):
        given(ranges, tokenizer(), **SMALL)


def test_what_is_no_list_of_tasks_is_refused(folder: Path) -> None:
    for wrong, message in (
        ([], "tasks is empty: give a list of GivenTask"),
        ([("x", "a", "b")], "tasks holds a tuple"),
    ):
        with pytest.raises(ValueError, match=message):
            given(wrong, tokenizer())
    with pytest.raises(ValueError, match="tasks_per_batch=0: give a positive integer"):
        source(folder, tasks_per_batch=0)


# ---------------------------------------------------------------- results


def test_results_by_name(folder: Path) -> None:
    """Those of an adapted copy of the model, a task at a time, for draws of one name together."""
    from fastmaml.integrations.transformers import sequence_classifier

    model = sequence_classifier(str(save_model(folder / "model")), 3, dropout=0.0).double()
    maml = fm.MAML(model, lr=0.5, steps=2, loss=fm.losses.classification, executor="eager")
    test = source(folder, tasks_per_batch=2)
    found = evaluate(maml, test.once(), len(test), 2)
    rights: dict[str, list[float]] = {"cola": [], "cb": []}
    for episodes in source(folder).once():
        support, query = (b.map(lambda x: x[0]) for b in (episodes.support, episodes.query))
        logits = maml.adapt_to(support)(**query.inputs).logits.detach()
        if episodes.names == ("score",):
            loss = F.mse_loss(logits[:, 0], query.targets["values"].double()).item()
            continue
        own = logits[:, : int(query.targets["classes"])].argmax(1) == query.targets["labels"]
        rights[episodes.names[0]].append(own.double().mean().item())
    assert {name: one.episodes for name, one in found.by_name.items()} == {
        **{"cola": 3, "cb": 1, "score": 1}
    }
    for name, shares in rights.items():
        assert found.by_name[name].means[-1] == pytest.approx(sum(shares) / len(shares), rel=1e-6)
    assert found.by_name["score"].means[-1] == pytest.approx(loss, rel=1e-9)
    with pytest.raises(ValueError, match="ended after 5 of 6"):
        evaluate(maml, test.once(), 6, 0)
