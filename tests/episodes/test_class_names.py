"""Which class a label means: never another one than its rows say, whatever file they are in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from tiny_language import tokenizer, write_json_lines

from fastmaml.episodes import TextTask, glue, text, text_task
from fastmaml.episodes.class_names import ClassNames, name_of, ordered
from fastmaml.episodes.tables import read_table

SMALL: dict[str, Any] = {"max_length": 16, "cache": False}
VERDICT = ["entailment", "neutral", "contradiction"]


def file(path: Path, labels: list[Any]) -> Path:
    return write_json_lines(path, [{"text": f"w{i}", "label": y} for i, y in enumerate(labels)])


def task(folder: Path, labels: list[Any], query: list[Any] | None = None, **more: Any) -> TextTask:
    query_data = None if query is None else file(folder / "query.jsonl", query)
    data = file(folder / "support.jsonl", labels)
    return text_task("x", data, tokenizer(), query_data=query_data, **SMALL | more)


def numbers(folder: Path, labels: list[Any], **more: Any) -> list[int]:
    found: list[int] = task(folder, labels, **more).support.labels.tolist()
    return found


# ---------------------------------------------------------------- no number is a class's by chance


@pytest.mark.parametrize("classes", [None, ["2", "4", "5"], [2, 4, 5], [2.0, 4.0, 5.0]])
def test_a_number_that_is_a_name_is_no_class_number(tmp_path: Path, classes: Any) -> None:
    """Five stars, of which three occur in the support set: a row of one star is none of them."""
    known = [5, 2, 4, "2"]
    assert numbers(tmp_path, known, classes=classes) == [2, 0, 1, 0]
    found = task(tmp_path, known, ["4", "5"], classes=classes)
    assert found.query is not None
    assert found.query.labels.tolist() == [1, 2]
    for label in (1, "1", 0, "0", True, "01", 4.5):
        message = rf"query.jsonl has the label {label!r}, which is none of the classes 2, 4, 5"
        with pytest.raises(ValueError, match=message):
            task(tmp_path, known, [label], classes=classes)


def test_the_support_data_say_what_the_classes_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"those that occur in .*support.jsonl\..*classes=, in"):
        task(tmp_path, ["b", "a"], ["a", "c"])
    with pytest.raises(ValueError, match="has the label 0, which is none of the classes a, b"):
        task(tmp_path, ["b", "a"], [0, 1])


def test_given_names_or_their_numbers(tmp_path: Path) -> None:
    names = ["neutral", "contradiction", "entailment"]
    for labels in (names, [1, 2, 0], ["1", "2", "0"], [1.0, 2.0, 0.0], ["1.0", "2.0", "0.0"]):
        assert numbers(tmp_path, labels, classes=VERDICT) == [1, 2, 0]
    found = task(tmp_path, names, [2, 0], classes=VERDICT)  # a file of the hub for the test
    assert found.query is not None
    assert found.query.labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["neutral", 2], "has the label 'neutral', the name of a class, and the label 2, the numb"),
        ([0, 1, "entailment"], r"names in all rows, or the numbers in all"),
        ([0, 3], "the label 3, which is none of .*and no number from 0 to 2 of one"),
        ([0, -1], "the label -1, which is none of"),
        ([0, 1.5], "the label 1.5, which is none of"),
        (["0", "01"], "the label '01', which is none of"),
        ([False, True], "the label False, which is none of"),
        (["Neutral"], "the label 'Neutral', which is none of"),
    ],
)
def test_what_is_no_class_of_names(tmp_path: Path, labels: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(tmp_path, labels, classes=VERDICT)


def test_names_of_which_some_are_numbers(tmp_path: Path) -> None:
    classes = ["bad", "1", "good"]
    assert numbers(tmp_path, [1, "good", "bad"], classes=classes) == [1, 2, 0]
    for label in (0, 2, "2"):
        with pytest.raises(ValueError, match=r"as some look like numbers, no label is read as"):
            task(tmp_path, ["bad", label], classes=classes)


# ---------------------------------------------------------------- how labels are written


@pytest.mark.parametrize("label", [1, 1.0, "1", "1.0"])
def test_whole_numbers_are_one_class_however_written(label: Any) -> None:
    assert name_of(label) == "1"


def test_other_labels_keep_their_names() -> None:
    labels = [True, "true", "01", "1.00", 0.5, "a.0", "-2.0", -2]
    expected = ["True", "true", "01", "1.00", "0.5", "a.0", "-2", "-2"]
    assert [name_of(x) for x in labels] == expected


def test_a_column_that_pandas_wrote(tmp_path: Path) -> None:
    """Whole numbers have a point where a row has no label; they are ordered as numbers still."""
    (tmp_path / "a.csv").write_text("text,label\nw1,10.0\nw2,2.0\nw3,\nw4,2.0\n")
    query = file(tmp_path / "b.jsonl", [2, 10])
    found = text_task("x", tmp_path / "a.csv", tokenizer(), query_data=query, **SMALL)
    assert found.support.labels.tolist() == [1, 0, 0]
    assert found.query is not None
    assert found.query.labels.tolist() == [0, 1]


def test_no_number_is_no_label(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": "w1", "label": float("nan")}, {"text": "w2", "label": 0.0}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_table(path).labels == [0.0]


@pytest.mark.parametrize(
    ("labels", "more", "message"),
    [
        ([True, 0, 1], {}, "has the labels True and 1: write either truth values or"),
        (["1", "1.0", "2"], {}, "has the labels '1' and '1.0': if they are one class"),
        ([["a"], ["b"]], {}, r"has the label \['.'\], a list: a label is a text or a number"),
        ([0.5, 1.0, 2.0], {}, "numbers such as 0.5 as labels: give value_range="),
        (["0.5", "1.0"], {}, "numbers such as 0.5 as labels: give value_range="),
        (["a", "b"], {"classes": ["a", "b", "a"]}, "names the class 'a' twice"),
        ([1, 2], {"classes": [1, 2, "2.0"]}, "names the class '2' twice"),
        (["a", "b"], {"classes": "ab"}, "classes='ab' is one text: give a list"),
        ([1, 2], {"classes": [1, 2], "value_range": (1, 2)}, "leave one of them out"),
        ([1.0, "inf"], {"value_range": (0, 1)}, "has the value 'inf': a regression needs numbers"),
        ([1.0, ["2"]], {"value_range": (0, 1)}, "is no regression"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(
    tmp_path: Path, labels: list[Any], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        task(tmp_path, labels, **more)


def test_truth_values_and_decimals_may_be_classes(tmp_path: Path) -> None:
    assert numbers(tmp_path, [True, False, True]) == [1, 0, 1]
    assert numbers(tmp_path, [True, False], classes=[True, False]) == [0, 1]
    assert numbers(tmp_path, [1.0, 0.5, "1.5"], classes=[0.5, 1, 1.5]) == [1, 0, 2]
    assert numbers(tmp_path, ["+1", "-1"]) == [0, 1]


def test_many_classes_are_not_all_listed() -> None:
    names = ClassNames.given([f"class {i}" for i in range(30)])
    with pytest.raises(ValueError, match=r"class 19, \.\.\., and no number from 0 to 29") as raised:
        names.numbers([30], "a file")
    assert "class 20" not in str(raised.value)


def test_the_order_does_not_hang_on_the_process() -> None:
    """As that of a set of texts does, among names that are the same number."""
    code = (
        "from fastmaml.episodes.class_names import ordered; print(ordered(['1', '01', '001', '0']))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": str(seed), "PATH": ""},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(3)
    }
    assert printed == {"['0', '001', '01', '1']\n"}
    assert ordered(["b", "10", "9", "b"]) == ["10", "9", "b"]


# ---------------------------------------------------------------- the other readers of labels


def test_few_shot_classes_of_numbers(tmp_path: Path) -> None:
    """A class is held out or left out under whichever form of its number."""
    rows = [{"text": f"w{c} w{20 + i}", "label": c} for c in range(6) for i in range(4)]
    data = write_json_lines(tmp_path / "a.jsonl", rows)
    how = {"ways": 2, "shots": 1, "queries": 1, "tasks": 1, **SMALL}
    for leave_out in ([0, 5], ["0", "5"], [0.0, "5.0"]):
        assert text(data, tokenizer(), **how, leave_out=leave_out).classes == 4
    assert text(data, tokenizer(), **how, leave_out="0").classes == 5
    held = text(data, tokenizer(), **how, split="test", test_classes=[1.0, "2", 3])
    seen = {
        int(x) - 4
        for _ in range(20)
        for x in held.sample().support.inputs["input_ids"][..., 1].flatten()
    }
    assert seen == {1, 2, 3}


def test_one_label_that_is_left_out_is_not_read_by_letters(tmp_path: Path) -> None:
    rows = [{"text": "w1", "label": c} for c in ("a", "b", "oos") for _ in range(4)]
    data = write_json_lines(tmp_path / "a.jsonl", rows)
    how = {"ways": 2, "shots": 1, "queries": 1, "tasks": 1, **SMALL}
    assert text(data, tokenizer(), **how, leave_out="oos").classes == 2


def test_glue_with_names_beside_numbers(tmp_path: Path) -> None:
    rows = [
        {"text_a": "w1", "text_b": "w2", "label": y} for y in ("entailment", "not_entailment", 1)
    ]
    write_json_lines(tmp_path / "RTE.train.jsonl", rows * 4)
    with pytest.raises(ValueError, match=r"RTE.train.jsonl has the label .*the number of one of"):
        glue("rte", tokenizer(), data=tmp_path, support=2, query=2, tasks=1, **SMALL)
