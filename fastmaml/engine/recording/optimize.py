"""A recorded function made smaller."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastmaml.engine.base.trees import exchanged
from fastmaml.engine.recording.memory_reuse import (
    made_by,
    read_by,
    require_own_memory,
    reuse_memory,
)
from fastmaml.engine.recording.replay_code import look
from fastmaml.engine.recording.tape import Operation, Ref, Tape, View


def cleaned(
    tape: Tape,
    in_place: bool = True,
    known: frozenset[int] = frozenset(),
    computes_constants: bool = True,
) -> Tape:
    """The same outputs to the last bit, from fewer steps.

    What nothing uses goes (the random keys of a model without dropout, say), equal calls are made
    once, and what depends on no input is computed now. Memory that is written to is left alone.

    Args:
        tape: is changed.
        in_place: let sums and products overwrite operands that nothing needs any more.
        known: constants whose numbers will not change, either.
        computes_constants: else what depends on no input is computed at each replay.
    """
    _look_through_empty_sums(tape)
    _share_equal_steps(tape)
    if computes_constants:
        _compute_constants(tape, known)
    _drop_unused(tape)
    if in_place:
        reuse_memory(tape)
        require_own_memory(tape)
    return tape


def operation_count(tape: Tape) -> int:
    """How many calls a replay makes, views not counted."""
    return sum(isinstance(step, Operation) for step in tape.steps)


def element_count(tape: Tape) -> int:
    """How many numbers the calls of a replay make."""
    made = (v for step in tape.steps if isinstance(step, Operation) for v in made_by(step))
    return sum(math.prod(tape.geometry[v].size) for v in made)


def _renamed(step: Any, names: dict[int, int]) -> Any:
    """The step with other values read."""

    def rename(ref: Ref) -> Ref:
        return Ref(names.get(ref.value, ref.value))

    if isinstance(step, Operation):
        arguments, keywords = exchanged((step.arguments, step.keywords), Ref, rename)
        return step._replace(arguments=arguments, keywords=keywords)
    return step[0], step[1]._replace(source=names.get(step[1].source, step[1].source))


def _share_equal_steps(tape: Tape) -> None:
    """Make equal calls once, where the first result is still there at the second.

    Gradient methods that run an inner step again do so to keep little: sharing a result that was
    let go would keep it all the while.
    """
    seen: dict[Any, list[int]] = {}
    names: dict[int, int] = {}
    roots: dict[int, int] = {}
    last = {tape.owner[v]: i for i, step in enumerate(tape.steps) for v in read_by(step)}
    last.update({tape.owner[v]: len(tape.steps) for v in tape.outputs})
    kept = []
    for i, step in enumerate(tape.steps):
        step = _renamed(step, names)
        touched = {tape.owner[v] for v in (*read_by(step), *made_by(step))}
        if touched & tape.written or (
            isinstance(step, Operation) and step.function._schema.is_mutable
        ):
            kept.append(step)
            continue
        key: Any = step[1]
        if isinstance(step, Operation):
            wanted = repr(exchanged(step.results, int, lambda r: True))
            key = (step.function, repr((step.arguments, step.keywords)), wanted)
        if key in seen and all(last.get(tape.owner[v], -1) >= i for v in seen[key]):
            for new, old in zip(made_by(step), seen[key], strict=True):
                names[new] = old
                root, own = _root(roots, tape.owner[old]), _root(roots, tape.owner[new])
                last[root] = max(last.get(root, -1), last.get(own, -1))
                if own != root:
                    roots[own] = root
        else:
            seen[key] = made_by(step)
            kept.append(step)
    tape.steps = kept
    tape.outputs = [names.get(v, v) for v in tape.outputs]
    # Views of a result that is not made any more are views of the one that is.
    tape.owner[:] = [_root(roots, owner) for owner in tape.owner]


def _root(roots: dict[int, int], owner: int) -> int:
    while owner in roots:
        owner = roots[owner]
    return owner


def of_numbers_alone(tape: Tape, known: frozenset[int] = frozenset()) -> list[bool]:
    """For each step whether it is made of nothing but numbers and constants that are known."""
    made, found = set(known), []
    for step in tape.steps:
        touched = {tape.owner[v] for v in (*read_by(step), *made_by(step))}
        found.append(not touched & tape.written and made.issuperset(read_by(step)))
        if found[-1]:
            made.update(made_by(step))
    return found


def _compute_constants(tape: Tape, known: frozenset[int]) -> None:
    """What is made of nothing but numbers is the same at every replay."""
    values: dict[int, Tensor] = {v: tape.constants[v] for v in known}
    kept = []
    for step, alone in zip(tape.steps, of_numbers_alone(tape, known), strict=True):
        if not alone:
            kept.append(step)
            continue
        if isinstance(step, Operation):
            arguments, keywords = exchanged(
                (step.arguments, step.keywords), Ref, lambda ref: values[ref.value]
            )
            results = tree_leaves(step.function(*arguments, **keywords))
            pairs = zip(tree_leaves(step.results), results, strict=True)
            values.update({v: x for v, x in pairs if v is not None})
        else:
            values[step[0]] = look(values[step[1].source], *step[1][1:])
    tape.steps = kept
    used = {v for step in kept for v in read_by(step)} | set(tape.outputs)
    tape.constants.update({v: x for v, x in values.items() if v in used})


def _drop_unused(tape: Tape) -> None:
    needed = set(tape.outputs)
    written = {tape.owner[v] for v in needed} & tape.written
    kept = []
    for step in reversed(tape.steps):
        mutable = isinstance(step, Operation) and step.function._schema.is_mutable
        # Memory that is written to is needed as a whole, from its first use on.
        writes = mutable and any(tape.owner[v] in written for v in read_by(step))
        if writes or any(v in needed or tape.owner[v] in written for v in made_by(step)):
            kept.append(step)
            needed.update(read_by(step))
            written |= {tape.owner[v] for v in (*read_by(step), *made_by(step))} & tape.written
    tape.steps = kept[::-1]
    tape.constants = {v: x for v, x in tape.constants.items() if v in needed}


def _look_through_empty_sums(tape: Tape) -> None:
    """A sum over dimensions of one element is its argument, seen without them.

    θ is expanded over the tasks of a chunk, so that its gradient ends in a sum over them.
    """
    for i, step in enumerate(tape.steps):
        if not isinstance(step, Operation) or step.function is not torch.ops.aten.sum.dim_IntList:
            continue
        (ref, dims, *keeps), made = step.arguments, step.results
        if made is None or step.keywords or tape.written & {tape.owner[ref.value], made}:
            continue
        source, target = tape.geometry[ref.value], tape.geometry[made]
        summed = {d % len(source.size) for d in dims} if dims else set()
        same = source.dtype == target.dtype and math.prod(source.size) == math.prod(target.size)
        kept = [s for d, s in enumerate(source.stride) if d not in summed or any(keeps)]
        # Later views of the sum were recorded against its own strides.
        alike = len(kept) == len(target.size) and all(
            s == t for s, t, n in zip(kept, target.stride, target.size, strict=True) if n != 1
        )
        if summed and same and alike:
            tape.steps[i] = (made, View(ref.value, target.size, target.stride, 0))
            root = tape.owner[ref.value]
            tape.owner[:] = [root if owner == made else owner for owner in tape.owner]
