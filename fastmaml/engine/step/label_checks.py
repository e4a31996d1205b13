"""Whether every label is among the classes that a model tells apart."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fastmaml.engine.step.data import TaskData
from fastmaml.episodes.batch import Episodes
from fastmaml.losses import IGNORED, classification, logits_of

Losses = tuple[Any, Any]
"""Of support sets, and of the query set."""

Classes = tuple[int | None, int | None]
"""How many the labels of support sets may name, and those of the query set."""


def class_count(loss: Any, outputs: Any, targets: Any) -> int | None:
    """How many classes labels may name, where the loss says that targets are labels; else None.

    Args:
        loss: of one task.
        outputs: the model's, every tensor ``[tasks, examples, ...]``.
        targets: of the same tasks.
    """
    outputs = logits_of(outputs) if _of_mixtures(loss) else outputs
    if not isinstance(outputs, Tensor):
        return None
    if _is_mixture(targets):
        return outputs.shape[2] if _of_mixtures(loss) and outputs.ndim == 3 else None
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return None
    labelled = outputs.ndim == targets.ndim + 1 and _ignored_label(loss) is not None
    return outputs.shape[2] if labelled else None


def class_counts(losses: Losses, outputs: Any, data: TaskData) -> Classes:
    """The same of the support sets and of the query set; None for each where data is no episodes.

    Args:
        losses: of support sets, and of the query set.
        outputs: the model's for one of them, every tensor ``[tasks, examples, ...]``.
        data: the tasks.
    """
    if not isinstance(data, Episodes):
        return None, None
    pairs = zip(losses, (data.support, data.query), strict=True)
    support, query = (class_count(loss, outputs, batch.targets) for loss, batch in pairs)
    return support, query


def check_labels(losses: Losses, classes: Classes, episodes: Episodes) -> None:
    """Raise ValueError where a label is not among the classes that the model tells apart.

    Args:
        losses: of support sets, and of the query set.
        classes: what `class_counts` gave for such episodes.
        episodes: whose labels are looked at.
    """
    ignored = tuple(map(_ignored_label, losses))
    for name, batch in episodes.sets().items():
        own = name == "query"
        _check_set(name, batch.targets, classes[own], ignored[own])


def _check_set(name: str, targets: Any, classes: int | None, ignored: int | None) -> None:
    if classes is not None and ignored is not None:
        if _is_mixture(targets):
            _check_mixture(name, targets, classes)
        else:
            _check(name, targets, classes, ignored)


def _check(name: str, labels: Tensor, classes: int, ignored: int) -> None:
    wrong = ((labels < 0) | (labels >= classes)) & (labels != ignored)
    if wrong.any():
        where = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{name}.targets holds the label {labels[tuple(where)].item()} (task {where[0]}, "
            f"example {where[1]}), but the model's outputs tell {classes} classes apart, 0 to "
            f"{classes - 1}. Number each task's labels from 0, and give the model as many "
            "outputs as there are ways."
        )


def _check_mixture(name: str, targets: Mapping[str, Tensor], classes: int) -> None:
    """The same for targets that say how many classes each task has."""
    own, labels = targets["classes"], targets["labels"]
    if (own > classes).any():
        task = int((own > classes).flatten().nonzero()[0])
        raise ValueError(
            f"task {task} has {int(own[task])} classes ({name}.targets['classes']), but the "
            f"model's outputs tell {classes} apart: give the model as many outputs as the largest "
            "number of classes that any task has, also those of the test, such as "
            f"sequence_classifier(name, classes={int(own.max())})."
        )
    wrong = (own > 1) & ((labels < 0) | (labels >= own)) & (labels != IGNORED)
    if wrong.any():
        task, example = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{name}.targets['labels'] holds the label {int(labels[task, example])} (task {task}, "
            f"example {example}), but that task has {int(own[task])} classes: number each task's "
            "labels from 0."
        )


def _is_mixture(targets: Any) -> bool:
    """Whether these are `losses.classification`'s targets of tasks that differ in their classes."""
    return isinstance(targets, Mapping) and "classes" in targets and "labels" in targets


def _of_mixtures(loss: Any) -> bool:
    return (loss.func if isinstance(loss, functools.partial) else loss) is classification


def _ignored_label(loss: Any) -> int | None:
    """The label that a loss of labels leaves out; None for any other loss.

    Losses of labels are PyTorch's two functions, fastmaml's, and whatever has an `ignore_index` as
    PyTorch's two modules have.
    """
    if _of_mixtures(loss):
        return IGNORED
    keywords: dict[str, Any] = {}
    if isinstance(loss, functools.partial):
        loss, keywords = loss.func, loss.keywords
    if loss is F.cross_entropy or loss is F.nll_loss:
        return int(keywords.get("ignore_index", IGNORED))
    own = keywords.get("ignore_index", getattr(loss, "ignore_index", None))
    return own if isinstance(own, int) else None
