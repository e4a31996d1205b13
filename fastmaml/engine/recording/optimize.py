"""A recorded function made smaller, and then a plain Python function of operations alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from fastmaml.engine.recording.tape import Operation, Ref, Tape, View

Replay = Callable[..., list[Tensor]]


def cleaned(tape: Tape, in_place: bool = True, known: frozenset[int] = frozenset()) -> Tape:
    """The same outputs to the last bit, from fewer steps.

    What nothing uses goes (the random keys of a model without dropout, say), equal calls are made
    once, and what depends on no input is computed now. Memory that is written to is left alone.

    Args:
        tape: is changed.
        in_place: let sums and products overwrite operands that nothing needs any more.
        known: constants whose numbers will not change, either.
    """
    _look_through_empty_sums(tape)
    _share_equal_steps(tape)
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


def _compute_constants(tape: Tape, known: frozenset[int]) -> None:
    """What is made of nothing but numbers is the same at every replay."""
    values: dict[int, Tensor] = {v: tape.constants[v] for v in known}
    kept = []
    for step in tape.steps:
        touched = {tape.owner[v] for v in (*read_by(step), *made_by(step))}
        if touched & tape.written or not all(v in values for v in read_by(step)):
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


def look(x: Tensor, size: Sequence[int], stride: Sequence[int], offset: int) -> Tensor:
    """The memory of `x` seen otherwise."""
    return torch.as_strided(x, size, stride, x.storage_offset() + offset)


def compiled(tape: Tape) -> Replay:
    """A Python function of the inputs that runs the tape and lets go of each value after its use.

    Call it with gradients disabled: it holds no graph. Its results are the caller's to change, so
    one that is an input or a constant is a copy.
    """
    scope: dict[str, Any] = {"look": look, "as_strided": torch.as_strided}
    names = [f"v{i}" for i in range(len(tape.owner))]
    for value, x in tape.constants.items():
        scope[names[value]] = x
    last = {v: i for i, step in enumerate(tape.steps) for v in (*made_by(step), *read_by(step))}
    # Inputs are the caller's; constants stay.
    kept = {*tape.outputs, *tape.constants, *range(tape.inputs)}
    lines = [f"def replay({', '.join(names[: tape.inputs])}):"]
    for i, step in enumerate(tape.steps):
        lines.append("    " + _line(step, names, scope))
        over = [v for v in {*made_by(step), *read_by(step)} if last[v] == i and v not in kept]
        if over:
            lines.append(f"    del {', '.join(names[v] for v in sorted(over))}")
    own = tape.outside()
    results = [f"{names[v]}.clone()" if tape.owner[v] in own else names[v] for v in tape.outputs]
    lines.append(f"    return [{', '.join(results)}]")
    exec("\n".join(lines), scope)  # our own text: operations by number, arguments by name
    replay: Replay = scope["replay"]
    return replay


def _line(step: Any, names: list[str], scope: dict[str, Any]) -> str:
    if not isinstance(step, Operation):
        value, view = step
        return f"{names[value]} = {_viewed(view, names)}"
    function = f"f{len(scope)}"
    scope[function] = step.function._op
    arguments = [_text(x, names, scope) for x in step.arguments]
    arguments += [f"{k}={_text(x, names, scope)}" for k, x in step.keywords.items()]
    call = f"{function}({', '.join(arguments)})"
    return f"{_targets(step.results, names)} = {call}" if step.made() else call


def _targets(results: Any, names: list[str]) -> str:
    if isinstance(results, tuple):
        return f"[{', '.join(_targets(r, names) for r in results)}]"
    return "_" if results is None else names[results]


def _viewed(view: View, names: list[str]) -> str:
    if view.offset:
        return f"look({names[view.source]}, {view.size}, {view.stride}, {view.offset})"
    return f"as_strided({names[view.source]}, {view.size}, {view.stride})"


def _text(x: Any, names: list[str], scope: dict[str, Any]) -> str:
    """An argument as Python text; whatever has none is put into the scope."""
    if isinstance(x, Ref):
        return names[x.value]
    if isinstance(x, list):
        return f"[{', '.join(_text(y, names, scope) for y in x)}]"
    if x is None or type(x) in (bool, int, str):
        return repr(x)
    name = f"c{len(scope)}"
    scope[name] = x
    return name
