"""The peak of a model of many layers, from two of few: all layers but the first and last do alike.

What runs in a model of n + 1 layers is what runs in one of n, with a block more wherever a pass
goes through the layers. So every operation of the one has its like in the other, counted from the
first layer or from the last, and the bytes alive after it are linear in the number of layers. The
peak of the large model is the largest of these lines at its number of layers.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastmaml.measure.planning.trace import Event

FEWEST = 3
"""Layers of the smaller model: a first, a last, and one in between."""

_WINDOW = 8
"""Operations that must be alike where two runs meet again after a block."""

Pair = tuple[int, int]


def peak_of(few: Sequence[Event], more: Sequence[Event], layers: int) -> int | None:
    """The peak of a model of so many layers; None where the two runs do not fit together.

    Args:
        few: of `FEWEST` layers.
        more: of one layer more.
        layers: of the large model, at least as many.
    """
    pairs = _paired(few, more)
    # What stands in no pair lies between two that do, so the highest must be among these.
    if pairs is None or max(b for _, b in pairs) != max(event.bytes for event in more):
        return None
    return max(a + (layers - FEWEST) * (b - a) for a, b in pairs)


def _paired(few: Sequence[Event], more: Sequence[Event]) -> list[Pair] | None:
    """Bytes after operations that are each other's like, from either end of each pass."""
    ours, theirs = [e.label for e in few], [e.label for e in more]
    pairs: list[Pair] = []
    i = j = 0
    while i < len(few) or j < len(more):
        if i < len(few) and j < len(more) and ours[i] == theirs[j]:
            pairs.append((few[i].bytes, more[j].bytes))
            i, j = i + 1, j + 1
            continue
        block = _block(ours, theirs, i, j)
        if block is None:
            return None
        j += block
        alike = _alike_before(ours, theirs, i, j)
        # So many are alike by chance, at the end of what is counted from either end.
        chance = max(0, alike - FEWEST * block)
        del pairs[max(0, len(pairs) - chance) :]
        pairs += [(few[i - k].bytes, more[j - k].bytes) for k in range(1, alike - chance + 1)]
    return pairs


def _block(ours: Sequence[int], theirs: Sequence[int], i: int, j: int) -> int | None:
    """How many operations more the larger model does from here on, which it did just before."""
    wanted = ours[i : i + _WINDOW]
    for size in range(1, len(theirs) - len(wanted) - j + 1):
        after = j + size
        if theirs[after : after + len(wanted)] == wanted and theirs[j:after] in (
            theirs[max(0, j - size) : j],
            theirs[after : after + size],
        ):
            return size
    return None


def _alike_before(ours: Sequence[int], theirs: Sequence[int], i: int, j: int) -> int:
    """How many operations up to here both did alike."""
    count = 0
    while count < min(i, j) and ours[i - count - 1] == theirs[j - count - 1]:
        count += 1
    return count
