"""`glue`: episodes of the GLUE benchmark, each task being one of its data sets."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from fastmaml.episodes.checks import check_choice
from fastmaml.episodes.mixture import Mixture
from fastmaml.episodes.pools import Balance, Sampling
from fastmaml.episodes.table_files import FILES, kind_of
from fastmaml.episodes.tables import is_hub_name
from fastmaml.episodes.text_task import TextTask, text_task
from fastmaml.episodes.tokens import Cache

HUB = "nyu-mll/glue"

TASKS: dict[str, tuple[str, ...]] = {
    "sst2": ("negative", "positive"),
    "cola": ("unacceptable", "acceptable"),
    "mrpc": ("not_equivalent", "equivalent"),
    "rte": ("entailment", "not_entailment"),
    "qnli": ("entailment", "not_entailment"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "qqp": ("not_duplicate", "duplicate"),
    "wnli": ("not_entailment", "entailment"),
    "stsb": (),
}
"""The tasks, and their classes in the order of their numbers (as on the hub); none: regression."""

SIMILARITY = (0.0, 5.0)
"""The range of STS-B's values, which become 0 to 1."""

CLASSES = 3
"""The most that a task has, and so the logits that a model of them needs."""

DEV = ("dev", "validation", "validation_matched")
"""What the part with query rows may be called."""


def glue(
    names: str | Sequence[str],
    tokenizer: Any,
    *,
    data: str | os.PathLike[str] | None = None,
    query_from: Literal["train", "dev"] = "train",
    support: int = 16,
    query: int = 16,
    tasks: int = 4,
    sampling: Sampling = "uniform",
    balance: Balance = "both",
    fixed_query: bool = False,
    max_length: int = 128,
    seed: int = 0,
    device: torch.device | str | None = None,
    cache: Cache = True,
) -> Mixture:
    """Episodes of GLUE (Wang et al., 2019), one task being one of its data sets.

    SST-2, CoLA, MRPC, RTE, QNLI, MNLI (3 classes; matched), QQP, WNLI, and STS-B, a regression
    whose values of 0 to 5 become 0 to 1. Classes are numbered as on the hub (see `TASKS`), whether
    the files give their numbers or their names. A model of any of them needs `CLASSES` outputs, 3,
    for MNLI's sake. Tasks for meta-training and tasks for meta-testing
    are two mixtures: give the held-out names, and ``query_from="dev"``, for the second one.

    Args:
        names: of the tasks, in any spelling ("sst2", "SST-2"), in a list or divided by commas.
        tokenizer: of transformers; `fastmaml.integrations.transformers.tokenizer` loads one.
        data: a folder with files such as ``SST-2.train.jsonl.gz`` and ``SST-2.dev.jsonl.gz`` (or
            its subfolder ``glue``; any kind that `text_task` reads; a part such as ``.sub10k.``
            between name and split does no harm), or a data set's name on the hub whose
            configurations are the tasks. None: the folder that FASTMAML_DATA names, or else
            ``nyu-mll/glue`` from the hub.
        query_from: where query sets come from: "train", like the support sets and disjoint from
            them, or "dev", the rows of the development set.
        support, query, tasks, sampling, balance, fixed_query, seed, device: as of `Mixture`.
        max_length: longer texts are cut to so many tokens.
        cache: where token numbers are kept: a folder, True for ``~/.cache/fastmaml/tokens``, or
            False.

    Raises:
        ValueError: an unknown task, or as `Mixture` and `text_task`.
        FileNotFoundError: the folder, or a task's file in it, does not exist.
        ConnectionError, ImportError: the hub cannot be reached, or `datasets` is missing.
    """
    check_choice("query_from", query_from, ("train", "dev"))
    found = place(data)
    read = [
        _read(key, found, tokenizer, query_from == "dev", max_length, cache)
        for key in task_names(names)
    ]
    return Mixture(
        read,
        support=support,
        query=query,
        tasks=tasks,
        sampling=sampling,
        balance=balance,
        fixed_query=fixed_query,
        seed=seed,
        device=device,
    )


def task_names(names: str | Sequence[str]) -> list[str]:
    """The keys of `TASKS` that are meant.

    Raises:
        ValueError: one that is unknown, or none.
    """
    words = names.split(",") if isinstance(names, str) else names
    given = [word.strip() for word in words if word.strip()]
    unknown = [name for name in given if _normal(name) not in TASKS]
    if unknown or not given:
        raise ValueError(
            f"{unknown[0]!r} is no task of GLUE: choose from {', '.join(TASKS)}."
            if unknown
            else f"names={names!r}: name at least one task of {', '.join(TASKS)}."
        )
    return [_normal(name) for name in given]


def _normal(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def place(data: str | os.PathLike[str] | None) -> Path | str:
    """The folder with the files, or the name on the hub.

    Raises:
        FileNotFoundError: `data` is neither.
    """
    given = data if data is not None else os.environ.get("FASTMAML_DATA")
    if given is not None:
        folder = Path(given).expanduser()
        for inside in (folder / "glue", folder):
            if inside.is_dir() and any(_files(inside)):
                return inside
        if data is not None:
            if isinstance(data, str) and is_hub_name(data) and not folder.exists():
                return data
            raise FileNotFoundError(
                f"data={str(data)!r}: there is no folder with GLUE's files, such as "
                "SST-2.train.jsonl.gz and SST-2.dev.jsonl.gz."
            )
    return HUB


def _read(
    key: str, place: Path | str, tokenizer: Any, dev: bool, max_length: int, cache: Cache
) -> TextTask:
    classes = TASKS[key] or None
    value_range = None if classes else SIMILARITY
    options: dict[str, Any] = {"classes": classes, "value_range": value_range}
    options |= {"max_length": max_length, "cache": cache}
    if isinstance(place, Path):
        query = _file(place, key, DEV) if dev else None
        train = _file(place, key, ("train",))
        return text_task(key, train, tokenizer, query_data=query, **options)
    rows = ("validation_matched" if key == "mnli" else "validation") if dev else None
    name = f"{place}:{key}"
    return text_task(key, name, tokenizer, rows="train", query_rows=rows, **options)


def _files(folder: Path) -> list[tuple[str, list[str], Path]]:
    """Of every file of a task: the task, the other parts of its name, and the file."""
    found = []
    for path in sorted(folder.iterdir()):
        name, *parts = path.name.lower().removesuffix(".gz").split(".")
        if kind_of(path.name) in FILES and _normal(name) in TASKS:
            found.append((_normal(name), parts[:-1], path))
    return found


def _file(folder: Path, key: str, splits: tuple[str, ...]) -> Path:
    files = [(p, path) for k, p, path in _files(folder) if k == key and set(splits) & set(p)]
    if not files:
        raise FileNotFoundError(
            f"{folder} has no {splits[0]} part of {key!r}: no file such as "
            f"{key.upper()}.{splits[0]}.jsonl.gz. Put it there, or leave that task out."
        )
    return min(files, key=lambda found: len(found[0]))[1]  # the whole one, not a sample of it
