"""Few-shot episodes of texts: what is read, tokenised, kept, held out and drawn."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import OrderedDict
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from places import data_beside
from tiny_language import mini_lm, tokenizer, write_json_lines

from fastmaml.episodes import Batch, Episodes, EpisodeSampler, text
from fastmaml.episodes.class_names import ordered
from fastmaml.episodes.tables import read_table

CLASSES, EACH = 12, 7


def rows(split: str | None = None) -> list[dict[str, Any]]:
    """Text i of class c says "wc wi ..." and is i + 3 tokens long."""
    found = []
    for i in range(EACH):
        for c in range(CLASSES):
            words = " ".join([f"w{c}", *[f"w{20 + i}"] * i])
            found.append({"text": words, "label": f"class {c}"})
    return [row | {"split": split} for row in found] if split else found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_json_lines(tmp_path_factory.mktemp("data") / "texts.jsonl.gz", rows())


def small(data: Any, **changes: Any) -> EpisodeSampler:
    given = {"ways": 3, "shots": 2, "queries": 3, "tasks": 4, "max_length": 16, "cache": False}
    return text(data, tokenizer(), **given | changes)


def same(a: Episodes, b: Episodes) -> bool:
    left, right = (x.support.tensors() + x.query.tensors() for x in (a, b))
    return all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


def classes_in(sampler: EpisodeSampler) -> set[int]:
    """The classes that 20 meta-batches show: the first word says which."""
    return {
        int(x) - 4
        for episodes in islice(sampler, 20)
        for x in episodes.support.inputs["input_ids"][..., 1].unique()
    }


# ---------------------------------------------------------------- what is drawn


def test_episodes_are_texts_of_the_labelled_classes(file: Path) -> None:
    for episodes in islice(small(file), 20):
        for batch, each in ((episodes.support, 2), (episodes.query, 3)):
            ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
            assert set(batch.inputs) == {"input_ids", "attention_mask", "token_type_ids"}
            assert ids.shape[:2] == batch.targets.shape == (4, 3 * each)
            assert ids.shape[2] == episodes.query.inputs["input_ids"].shape[2] in (8, 16)
            assert ids.dtype == mask.dtype == batch.targets.dtype == torch.int64
            assert torch.equal(mask, (ids != 0).long())
            assert (ids[..., 0] == 2).all()
            for task, labels in zip(ids[..., 1] - 4, batch.targets, strict=True):
                pairs = set(zip(labels.tolist(), task.tolist(), strict=True))
                assert sorted(label for label, _ in pairs) == [0, 1, 2]
                assert len({c for _, c in pairs}) == 3
        for task in range(4):  # no text is in support and query
            seen = [
                (int(one[1]), int(one.count_nonzero()))
                for part in (episodes.support, episodes.query)
                for one in part.inputs["input_ids"][task]
            ]
            assert len(set(seen)) == len(seen) == 15


def test_what_a_tokenizer_returns_is_a_batch() -> None:
    words = tokenizer()(["w1 w2", "w3"], padding=True, return_tensors="pt")
    assert type(words) is not dict
    batch = Batch(words, torch.tensor([0, 1]))
    assert type(batch.inputs) is dict
    assert batch.inputs["input_ids"].tolist() == [[2, 5, 6, 3], [2, 7, 3, 0]]
    kept = OrderedDict(x=torch.zeros(2))
    assert Batch(kept, kept).targets is kept


def test_a_resumed_stream_continues_bit_for_bit(file: Path) -> None:
    source = small(file, seed=3)
    for _ in range(3):
        source.sample()
    state = {k: v.clone() for k, v in source.state_dict().items()}
    ahead = list(islice(source, 3))
    resumed = small(file, seed=99)
    resumed.load_state_dict(state)
    assert all(same(a, b) for a, b in zip(ahead, resumed, strict=False))
    assert not same(ahead[0], ahead[1])


# ---------------------------------------------------------------- which classes


def test_splits_are_disjoint_and_hang_on_names_and_seed_only(file: Path, tmp_path: Path) -> None:
    held = {"test_classes": 3, "validation_classes": 4}
    seen = {s: classes_in(small(file, split=s, **held)) for s in ("train", "validation", "test")}
    assert [len(seen[s]) for s in ("train", "validation", "test")] == [5, 4, 3]
    assert set().union(*seen.values()) == set(range(CLASSES))
    backwards = write_json_lines(tmp_path / "b.jsonl", reversed(rows()))
    assert classes_in(small(backwards, split="test", **held)) == seen["test"]
    others = [classes_in(small(file, split="test", classes_seed=i, **held)) for i in range(1, 4)]
    assert any(other != seen["test"] for other in others)
    assert classes_in(small(file, split="test", test_classes=5)) > seen["test"]


def test_classes_held_out_by_name(file: Path) -> None:
    held = {"test_classes": ["class 3", "class 5", "class 8"], "validation_classes": 3}
    assert classes_in(small(file, split="test", **held)) == {3, 5, 8}
    train, validation = (classes_in(small(file, split=s, **held)) for s in ("train", "validation"))
    assert (len(train), len(validation)) == (6, 3)
    assert not {3, 5, 8} & (train | validation)
    assert classes_in(small(file, leave_out=["class 0", "none"])) == set(range(1, CLASSES))


def test_classes_are_ordered_as_numbers_or_as_text() -> None:
    assert ordered(["10", "9", "2", "-1"]) == ["-1", "2", "9", "10"]
    assert ordered(["b", "10", "9", "b"]) == ["10", "9", "b"]


# ---------------------------------------------------------------- where texts come from


def spread(folder: Path) -> dict[str, Any]:
    """The same texts in every kind of data."""
    datasets = pytest.importorskip("datasets")
    folder.mkdir()
    found: dict[str, Any] = {}
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, ["label", "text"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows())
        found[name] = str(folder / name)
    table = datasets.Dataset.from_list(rows())
    table.to_parquet(folder / "a.parquet")
    names = [f"class {c}" for c in range(CLASSES)]
    numbered = [row | {"label": names.index(row["label"])} for row in rows()]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    found["dataset"] = table
    found["named"] = datasets.Dataset.from_list(numbered, features=features)
    found["dictionary"] = datasets.DatasetDict(
        train=table.select(range(40)), test=table.select(range(40, len(table)))
    )
    found["json"] = write_json_lines(folder / "a.json", rows())
    return found | {"parquet": folder / "a.parquet"}


def test_every_kind_of_data_gives_the_same_episodes(file: Path, tmp_path: Path) -> None:
    expected = small(file).sample()
    for name, data in spread(tmp_path / "kinds").items():
        assert same(expected, small(data).sample()), name


def test_rows_columns_and_pairs(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    both = write_json_lines(tmp_path / "a.jsonl", [*rows("train"), *rows("test"), *rows("other")])
    assert len(read_table(both)) == 3 * CLASSES * EACH
    assert len(read_table(both, rows="train")) == CLASSES * EACH
    assert len(read_table(both, rows=["train", "test"])) == 2 * CLASSES * EACH
    splits = datasets.DatasetDict(
        {s: datasets.Dataset.from_list(rows()) for s in ("train", "test")}
    )
    assert len(read_table(splits, rows="test")) == CLASSES * EACH
    lines = [
        {"question": "w1", "sentence": "w2 w3", "intent": 1, "note": "x"},
        {"question": "w4", "sentence": "w5", "intent": None, "note": "x"},  # without a label
        {"question": "w6", "sentence": "w7", "intent": 0, "note": "y"},
    ]
    table = read_table(write_json_lines(tmp_path / "b.jsonl", lines))
    assert table.texts == ["w1", "w6"]
    assert table.pairs == ["w2 w3", "w7"]
    assert table.labels == [1, 0]
    table = read_table(tmp_path / "b.jsonl", text=("sentence", "question"), label="note")
    assert table.texts == ["w2 w3", "w5", "w7"]
    assert table.labels == ["x", "x", "y"]
    assert read_table(tmp_path / "b.jsonl", text="sentence").pairs is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nowhere/texts.jsonl"}, "there is no such file"),
        ({"data": Path("nowhere")}, "there is no such file"),
        ({"data": 5}, "data is a int; give a file"),
        ({"rows": "train"}, "the column 'split' of .* has no such column"),
        (
            {"text": "texts"},
            r"cannot take text=\['texts'\] and label='label' from .*texts.jsonl.gz",
        ),
        ({"label": "y"}, "whose columns are text, label"),
        ({"split": "dev"}, "split='dev' is unknown"),
        ({"split": "test"}, "split='test' is empty: hold out classes with test_classes="),
        ({"test_classes": 12}, "split='train' is empty: all 12 classes are held out"),
        ({"test_classes": 13}, "test_classes=13: give names, or a number from 0 to 12"),
        ({"test_classes": ["class 99"]}, "test_classes names 'class 99', which is no class"),
        (
            {"test_classes": ["class 1"], "validation_classes": ["class 1"]},
            "validation_classes names 'class 1', which is .* held out already",
        ),
        ({"shots": 6}, r"has 7 texts of class 'class 0' \(11 more .*shots=6 \+ queries=3"),
        ({"ways": 13}, "ways=13, but the data has 12 classes"),
        ({"max_length": 2}, "max_length=2: give a length from 3 .* to 48"),
        ({"max_length": 64}, "max_length=64: give a length from 3 .* to 48"),
    ],
)
def test_bad_input_is_refused(file: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        small(**{"data": file} | change)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a", "label": 1}\n{"text": ', "line 2 is no JSON"),
        ("[1, 2]\n", "line 1 is no object"),
        ('{"text": 7, "label": 1}\n', "column 'text' of .* holds 7, which is no text"),
        ('{"text": null, "label": 1}\n', "holds None, which is no text"),
        ('{"text": "a", "label": null}\n', "holds no labelled texts"),
        ("", "whose columns are none"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_table(path)
    (tmp_path / "b.jsonl.gz").write_text(content or "x")
    with pytest.raises(ValueError, match=r"b.jsonl.gz cannot be read as a table"):
        read_table(tmp_path / "b.jsonl.gz")
    (tmp_path / "c.txt").write_text(content)
    with pytest.raises(ValueError, match=r"its name ends with '\.txt'"):
        read_table(tmp_path / "c.txt")


def test_what_is_no_tokenizer_is_refused(file: Path) -> None:
    for wrong, message in (
        ("bert-base-uncased", "tokenizer is a str; give the tokenizer itself"),
        (tokenizer(pad_token=None), "has no padding token"),
    ):
        with pytest.raises(ValueError, match=message):
            text(file, wrong, cache=False)


def offline(code: str) -> str:
    """What a fresh interpreter without the hub prints."""
    run = [sys.executable, "-c", f"import os; os.environ['HF_HUB_OFFLINE'] = '1'\n{code}"]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_says_what_to_do() -> None:
    pytest.importorskip("datasets")
    printed = offline("""
from fastmaml.episodes.tables import read_table
try:
    read_table("someone/texts:english")
except ConnectionError as error:
    print(error)
""")
    assert "cannot get 'someone/texts:english' from the Hugging Face hub" in printed
    assert "HF_HUB_OFFLINE unset" in printed


def test_without_the_text_extra() -> None:
    """Files need torch alone; what needs more says which extra has it."""
    printed = offline("""
import sys
sys.modules.update(dict.fromkeys(("datasets", "pyarrow", "transformers", "peft", "tokenizers")))
import tempfile, pathlib
import fastmaml as fm
from fastmaml.episodes.tables import read_table
from fastmaml.integrations.transformers import sequence_classifier, tokenizer
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "a.jsonl").write_text('{"text": "a", "label": 1}')
(folder / "a.parquet").write_text("")
print(read_table(folder / "a.jsonl").texts)
for call in (
    lambda: read_table("owner/texts"),
    lambda: read_table(folder / "a.parquet"),
    lambda: tokenizer("x"),
    lambda: sequence_classifier("x", 2),
):
    try:
        call()
    except ImportError as error:
        print("fastmaml[text]" in str(error))
""")
    assert printed.splitlines() == ["['a']", *["True"] * 4]


# ---------------------------------------------------------------- real data


@pytest.mark.slow
def test_real_intents() -> None:
    folder = data_beside("clinc150.jsonl.gz", "banking77.jsonl.gz")
    from fastmaml.integrations.transformers import tokenizer as load_tokenizer

    own = load_tokenizer(mini_lm())
    common = {"leave_out": ["oos"], "test_classes": 50, "cache": False, "max_length": 48}
    train = text(folder / "clinc150.jsonl.gz", own, **common)
    test = text(folder / "clinc150.jsonl.gz", own, split="test", rows=("test", "val"), **common)
    assert (train.classes, test.classes) == (100, 50)
    assert len(train._order) == 100 * 150
    assert len(test._order) == 50 * 50
    banking = text(folder / "banking77.jsonl.gz", own, cache=False)
    assert banking.classes == 77
    for sampler in (train, test, banking):
        ids = sampler.sample().query.inputs["input_ids"]
        assert (ids[..., 0] == own.cls_token_id).all()
        assert ids.shape[-1] <= 64
    first = own.decode(train.sample().support.inputs["input_ids"][0, 0], skip_special_tokens=True)
    assert len(first.split()) > 1
