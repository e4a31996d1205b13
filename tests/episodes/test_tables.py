"""Files of labelled texts as people have them: every row is read as it is, or refused with why."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from tiny_language import tokenizer

from fastmaml.episodes.glue import glue
from fastmaml.episodes.tables import is_hub_name, read_table

MARK = b"\xef\xbb\xbf"
ROWS = [{"text": "hello, you", "label": "a"}, {"text": 'it said "bye', "label": "b"}]
CSV = 'text,label\r\n"hello, you",a\r\n"it said ""bye",b\r\n'
TSV = 'text\tlabel\nhello, you\ta\nit said "bye\tb\n'
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize("mark", [b"", MARK], ids=["", "mark"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", CSV),
        ("A.CSV", CSV.replace("\r\n", "\r\n\r\n")),  # empty lines
        ("a.csv", CSV.rstrip()),
        ("a.tsv", TSV),
        ("a.TSV.GZ", TSV),
        ("a.jsonl", LINES),
        ("a.JSON", LINES),
        ("a.json", json.dumps(ROWS)),
        ("a.json.gz", "\n" + json.dumps(ROWS, indent=1)),
    ],
)
def test_every_row_is_read(tmp_path: Path, name: str, content: str, mark: bytes) -> None:
    path, data = tmp_path / name, mark + content.encode()
    path.write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    table = read_table(path)
    assert table.texts == [row["text"] for row in ROWS]
    assert table.labels == [row["label"] for row in ROWS]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "text,label\nfirst,a\nhello, you,a\n",
            r"line 3 has 3 values, and the header names 2 \(text, label\); put texts with commas",
        ),
        ("a.csv", "text,label\nhello\nbye,b\n", r"line 2 has 1 values, .* 2 \(text, label\)\."),
        ("a.csv", 'text,label\n"one\nor two",a,b\n', "line 3 has 3 values"),
        ("a.csv", 'text,label\n"hi" she said,a\n', "line 2: ',' expected after '\"'"),
        ("a.csv", 'text,label\n"hi she said,a\n', "line 2: unexpected end of data"),
        ("a.csv", "text;label\nhello;a\n", "'text;label', is separated by semicolons, and a .csv"),
        ("a.csv", "text\tlabel\nhello\ta\n", "has commas: save it with these, or call it .tsv"),
        ("a.tsv", "text,label\nhello,a\n", "has tabs: save it with these, or call it .csv"),
        ("a.csv", "text,label,text\nhello,a,b\n", "names a column twice: text, label, text"),
        ("a.tsv", "text\tlabel\nhello\tyou\ta\n", r"line 2 has 3 values, .* 2 \(text, label\)\."),
        ("a.json", '[{"text": "a", "label": 1}, 2]', "entry 2 is no object"),
        ("a.jsonl", '[\n{"text": "a", "label": 1}\n]', "line 1 is no JSON .*one object a line"),
        ("a.json", '{\n"text": "a"\n}', "line 1 is no JSON .*in a .json an array of objects"),
    ],
)
def test_what_would_be_misread_is_refused(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_table(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)


def test_names_in_capitals_are_files() -> None:
    assert is_hub_name("owner/name")
    for name in ("TEXTS.CSV", "texts.Jsonl.GZ", "owner/texts.TSV"):
        assert not is_hub_name(name)


def test_files_of_glue_with_tabs(tmp_path: Path) -> None:
    """Whose quotation marks are parts of the texts."""
    rows = "".join(f'"w{i} it" w{i}" said\t{i % 2}\n' for i in range(12))
    (tmp_path / "SST-2.train.TSV").write_text("sentence\tlabel\n" + rows)
    how = {"support": 4, "query": 4, "tasks": 1, "max_length": 16, "cache": False}
    episodes = glue("sst2", tokenizer(), data=tmp_path, **how)
    assert len(episodes.sample().support.inputs["input_ids"][0]) == 4


@pytest.mark.parametrize("name", ["sentence1", "premise", "question1", "text_a"])
def test_the_first_of_a_pair_may_stand_alone(tmp_path: Path, name: str) -> None:
    """As in data sets of single texts that were written in the form of pairs."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({name: "alone", "note": "x", "label": 1}) + "\n")
    table = read_table(path)
    assert (table.texts, table.pairs) == (["alone"], None)


def test_a_pair_goes_before_a_text_alone(tmp_path: Path) -> None:
    row = {"premise": "a", "sentence1": "b", "sentence2": "c", "text": "d", "label": 1}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    table = read_table(tmp_path / "a.jsonl")
    assert (table.texts, table.pairs) == (["b"], ["c"])


def test_which_names_were_looked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("utterances,y\nhello,1\n")
    for given, said, unsaid in (
        ({}, ["text_a with text_b, ", "utterance, query", "premise", "label, labels, intent"], []),
        ({"text": "utterances"}, ["label, labels, intent"], ["text_a"]),
        ({"label": "y"}, ["text_a with text_b"], ["intent"]),
    ):
        with pytest.raises(ValueError, match="whose columns are utterances, y") as raised:
            read_table(tmp_path / "a.csv", **given)
        assert all(part in str(raised.value) for part in said)
        assert not any(part in str(raised.value) for part in unsaid)


def test_splits_with_and_without_pairs_are_refused() -> None:
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_list([{"text_a": "a", "text_b": "b", "label": 0}])
    other = datasets.Dataset.from_list([{"text_a": "a", "label": 0}])
    both = datasets.DatasetDict(train=one, test=other)
    with pytest.raises(ValueError, match="pairs of texts in some splits only"):
        read_table(both)
    assert read_table(both, text="text_a").texts == ["a", "a"]
