"""Recordings as programs of the native module: no Python while they run, or little.

Our own kernels are called past the dispatcher, sums and products go over numbers in memory, views
cost no call of Python's, and the interpreter's lock is not held, so that chunks of tasks run beside
each other. What the module cannot call is Python's: a program calls it back. The order of
operations, and every bit, is that of the Python replay, and so is when a value's memory goes.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from fastmaml.engine.recording.memory_reuse import OVERWRITES, made_by, read_by
from fastmaml.engine.recording.native_steps import DTYPES, INTEGER, TENSORS, Encoder, renamed
from fastmaml.engine.recording.replay_code import Replay, compiled, part
from fastmaml.engine.recording.tape import Operation, Tape
from fastmaml.ops.coverage import native_programs

LEAST_STEPS = 4
"""Fewer operations between two of Python's are Python's, too."""

LEAST_SHARE = 3
"""So many operations have to be native for each call back, which costs as much as they save."""

_REFUSED = "a program takes", "of a program has"
"""What is said of tensors that a program is not for, or that a first run did not expect."""

_UNHEARD = "fastmaml::call_back failed"
"""Where no error of `_guarded` is known. Before its first line hardly anything but a signal's
handler raises, and what that raises, a KeyboardInterrupt as a rule, is lost in the module."""


class Group(NamedTuple):
    """Steps in a row: one that is native, with its code, or some that are Python's."""

    steps: list[Any]
    code: tuple[Any, ...] | None


def natively(tape: Tape) -> Program | None:
    """The replay of a tape (see `compiled`) in the native module; None where that gains nothing."""
    module = native_programs()
    if module is None or any(g.dtype not in DTYPES for g in tape.geometry):
        return None
    groups = grouped(tape, module)
    native = sum(isinstance(g.steps[0], Operation) for g in groups if g.code is not None)
    backs = sum(g.code is None for g in groups)
    if native < max(LEAST_STEPS, LEAST_SHARE * backs):
        return None
    return Program(tape, groups, module)


def grouped(tape: Tape, module: Any) -> list[Group]:
    """The steps in order, each native one by itself."""
    encoder = Encoder(tape, module)
    codes = [encoder.step(step) for step in tape.steps]
    found: list[Group] = []
    begin = 0
    for native, run in itertools.groupby(codes, lambda code: code is not None):
        pairs = list(zip(tape.steps[begin:], run, strict=False))
        begin += len(pairs)
        few = sum(isinstance(step, Operation) for step, _ in pairs) < LEAST_STEPS
        if native and not (few and begin < len(codes) and found):
            found += [Group([step], code) for step, code in pairs]
        elif found and found[-1].code is None:
            found[-1].steps.extend(step for step, _ in pairs)
        else:
            found.append(Group([step for step, _ in pairs], None))
    return found


@final
class Program:
    """A tape in the native module.

    Args:
        tape: a cleaned one.
        groups: its steps.
        module: the native one.
    """

    def __init__(self, tape: Tape, groups: Sequence[Group], module: Any) -> None:
        self._tape = tape
        self._constants = tuple(tape.constants.values())
        inputs = [*range(tape.inputs), *tape.constants]
        touched = [_touched(g.steps) for g in groups]
        last = {v: i for i, values in enumerate(touched) for v in values}
        names = {v: i for i, v in enumerate(dict.fromkeys([*inputs, *last, *tape.outputs]))}
        stay = {*inputs, *tape.outputs}
        last |= dict.fromkeys(tape.outputs, len(groups))
        self._failed: list[BaseException] = []
        own, steps = [], []
        for i, group in enumerate(groups):
            code = group.code
            if code is None:
                later = [v for v in touched[i] if last[v] > i]
                code, number = self._back(tape, group.steps, later)
                own.append(number)
            over = [names[v] for v in touched[i] if last[v] == i and v not in stay]
            steps.append((*renamed(code, names), over))
        geometries, owners = [tape.geometry[v] for v in names], _owners(tape)
        values = [
            (g.size, g.stride, DTYPES[g.dtype], g.reach(), names.get(owners[v], i))
            for i, (v, g) in enumerate(zip(names, geometries, strict=True))
        ]
        of = ([names[v] for v in vs] for vs in (inputs, tape.outputs))
        self.number = module.make_program(values, *of, steps)
        weakref.finalize(self, _drop, module, self.number, own)
        outside = tape.outside()
        self._copied = [i for i, v in enumerate(tape.outputs) if tape.owner[v] in outside]
        self._run = torch.ops.fastmaml.replay.default._op

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """The results, which are the caller's to change."""
        try:
            found: list[Tensor] = self._run(self.number, (*tensors, *self._constants))
        except RuntimeError as error:
            if self._failed:  # a call back, whose error is the better one
                raise self._failed.pop() from None
            if _UNHEARD in str(error):
                raise KeyboardInterrupt("a signal in a recorded meta-step") from None
            if not any(x in str(error) for x in _REFUSED):
                compiled(self._tape)(*tensors)  # what PyTorch says is lost in the module: once more
            raise
        for i in self._copied:
            found[i] = found[i].clone()
        return found

    def _back(self, tape: Tape, steps: list[Any], later: Sequence[int]) -> tuple[Any, int]:
        """The code of Python's steps, and the number by which they are called.

        Args:
            tape: whose they are.
            steps: in a row.
            later: values of theirs that are read afterwards.
        """
        made = {v for step in steps for v in made_by(step)}
        given = [v for v in _touched(steps) if v not in made]
        wanted = [v for v in later if v in made]
        run, number = part(tape, steps, given, wanted), next(_NUMBERS)
        _BACK[number] = functools.partial(_guarded, run, self._failed)
        _library()
        # The dispatcher looks for tensors; a step that is given none gets one that it leaves alone.
        arguments = [(INTEGER, False, number), (TENSORS, False, given or [0])]
        inside = _bytes_inside(tape, steps, set(wanted))
        return ("call", "fastmaml::call_back", "", arguments, wanted, True, inside), number


def _owners(tape: Tape) -> dict[int, int]:
    """For each value the one in whose memory it lies, through views and what is overwritten."""
    owners = {v: v for v in (*range(tape.inputs), *tape.constants)}
    for step in tape.steps:
        over = isinstance(step, Operation) and step.function in OVERWRITES
        for value in made_by(step):
            inside = read_by(step)[0] if over else tape.owner[value]
            owners[value] = owners.get(inside, value)
    return owners


def _touched(steps: Sequence[Any]) -> list[int]:
    every = ((*read_by(step), *made_by(step)) for step in steps)
    return list(dict.fromkeys(itertools.chain.from_iterable(every)))


def _bytes_inside(tape: Tape, steps: Sequence[Any], wanted: set[int]) -> int:
    """The most that these steps have alive of what they make."""
    owner = tape.owner
    last = {owner[v]: i for i, step in enumerate(steps) for v in (*read_by(step), *made_by(step))}
    stay, sizes, most = {owner[v] for v in wanted}, dict[int, int](), 0
    for i, step in enumerate(steps):
        if isinstance(step, Operation):
            sizes.update({v: tape.geometry[v].reach() for v in made_by(step) if owner[v] == v})
        most = max(most, sum(sizes.values()))
        sizes = {v: n for v, n in sizes.items() if last[v] > i or v in stay}
    return most


# ------------------------------------------------------------------ what is called back

_BACK: dict[int, Callable[[list[Tensor]], list[Tensor]]] = {}
"""By number: an operation of PyTorch's takes no function."""

_NUMBERS = itertools.count()


def _guarded(run: Replay, failed: list[BaseException], given: list[Tensor]) -> list[Tensor]:
    """Call Python's steps; on the way through the module an error would lose what it says."""
    try:
        return run(*given)
    except BaseException as error:
        failed[:] = [error]
        raise


def _call_back(number: int, given: list[Tensor]) -> list[Tensor]:
    return _BACK[number](given)


@functools.cache
def _library() -> torch.library.Library:
    found = torch.library.Library("fastmaml", "FRAGMENT")
    found.define("call_back(int number, Tensor[] given) -> Tensor[]")
    found.impl("call_back", _call_back, "CompositeExplicitAutograd")
    return found


def _drop(module: Any, number: int, own: Sequence[int]) -> None:
    module.drop_program(number)
    for back in own:
        del _BACK[back]
