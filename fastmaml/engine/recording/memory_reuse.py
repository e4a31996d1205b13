"""Letting sums and products of a tape overwrite what nothing needs any more, and proving it."""

from __future__ import annotations

from typing import Any

import torch

from fastmaml.engine.base.trees import found_in
from fastmaml.engine.recording.tape import Geometry, Operation, Ref, Tape, UncapturableError


def read_by(step: Any) -> list[int]:
    """The values that a step of a tape reads."""
    if not isinstance(step, Operation):
        return [step[1].source]
    found: list[int] = []
    for x in (*step.arguments, *step.keywords.values()):
        if type(x) is Ref:  # as nearly all are: this is asked of every step again and again
            found.append(x.value)
        elif isinstance(x, list | tuple | dict):
            found += [ref.value for ref in found_in(x, Ref)]
    return found


def made_by(step: Any) -> list[int]:
    """The values that it makes."""
    return step.made() if isinstance(step, Operation) else [step[0]]


def _dense(geometry: Geometry) -> bool:
    """Whether elements fill their memory without gaps or overlaps, in any order."""
    expected = 1
    for stride, size in sorted(zip(geometry.stride, geometry.size, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


IN_PLACE = {
    torch.ops.aten.add.Tensor: torch.ops.aten.add_.Tensor,
    torch.ops.aten.sub.Tensor: torch.ops.aten.sub_.Tensor,
    torch.ops.aten.mul.Tensor: torch.ops.aten.mul_.Tensor,
    torch.ops.aten.mul.Scalar: torch.ops.aten.mul_.Scalar,
    torch.ops.aten.div.Scalar: torch.ops.aten.div_.Scalar,
    torch.ops.aten.neg.default: torch.ops.aten.neg_.default,
}
OVERWRITES = frozenset(IN_PLACE.values())
NARROW = {torch.bfloat16, torch.float16}
_COMMUTES = {torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor}


def _candidates(step: Operation, tape: Tape) -> list[Ref]:
    """The operands in whose place the result is the same to the last bit.

    PyTorch's kernels round a factor of no dimensions to the dtype of narrow numbers where it comes
    first, and not where it comes second; ``mul_`` by a number puts the number first.
    """
    narrow = step.results is not None and tape.geometry[step.results].dtype in NARROW
    if narrow and step.function is torch.ops.aten.mul.Scalar:
        return []
    refs = [x for x in step.arguments if isinstance(x, Ref)]
    if step.function not in _COMMUTES:
        return refs[:1]
    single = any(not tape.geometry[ref.value].size for ref in refs)
    return refs[:1] if narrow and single else refs


def reuse_memory(tape: Tape) -> None:
    """Sums and products go to the memory of an operand that nothing needs afterwards."""
    outside = tape.outside() | {tape.owner[v] for v in tape.outputs}
    last: dict[int, int] = {}
    for i, step in enumerate(tape.steps):
        last.update({tape.owner[v]: i for v in read_by(step)})
    for i, step in enumerate(tape.steps):
        if not isinstance(step, Operation) or step.function not in IN_PLACE or step.keywords:
            continue
        refs = [x for x in step.arguments if isinstance(x, Ref)]
        for ref in _candidates(step, tape):
            made, owner = step.results, tape.owner[ref.value]
            free = last[owner] == i and owner not in outside and owner not in tape.written
            if not free or made is None or tape.geometry[made] != tape.geometry[ref.value]:
                continue
            if not _dense(tape.geometry[made]) or [r.value for r in refs].count(ref.value) > 1:
                continue
            if any(tape.owner[r.value] == owner for r in refs if r != ref):
                continue
            others = [x for x in step.arguments if x is not ref]
            tape.steps[i] = step._replace(
                function=IN_PLACE[step.function], arguments=(ref, *others)
            )
            break


def require_own_memory(tape: Tape) -> None:
    """Prove that sums in place touch no memory from outside, nor any that is read later.

    It follows the memory of every value by itself, through views and through sums in place, and
    not as `reuse_memory` does: what one of the two overlooks, the other one meets.

    Raises:
        UncapturableError: the proof fails, which is a fault of fastmaml's.
    """
    outside = tape.outside()
    memory = {v: tape.owner[v] for v in (*range(tape.inputs), *tape.constants)}
    alive: dict[int, list[int]] = {}
    gone: set[int] = set()
    for step in tape.steps:
        reads, made = read_by(step), made_by(step)
        if late := gone.intersection(reads):
            raise UncapturableError(f"values {late} of its recording are read too late")
        root = None if isinstance(step, Operation) else memory[reads[0]]
        if isinstance(step, Operation) and step.function in OVERWRITES and made:
            root = memory[reads[0]]
            if root in outside:
                raise UncapturableError(f"value {reads[0]} of its recording is not its to change")
            gone.update(alive.pop(root, ()))
        for value in made:
            memory[value] = value if root is None else root
            alive.setdefault(memory[value], []).append(value)
    if not gone.isdisjoint(tape.outputs):
        raise UncapturableError("a result of its recording was overwritten")
