"""The files that the pages of docs speak of, small, in the folder where their code runs."""

from __future__ import annotations

import random
import runpy
from pathlib import Path

import generating
import pytest
from places import EXAMPLES
from tiny_language import save_model, tokenizer, write_json_lines

GLUE = {"SST-2": 2, "QNLI": 2, "MNLI": 3, "QQP": 2, "MRPC": 2, "RTE": 2}


def drawings(place: Path) -> None:
    """``drawings/CLASS/*.png``: 30 classes of 10 images."""
    image = pytest.importorskip("PIL.Image")
    draw = random.Random(0)
    for c in range(30):
        folder = place / "drawings" / f"figure_{c}"
        folder.mkdir(parents=True)
        for i in range(10):
            grey = bytes(draw.randrange(256) for _ in range(256))
            image.frombytes("L", (16, 16), grey).save(folder / f"{i}.png")


def rides(place: Path) -> None:
    """``users.csv``: the example's, of 60 users."""
    runpy.run_path(str(EXAMPLES / "users.py"))["make"](place / "users.csv", users=60)


def texts(place: Path) -> None:
    """A pretrained model ``my-bert``, and data sets of texts: intents, spam, reviews, ``glue/``."""
    save_model(place / "my-bert", max_position_embeddings=128)
    tokenizer(model_max_length=128).save_pretrained(place / "my-bert")
    intents = [
        {"text": f"w{c % 50} w{i}", "intent": f"intent {c}"} for c in range(60) for i in range(6)
    ]
    write_json_lines(place / "tickets.jsonl.gz", [*intents, {"text": "w0", "intent": "oos"}])
    for name in ("spam", "spam-dev"):
        rows = [f"w{i} w{i + 1},{i % 2}" for i in range(100)]
        (place / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (place / "reviews").mkdir()
    for part in ("train_0_8", "train_1_8", "eval"):
        sentences = [{"sentence1": f"w{i}", "label": ("bad", "good")[i % 2]} for i in range(16)]
        write_json_lines(place / "reviews" / f"books_{part}.json", sentences)
    (place / "glue").mkdir()
    for name, classes in GLUE.items():
        pair = {} if name == "SST-2" else {"text_b": "w50"}
        examples = [{"text_a": f"w{i % 50}", **pair, "label": i % classes} for i in range(99)]
        for split in ("train", "dev"):
            write_json_lines(place / "glue" / f"{name}.{split}.jsonl.gz", examples)


def prompts(place: Path) -> None:
    """A decoder ``my-llama``, ``tasks.jsonl`` of several tasks, and a new task."""
    generating.save("Llama", place / "my-llama")
    generating.tokenizer(model_max_length=512).save_pretrained(place / "my-llama")
    write_json_lines(place / "tasks.jsonl", generating.rows(6, 20))
    write_json_lines(place / "my-task.jsonl", generating.rows(1, 8))


FILES = {
    "how_to/images.md": drawings,
    "how_to/table.md": rides,
    "how_to/text.md": texts,
    "how_to/instructions.md": prompts,
    "how_to/large_bases.md": prompts,
    "how_to/sharded_bases.md": prompts,
}
"""By page, what makes them."""
