"""Episodes of prompts and answers: what is read, what is drawn, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import generating
import pytest
import torch
from tiny_language import write_json_lines

import fastmaml as fm
from fastmaml.episodes.prompts import Example, Prompts
from fastmaml.episodes.rows import Rows, read_rows

pytest.importorskip("transformers", reason="no transformers (fastmaml[text])")
SMALL: dict[str, Any] = {"max_length": generating.LENGTH, "cache": False}


def source(data: Any, **more: Any) -> fm.episodes.Instructions:
    words = more.pop("tokenizer", None) or generating.tokenizer()
    return fm.episodes.instructions(
        data, words, **{"support": 3, "query": 2, "tasks": 2} | SMALL | more
    )


def several(prompt: str, answer: str, count: int = 5) -> list[dict[str, Any]]:
    """Rows that differ in the first word of their prompts."""
    return [{"prompt": f"w{i} {prompt}", "answer": answer} for i in range(count)]


def text_of(ids: list[int]) -> str:
    return " ".join(f"w{i - 4}" if i > 3 else f"<{i}>" for i in ids)


def test_a_text_is_prompt_answer_and_end_and_only_the_answer_is_learned() -> None:
    found = source(
        [{"prompt": f"w1 w{i}", "answer": "w3"} for i in range(3)]
        + [{"prompt": f"w{40 + i}", "answer": "w5 w6"} for i in range(3)]
    )
    batch = found.sample().query
    for ids, mask, labels in zip(
        batch.inputs["input_ids"].flatten(0, 1),
        batch.inputs["attention_mask"].flatten(0, 1),
        batch.targets.flatten(0, 1),
        strict=True,
    ):
        first = ids[1] == 5  # w1
        said = text_of(ids[mask.bool()].tolist())
        assert re.fullmatch(r"<2> w1 w\d w3 <3>" if first else r"<2> w4\d w5 w6 <3>", said)
        assert text_of(labels[labels >= 0].tolist()) == ("w3 <3>" if first else "w5 w6 <3>")
        there = labels >= 0
        assert torch.equal(labels[there], ids[there])
        assert (ids[~mask.bool()] == 0).all()
    assert batch.inputs["input_ids"].shape == (2, 2, 8)


def test_what_is_learned_is_what_generating_sees() -> None:
    """The tokens before the answer are those that the tokenizer makes of the prompt alone."""
    words = generating.tokenizer()
    batch = source(several("w7 w8", "w9"), tokenizer=words).sample().support
    ids = batch.inputs["input_ids"][0, 0].tolist()
    first = int(batch.targets[0, 0].ne(-100).nonzero()[0])
    prompt = words(f"{text_of(ids[1:2])} w7 w8")["input_ids"][:-1]  # without the end of a text
    assert ids[:first] == prompt


def test_an_encoder_reads_the_prompt_and_its_decoder_begins_with_its_token() -> None:
    found = source(several("w2", "w3"), decoder_start=0)
    batch = found.sample().query
    said = text_of(batch.inputs["input_ids"][0, 0].tolist())
    assert re.fullmatch(r"<2> w\d w2 <3>" + " <0>" * 4, said)
    assert text_of(batch.inputs["decoder_input_ids"][0, 0].tolist())[:13] == "<0> <2> w3 <3>"[:13]
    labels = batch.targets[0, 0]
    assert text_of(labels[labels >= 0].tolist()) == "<2> w3 <3>"


def test_support_and_query_share_no_example_and_all_are_drawn() -> None:
    data = [{"prompt": f"w{i}", "answer": "w59"} for i in range(8)]
    found, seen = source(data, support=4, query=4, tasks=1), set()
    for _ in range(20):
        episodes = found.sample()
        own, asked = (
            {int(x) for x in part.inputs["input_ids"][0, :, 1]}
            for part in (episodes.support, episodes.query)
        )
        assert len(own) == len(asked) == 4
        assert not own & asked
        seen.add(frozenset(own))
    assert len(seen) > 10


def test_splits_share_no_task_and_hang_on_names_alone() -> None:
    held: dict[str, Any] = {"validation_tasks": 1, "test_tasks": ["task 2"]}
    data = generating.rows(6)
    names = [set(source(data, split=s, **held).names) for s in ("train", "validation", "test")]
    assert names[2] == {"task 2"}
    assert len(names[0]) == 4
    assert set.union(*names) == {f"task {t}" for t in range(6)}
    again = [set(source(data[::-1], split=s, **held).names) for s in ("train", "validation")]
    assert again == names[:2]
    assert set(source(data, leave_out=["task 1"]).names) == {f"task {t}" for t in (0, 2, 3, 4, 5)}


def test_every_option_of_a_question_and_which_is_right() -> None:
    found = source(generating.rows(2), choose=True, sampling="equal")
    episodes = found.sample()
    targets = episodes.query.targets
    labels = targets["labels"].unflatten(1, (2, 3))
    for task, name in enumerate(episodes.names):
        for question in range(2):
            texts = [text_of(x[x >= 0].tolist()) for x in labels[task, question]]
            third = "" if name == "task 0" else "w5 <3>"
            assert texts == ["w20 w9 <3>", "w21 w9 <3>", third]
            # The prompts of row i hold the word i, and i % 2 decides.
            number = episodes.query.inputs["input_ids"].unflatten(1, (2, 3))[task, question, 0, 2]
            assert targets["right"][task, question] == (number - 4) % 2
    support = episodes.support.targets
    assert support.shape[:2] == (2, 3)


def test_it_goes_on_where_it_stopped() -> None:
    data = generating.rows()
    first, other = source(data, seed=4), source(data, seed=5)
    first.sample()
    state = first.state_dict()
    wanted = first.sample()
    other.load_state_dict(state)
    found = other.sample()
    assert found.names == wanted.names
    for a, b in zip(found.support.tensors(), wanted.support.tensors(), strict=True):
        assert torch.equal(a, b)


def test_query_sets_from_other_rows() -> None:
    data = [
        {"prompt": f"w{i}", "answer": "w9", "split": "train" if i < 5 else "test"}
        for i in range(10)
    ]
    for rows in ("train", None):  # None: all others
        episodes = source(data, rows=rows, query_rows="test", support=5, query=5).sample()
        assert (episodes.support.inputs["input_ids"][..., 1] < 9).all()
        assert (episodes.query.inputs["input_ids"][..., 1] >= 9).all()


def test_files_as_crossfit_and_unified_qa_have_them(tmp_path: Path) -> None:
    (tmp_path / "glue-mrpc").mkdir()
    (tmp_path / "squad").mkdir()
    lines = [{"input": f"w{i}", "output": "w2"} for i in range(5)]
    write_json_lines(tmp_path / "glue-mrpc" / "glue-mrpc_16_100_train.jsonl", lines)
    write_json_lines(tmp_path / "glue-mrpc" / "glue-mrpc_16_100_dev.jsonl", lines[:2])
    for split in ("train", "dev"):
        text = "".join(f"w{i}\tw4\n" for i in range(5))
        (tmp_path / "squad" / f"{split}.tsv").write_text(text)
    parts = read_rows(tmp_path, header=("input", "output"))
    assert [(p.name, p.rows[0]["split"], len(p.rows)) for p in parts] == [
        ("glue-mrpc", "dev", 2),
        ("glue-mrpc", "train", 5),
        ("squad", "dev", 5),
        ("squad", "train", 5),
    ]
    found = source(tmp_path, header=("input", "output"), rows="train")
    assert found.names == ("glue-mrpc", "squad")


def test_what_a_file_s_name_says_of_its_task(tmp_path: Path) -> None:
    names = ["task_1_train", "task_2_train", "year-2010.test", "SST-2.dev", "a/data", "b/data"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_json_lines(tmp_path / f"{name}.jsonl", [{"prompt": "w1", "answer": "w2"}])
    found = sorted(part.name for part in read_rows(tmp_path))
    assert found == ["SST-2", "a/data", "b/data", "task_1", "task_2", "year-2010"]


def test_columns_templates_functions_messages_and_options() -> None:
    def only(row: dict[str, Any], **how: Any) -> Example:
        return Prompts(**how).examples(Rows("file", [row], "here"))[0]

    assert only({"question": "a", "response": "b"}) == Example("file", "a", "b")
    alpaca = {"instruction": "Add.", "input": "1 1", "output": "2"}
    assert only(alpaca) == Example("file", "Add.\n\n1 1", "2")
    assert only(alpaca | {"input": ""}).prompt == "Add."
    row = {"a": "x", "b": "y", "label": 1, "task": "t"}
    asked = only(row, prompt="{a} or {b}?", answer="label", options=["no", "yes"])
    assert asked == Example("t", "x or y?", "yes", ("no", "yes"))
    assert only(row, prompt=lambda r: r["a"] * 2, answer="b").prompt == "xx"
    assert only({"a": "x", "b": "y"}, prompt="{task} {a}", answer="b").prompt == "file x"
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert only({"messages": said}) == Example("file", (said[0],), "b")
    other = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert only({"conversations": other}) == Example("file", (said[0],), "b")
    assert only({"prompt": "a", "answer": ["b", "c"]}).answer == "b"
    assert only({"prompt": "a", "answer": 4}).answer == "4"
    assert only({"messages": said, "target": "c"}).answer == "b"  # the last message
    arc = {"question": "a", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "1"}
    assert only(arc) == Example("file", "a", "x", ("x", "y"))
    numbers = {"prompt": "a", "options": ["2", "1"]}
    assert only(numbers | {"answer": 1}).answer == "1"  # the text, not the second one


@pytest.mark.parametrize(
    ("row", "how", "message"),
    [
        ({"x": "a", "answer": "b"}, {}, "for prompt: none is called prompt or input or"),
        ({"prompt": "a", "x": "b"}, {}, "no column for answer: none is called answer or"),
        ({"prompt": "a", "x": "b"}, {}, "Its columns are prompt, x: name one as answer"),
        ({"prompt": "a", "x": "b"}, {"answer": "y"}, "no column for answer='y'. Its columns are"),
        ({"prompt": "a", "answer": "b"}, {"prompt": "{c}?"}, "names 'c'"),
        ({"prompt": "a", "answer": " "}, {}, "answer of row 0 of here is ' '"),
        ({"prompt": "a", "answer": None}, {}, "answer of row 0 of here is None"),
        ({"prompt": "a", "answer": float("nan")}, {}, "answer of row 0 of here is nan"),
        ({"prompt": "a", "answer": "\ud800"}, {}, "answer of row 0 of here is no text"),
        ({"prompt": "a", "answer": "b", "task": None}, {}, "task of row 0 of here is None"),
        ({"p": None, "answer": "b"}, {"prompt": "{p}?"}, "needs 'p', which a row of here lacks"),
        ({"p": [], "answer": "b"}, {"prompt": "{p[0]}?"}, "does not fit a row of here"),
        ({"p": "a", "answer": "b"}, {"prompt": "{p"}, "is no template"),
        ({"prompt": "a", "answer": 1, "options": [1.0, 0.5]}, {}, "none of its options"),
        ({"prompt": "a", "answer": "b", "options": [{"a": 1}]}, {}, "option of row 0 of here is"),
        ({"prompt": 3.5, "answer": "b"}, {}, "prompt of row 0 of here is 3.5"),
        ({"prompt": "a", "answer": "c", "options": ["b", "d"]}, {}, "none of its options"),
        ({"prompt": "a", "answer": 0, "options": ["3", "1"]}, {}, "none of its options '3', '1'."),
        ({"prompt": "a", "answer": "b", "options": ["b", "b"]}, {}, "list of different texts"),
        ({"messages": [{"role": "user", "content": "a"}]}, {}, "do not end with one of the role"),
        ({"messages": [{"content": "a"}]}, {}, "has no role"),
    ],
)
def test_rows_that_say_too_little(row: dict[str, Any], how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prompts(**how).examples(Rows("file", [row], "here"))


def test_chat_templates() -> None:
    words = generating.tokenizer()
    data = several("w1", "w2")
    with pytest.raises(ValueError, match="no chat template"):
        source(data, tokenizer=words, chat=True)
    words.chat_template = generating.TEMPLATE
    batch = source(data, tokenizer=words, chat=True).sample().support
    ids, labels = batch.inputs["input_ids"][0, 0], batch.targets[0, 0]
    said = text_of(ids.tolist())
    assert re.fullmatch(r"<1> w\d w1 <3> <1> w2 <3> <0>", said)  # <1>: user, assistant
    assert text_of(labels[labels >= 0].tolist()) == "w2 <3>"
    words.chat_template = generating.TEMPLATE.replace(" [SEP]", "")  # no turn is ever closed
    labels = source(data, tokenizer=words, chat=True).sample().support.targets[0, 0]
    assert text_of(labels[labels >= 0].tolist()) == "w2 <3>"
    words.chat_template = "{{ messages | length }} " + generating.TEMPLATE
    with pytest.raises(ValueError, match="writes a conversation otherwise"):
        source(data, tokenizer=words, chat=True)


def test_long_texts_lose_the_beginning_of_the_prompt_first() -> None:
    prompt = " ".join(f"w{i}" for i in range(20))
    found = source(several(prompt, "w50 w51"), max_length=10)
    assert found.cut == 5
    ids = found.sample().support.inputs["input_ids"][0, 0].tolist()
    assert text_of(ids) == "<2> w14 w15 w16 w17 w18 w19 w50 w51 <3>"
    both = source(several(prompt, prompt), max_length=10).sample().support
    assert text_of(both.inputs["input_ids"][0, 0].tolist()) == (
        "<2> w16 w17 w18 w19 w0 w1 w2 w3 w4"
    )
    options = [f"{prompt} w{i}" for i in range(2)]
    rows = [row | {"options": options} for row in several(prompt, options[0])]
    with pytest.raises(ValueError, match="cuts off the end of the option"):
        source(rows, max_length=10, choose=True)


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        (several("w1", "w2", 4), {}, "has 4 examples, and an episode takes"),
        (several("w1", "w2", 4) * 2, {}, "has 4 examples, and an episode takes"),
        (generating.rows(2), {"split": "test"}, "split='test' is empty: hold out tasks"),
        (generating.rows(2), {"test_tasks": 3}, "from 0 to 2; there are 2 tasks"),
        (generating.rows(2), {"test_tasks": 2}, "all 2 tasks are held out. Leave some to train"),
        (several("w1", "w2"), {"choose": True}, "example without options"),
        (several("w1", "w2"), {"rows": "train"}, "has no rows of split 'train'"),
        ([], {}, "holds no rows"),
        (several("w1", "w2"), {"limit": 0}, "limit"),
        (
            [row | {"options": ["w2", "Y", "Z"]} for row in several("w1", "w2")],
            {"choose": True},
            "the options 'Y' and 'Z' of task 'data' are the same tokens",
        ),
        (iter([{"prompt": "w1", "answer": "w2"}]), {}, "a stream: say with limit="),
        ([1, 2], {}, "row 0 of data is a int"),
        (3, {}, "data is a int"),
    ],
)
def test_bad_input_is_refused(data: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        source(data, **more)


def test_streams_data_sets_and_files_give_the_same(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = generating.rows(2)
    file = write_json_lines(tmp_path / "rows.jsonl.gz", data)
    (tmp_path / "rows.json").write_text(json.dumps(data))
    table = datasets.Dataset.from_list(data)
    wanted = source(data).sample()
    for other in (file, tmp_path / "rows.json", table, table.to_iterable_dataset()):
        found = source(other, limit=1000).sample()
        assert found.names == wanted.names
        for a, b in zip(found.query.tensors(), wanted.query.tensors(), strict=True):
            assert torch.equal(a, b)
    both = datasets.DatasetDict({"train": table, "test": table})
    assert len(read_rows(both, rows=["test"])[0].rows) == len(data)


def test_all_rows_of_one_task_as_a_batch() -> None:
    batch = fm.episodes.answered(generating.rows(1), generating.tokenizer(), **SMALL)
    assert batch.inputs["input_ids"].shape == batch.targets.shape == (12, 8)
