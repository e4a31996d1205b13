"""How many bytes a replay of a tape has alive, step by step."""

from __future__ import annotations

from collections.abc import Collection

from fastmaml.engine.memory.live import Alive
from fastmaml.engine.recording.memory_reuse import OVERWRITES, made_by, read_by
from fastmaml.engine.recording.tape import Operation, Tape


def alive_in(tape: Tape, marked: Collection[int]) -> tuple[list[Alive], list[Alive]]:
    """What a replay made and still has, before each step and at the end, and after each step.

    It lets go of each value after its last use (see `compiled`); a step is largest before that.

    Args:
        tape: a cleaned one.
        marked: as `LiveMemory` takes it.
    """
    owner, sizes = tape.owner, dict[int, int]()
    stay = tape.outside() | {owner[v] for v in tape.outputs}
    touched = [{owner[v] for v in (*read_by(step), *made_by(step))} for step in tape.steps]
    last = {x: i for i, values in enumerate(touched) for x in values}
    now, before, after = Alive(), list[Alive](), list[Alive]()
    for i, step in enumerate(tape.steps):
        before.append(now)
        if isinstance(step, Operation) and step.function in OVERWRITES and step.made():
            sizes[step.results] = sizes.pop(owner[step.arguments[0].value])
        elif isinstance(step, Operation):
            for value in step.made():
                size = sizes[value] = tape.geometry[value].reach()
                now = now.more(size, size in marked)
        after.append(now)
        for x in touched[i]:
            if last[x] == i and x not in stay:
                size = sizes.pop(x, 0)
                now = now.more(-size, size in marked)
    return [*before, now], after
