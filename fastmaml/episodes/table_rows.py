"""The rows of a table's tasks, as tensors sorted by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from fastmaml.episodes.class_names import name_of, ordered
from fastmaml.episodes.held_out import SPLITS, Held, chosen_split, held_out
from fastmaml.episodes.table_sizes import Sizes
from fastmaml.episodes.table_targets import Kind

Small = Literal["error", "drop"]
Members = Mapping[str, Sequence[int]]

WRITTEN = {"val": "validation", "valid": "validation", "dev": "validation"}
"""What else is understood in a column of splits."""


@final
@dataclass(frozen=True)
class TaskRows:
    """The rows of some tasks, which lie one task behind the other.

    Attributes:
        names: of the tasks.
        sizes: int64 ``[tasks]``, how many rows each has, on the CPU.
        inputs: a tree of ``[rows, ...]``.
        targets: floating ``[rows, targets]``, or int64 classes ``[rows]``.
        kind: what they ask for.
        classes: the names of all classes, in the order of their numbers; empty without classes.
        dropped: how many rows of the table had no value in some column.
        left_out: tasks with too few rows.
        fingerprint: uint8 ``[32]``, of the columns that are used of the whole table.
        trained: uint8 ``[32]``, of the names of the training tasks and of the scaling.
    """

    names: tuple[str, ...]
    sizes: Tensor
    inputs: Any
    targets: Tensor
    kind: Kind
    classes: tuple[str, ...]
    dropped: int
    left_out: tuple[str, ...]
    fingerprint: Tensor
    trained: Tensor

    @property
    def starts(self) -> Tensor:
        """int64 ``[tasks]``: where the rows of each begin."""
        return self.sizes.cumsum(0) - self.sizes

    def own_classes(self) -> tuple[Tensor, Tensor]:
        """Classes numbered within each task, in their order, and how many each task has.

        Returns:
            int64 ``[rows]`` and ``[tasks]``, on the CPU.
        """
        numbers, counts = [], []
        for labels in self.targets.cpu().split(self.sizes.tolist()):
            names, own = labels.unique(return_inverse=True)
            numbers.append(own)
            counts.append(len(names))
        return torch.cat(numbers), torch.tensor(counts)

    def to(self, device: torch.device) -> TaskRows:
        """With inputs and targets on a device."""
        inputs = tree_map_only(Tensor, lambda x: x.to(device), self.inputs)
        return replace(self, inputs=inputs, targets=self.targets.to(device))

    @property
    def features(self) -> int:
        """How many numbers an input has; of a dict those of its ``numbers``."""
        found = self.inputs.get("numbers") if isinstance(self.inputs, dict) else self.inputs
        return 0 if found is None else int(tree_leaves(found)[0].shape[1])


def members_of(tasks: Sequence[Any]) -> dict[str, list[int]]:
    """The rows of every task, the tasks in the order of their names."""
    found: dict[str, list[int]] = {}
    for i, name in enumerate(tasks):
        found.setdefault(name_of(name), []).append(i)
    return {name: found[name] for name in ordered(found)}


def parts_of(
    members: Members,
    splits: Sequence[Any] | None,
    held: tuple[Held | float, Held | float],
    seed: int,
    column: str | None,
) -> dict[str, list[str]]:
    """The tasks of every split.

    Args:
        members: the rows of every task.
        splits: of every row, what its split is called; None to hold out tasks.
        held: for validation and test, a share of the tasks, how many, or which.
        seed: of which are held out.
        column: that says the splits, for errors.

    Raises:
        ValueError: an unknown split, or a task of several; a share that is none; as `held_out`.
    """
    if splits is None:
        validation, test = (
            _number(f"{split}_tasks", share, len(members))
            for split, share in zip(SPLITS[1:], held, strict=True)
        )
        return held_out(list(members), validation, test, seed, "task")
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name, rows in members.items():
        said = {str(splits[i]).strip().lower() for i in rows}
        own = {WRITTEN.get(x, x) for x in said}
        if len(own) > 1 or not own <= found.keys():
            raise ValueError(
                f"split_column={column!r} says {', '.join(sorted(said))} of the rows of the task "
                f"{name!r}: write one of {', '.join(SPLITS)} in all rows of a task."
            )
        found[own.pop()].append(name)
    return found


def _number(what: str, held: Held | float, total: int) -> Held:
    if not isinstance(held, float):
        return held
    if not 0 <= held < 1:
        raise ValueError(f"{what}={held!r}: give a share from 0 to 1, a number of tasks, or names.")
    return max(round(held * total), 1) if held else 0


def large_enough(
    members: Members, names: Sequence[str], sizes: Sizes, small: Small, what: str
) -> tuple[dict[str, Sequence[int]], list[str]]:
    """The tasks that have rows enough, and the names of the others.

    Raises:
        ValueError: a task has too few, with ``small="error"``; or all have.
    """
    few = [name for name in names if len(members[name]) < sizes.least]
    if few and small == "error":
        name, others = few[0], f" (and {len(few) - 1} other tasks have too few)" * (len(few) > 1)
        count = len(members[name])
        raise ValueError(
            f"the task {name!r} has {count} row{'s' * (count != 1)}{others}, and shots="
            f"{sizes.shots!r} with queries={sizes.queries!r} needs at least {sizes.least}: ask for "
            "fewer, or leave such tasks out with small='drop'."
        )
    left = {name: members[name] for name in names if name not in {*few}}
    if not left:
        raise ValueError(f"no task of {what} has {sizes.least} rows: ask for fewer.")
    return left, few


def split_tasks(split: str, parts: dict[str, list[str]]) -> list[str]:
    """The tasks of a split, or with "all" every one.

    Raises:
        ValueError: an unknown split, or an empty one.
    """
    if split == "all":
        return [name for names in parts.values() for name in names]
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: choose one of {', '.join(SPLITS)}, all.")
    return chosen_split(split, parts, "task")


def check_enough(split: str, rows: TaskRows, tasks: int) -> None:
    """Raise a ValueError where a meta-batch has more tasks than there are."""
    if tasks > len(rows.names):
        raise ValueError(
            f"tasks={tasks}, but split={split!r} has {len(rows.names)} tasks: give tasks="
            f"{len(rows.names)} or fewer, or hold out others."
        )


def check_own_classes(
    names: Sequence[str], sizes: Tensor, classes: Tensor, rule: Sizes, groups: Sequence[Tensor]
) -> None:
    """Check that a support set cannot lack classes of its task.

    Args:
        names: of the tasks.
        sizes: int64 ``[tasks]``, how many rows each has.
        classes: int64 ``[tasks]``, how many classes.
        rule: how rows are divided.
        groups: numbers of tasks that may be in one meta-batch with as many rows as the smallest
            has; empty where each has all of its own.

    Raises:
        ValueError: one could.
    """
    for group in groups or torch.arange(len(sizes)).split(1):
        least = rule.smallest_support(int(sizes[group].min()))
        worst = int(group[classes[group].argmax()])
        if least < classes[worst]:
            smaller = least < rule.smallest_support(int(sizes[worst]))
            there = " (beside smaller tasks, as unequal='buckets' has it)" * smaller
            other = ", or unequal='mask'" * smaller
            raise ValueError(
                f"the task {names[worst]!r} has {classes[worst]} classes, and its support set may "
                f"have {least} rows only{there}: what a class is called that is not in it, nobody "
                f"could know. Ask for more shots={other}, or give labels='table' if classes mean "
                "the same in all tasks."
            )
