"""`held_out`: which classes, or tasks, each split has, whatever the order they are found in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from fastmaml.episodes.class_names import Label, name_of

SPLITS = ("train", "validation", "test")

What = Literal["class", "task"]
PLURAL = {"class": "classes", "task": "tasks"}

Held = int | Sequence[Label]
"""How many are held out, or which."""


def held_out(
    names: Sequence[str], validation: Held, test: Held, seed: int, what: What = "class"
) -> dict[str, list[str]]:
    """The names of every split.

    Which are held out hangs on `seed` and the names alone.

    Args:
        names: all of them.
        validation: how many are held out for validation, or which.
        test: how many are held out for testing, or which.
        seed: of the order in which they are held out.
        what: they are, for errors.

    Raises:
        ValueError: a name that does not exist or is held out twice, or too large a number.
    """
    several = PLURAL[what]
    # An order by hash stays the same with every version of every library.
    by_hash = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    chosen: dict[str, list[str]] = {}
    for split, held in (("test", test), ("validation", validation)):
        free = [c for c in by_hash if all(c not in other for other in chosen.values())]
        if isinstance(held, int):
            if isinstance(held, bool) or not 0 <= held <= len(free):
                raise ValueError(
                    f"{split}_{several}={held!r}: give names, or a number from 0 to {len(free)}; "
                    f"there are {len(names)} {several}."
                )
            chosen[split] = free[:held]
            continue
        chosen[split] = [name_of(name) for name in ([held] if isinstance(held, str) else held)]
        wrong = [name for name in chosen[split] if name not in free]
        if wrong:
            raise ValueError(
                f"{split}_{several} names {wrong[0]!r}, which is no {what} of the data or held out "
                f"already. The {several} are {', '.join(names[:20])}"
                f"{', ...' if len(names) > 20 else ''}."
            )
    others = {*chosen["test"], *chosen["validation"]}
    chosen["train"] = [c for c in names if c not in others]
    return chosen


def chosen_split(split: str, parts: dict[str, list[str]], what: What = "class") -> list[str]:
    """The names of one split, of which there has to be one."""
    if parts[split]:
        return parts[split]
    total, several = sum(map(len, parts.values())), PLURAL[what]
    raise ValueError(
        f"split={split!r} is empty: hold out {several} with {split}_{several}= (the same in all "
        f"splits), but not all {total} that there are."
        if split != "train"
        else f"split='train' is empty: all {total} {several} are held out. Leave some to train on: "
        f"hold out fewer with test_{several} and validation_{several}."
    )
