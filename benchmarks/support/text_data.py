"""The data sets of the studies of texts: what is learned from, and what is held out."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastmaml as fm

TRAIN = ("sst2", "qnli", "mnli", "qqp")
CLASSES = {"sst2": 2, "qnli": 2, "mnli": 3, "qqp": 2, "mrpc": 2, "rte": 2, "cola": 2, "stsb": 2}
HELD_OUT = ("mrpc", "rte", "cola", "stsb")
INTENTS = "intents"
OTHER_INTENTS = "intents of a bank"
METRICS = {"mrpc": "accuracy,f1", "cola": "accuracy,matthews", "stsb": "pearson"}
LENGTHS = {INTENTS: 24, OTHER_INTENTS: 32}
"""Texts of others are cut to 48 tokens."""


@dataclass(frozen=True)
class Data:
    """Where the files are, and how much of them is learned from.

    Attributes:
        folder: with GLUE's files in ``glue``, ``clinc150.jsonl.gz`` and ``banking77.jsonl.gz``.
        work: where what is learned from is put together.
        tokenizer: of the model.
        rows: of every data set that is learned from, drawn once.
        held_intents: how many of CLINC150's classes are for the test.
    """

    folder: Path
    work: Path
    tokenizer: Any
    rows: int
    held_intents: int

    def __post_init__(self) -> None:
        draw = random.Random(0)
        for path in sorted((self.folder / "glue").iterdir()):
            lines = gzip.decompress(path.read_bytes()).splitlines()
            if ".train." in path.name:
                lines = draw.sample(lines, min(self.rows, len(lines)))
            _write(self.work / "glue" / path.name.removesuffix(".gz"), lines)
        rows = _read(self.folder / "clinc150.jsonl.gz")
        classes = sorted({row["label"] for row in rows} - {"oos"})
        draw.shuffle(classes)
        parts = {"held": classes[: self.held_intents], INTENTS: classes[self.held_intents :]}
        for name, own in parts.items():
            some = [row for row in rows if row["label"] in own]
            if name == INTENTS:
                some = draw.sample(some, min(self.rows, len(some)))
            _write(self.work / f"{name}.jsonl", [json.dumps(row).encode() for row in some])

    @property
    def intents_learned(self) -> int:
        """How many classes of intents are learned from."""
        lines = (self.work / f"{INTENTS}.jsonl").read_bytes().splitlines()
        return len({json.loads(line)["label"] for line in lines})

    def glue(self, names: Any, support: int, query: int, **options: Any) -> Any:
        return fm.episodes.glue(
            names, self.tokenizer, data=self.work, support=support, query=query, max_length=48,
            cache=False, **options,
        )  # fmt: skip

    def intents(self, name: str, shots: int, queries: int, **options: Any) -> Any:
        path = self.folder / "banking77.jsonl.gz"
        if name != OTHER_INTENTS:
            path = self.work / f"{name}.jsonl"
        length = LENGTHS.get(name, LENGTHS[INTENTS])
        return fm.episodes.text(
            path, self.tokenizer, 5, shots, queries, max_length=length, cache=False, **options
        )

    def whole(self, rows: int, tasks: int, intents: bool, seed: int) -> Any:
        """Batches of rows of whole data sets, with all of their classes, as support sets."""
        if not intents:
            return self.glue(TRAIN, rows, 1, tasks=tasks, seed=seed, balance="none")
        task = fm.episodes.text_task(
            INTENTS, self.work / f"{INTENTS}.jsonl", self.tokenizer, max_length=LENGTHS[INTENTS],
            cache=False,
        )  # fmt: skip
        return fm.episodes.Mixture(
            [task], support=rows, query=1, tasks=tasks, seed=seed, balance="none"
        )


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def _write(path: Path, lines: list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(lines) + b"\n")
