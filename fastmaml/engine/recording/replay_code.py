"""A tape as a Python function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmaml.engine.base.sizes import Form
from fastmaml.engine.recording.memory_reuse import made_by, read_by
from fastmaml.engine.recording.tape import Operation, Ref, Tape

Replay = Callable[..., list[Tensor]]


def look(x: Tensor, size: Sequence[int], stride: Sequence[int], offset: int) -> Tensor:
    """The memory of `x` seen otherwise."""
    return torch.as_strided(x, size, stride, x.storage_offset() + offset)


def compiled(tape: Tape) -> Replay:
    """A Python function of the inputs that runs the tape and lets go of each value after its use.

    Call it with gradients disabled: it holds no graph. Its results are the caller's to change, so
    one that is an input or a constant is a copy.
    """
    code = _Code(tape)
    exec("\n".join(code.function(tape.steps)), code.scope)  # our own text: see `_Code`
    replay: Replay = code.scope["replay"]
    return replay


def part(tape: Tape, steps: Sequence[Any], given: Sequence[int], wanted: Sequence[int]) -> Replay:
    """A function of some values of a tape that takes these steps, and returns other values."""
    code = _Code(tape)
    code.kept = {*given, *wanted}
    names = [", ".join(code.names[v] for v in values) for values in (given, wanted)]
    lines = [f"def part({names[0] or '_'}):", *code.body(steps), f"    return [{names[1]}]"]
    exec("\n".join(lines), code.scope)  # our own text: see `_Code`
    found: Replay = code.scope["part"]
    return found


def compiled_for_sizes(
    tape: Tape, ahead: Sequence[bool], look_at: Callable[..., None]
) -> tuple[Callable[..., tuple[Replay, Replay]], list[Form]]:
    """A function of numbers that makes the same of a tape in which forms stand for numbers.

    Args:
        tape: its constants are of no other size at other sizes.
        ahead: for each step whether it runs once, before the first replay.
        look_at: called for every result of an operation with its size, strides and dtype.

    Returns:
        The function, which returns two replays, the first without `look_at`; and the forms of its
        arguments.
    """
    code = _Code(tape, look_at)
    first, later = ([s for s, x in zip(tape.steps, ahead, strict=True) if x is y] for y in _BOTH)
    code.kept.update(v for step in first for v in made_by(step))
    lines = [line for step in first for line in (code.line(step), *code.looks(step))]
    lines += [*code.function(later), *code.function(later, "tried"), "return replay, tried"]
    numbers = ", ".join(f"n{i}" for i in range(len(code.forms)))
    text = "\n".join([f"def made({numbers}):", *(f"    {line}" for line in lines)])
    exec(text, code.scope)  # our own text: see `_Code`
    made: Callable[..., tuple[Replay, Replay]] = code.scope["made"]
    return made, list(code.forms)


_BOTH = (True, False)


class _Code:
    """Python text of a tape: operations by number, values, numbers and other arguments by name."""

    def __init__(self, tape: Tape, look_at: Callable[..., None] | None = None) -> None:
        self.tape = tape
        self.scope: dict[str, Any] = {"look": look, "as_strided": torch.as_strided}
        self.scope["look_at"] = look_at
        self.names = [f"v{i}" for i in range(len(tape.owner))]
        self.forms: dict[Form, str] = {}
        for value, x in tape.constants.items():
            self.scope[self.names[value]] = x
        # Inputs are the caller's; constants stay.
        self.kept = {*tape.outputs, *tape.constants, *range(tape.inputs)}

    def function(self, steps: Sequence[Any], name: str = "replay") -> list[str]:
        """The lines of a function of the tape's inputs that takes these steps.

        Args:
            steps: of the tape.
            name: of the function; if it is "tried", results are looked at.
        """
        tape, names, own = self.tape, self.names, self.tape.outside()
        copied = {v for v in tape.outputs if tape.owner[v] in own}
        results = [f"{names[v]}.clone()" if v in copied else names[v] for v in tape.outputs]
        return [
            f"def {name}({', '.join(names[: tape.inputs])}):",
            *self.body(steps, name == "tried"),
            f"    return [{', '.join(results)}]",
        ]

    def body(self, steps: Sequence[Any], tried: bool = False) -> list[str]:
        """The lines of these steps, which let go of each value after its use."""
        last = {v: i for i, step in enumerate(steps) for v in (*made_by(step), *read_by(step))}
        lines = []
        for i, step in enumerate(steps):
            looks = self.looks(step) if tried else ()
            lines += [f"    {line}" for line in (self.line(step), *looks)]
            over = {v for v in (*made_by(step), *read_by(step)) if last[v] == i} - self.kept
            if over:
                lines.append(f"    del {', '.join(self.names[v] for v in sorted(over))}")
        return lines

    def line(self, step: Any) -> str:
        """The line of a step."""
        names, scope = self.names, self.scope
        if not isinstance(step, Operation):
            value, view = step
            source, size, stride = names[view.source], self.text(view.size), self.text(view.stride)
            if view.offset:
                call = f"look({source}, {size}, {stride}, {self.text(view.offset)})"
            else:
                call = f"as_strided({source}, {size}, {stride})"
            return f"{names[value]} = {call}"
        function = f"f{len(scope)}"
        scope[function] = step.function._op
        arguments = [self.text(x) for x in step.arguments]
        arguments += [f"{k}={self.text(x)}" for k, x in step.keywords.items()]
        call = f"{function}({', '.join(arguments)})"
        return f"{_targets(step.results, names)} = {call}" if step.made() else call

    def looks(self, step: Any) -> list[str]:
        """The lines that look at its results; a view is what it was asked to be."""
        if not isinstance(step, Operation):
            return []
        geometries = [(self.names[v], self.tape.geometry[v]) for v in made_by(step)]
        return [f"look_at({n}, {', '.join(map(self.text, g))})" for n, g in geometries]

    def text(self, x: Any) -> str:
        """An argument as Python text; whatever has none is put into the scope."""
        if isinstance(x, Ref):
            return self.names[x.value]
        if isinstance(x, Form):
            return self.forms.setdefault(x, f"n{len(self.forms)}")
        if isinstance(x, list):
            return f"[{', '.join(map(self.text, x))}]"
        if isinstance(x, tuple):
            return f"({''.join(f'{self.text(y)}, ' for y in x)})"
        if x is None or type(x) in (bool, int, str):
            return repr(x)
        name = f"c{len(self.scope)}"
        self.scope[name] = x
        return name


def _targets(results: Any, names: list[str]) -> str:
    if isinstance(results, tuple):
        return f"[{', '.join(_targets(r, names) for r in results)}]"
    return "_" if results is None else names[results]
