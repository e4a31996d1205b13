"""`bench`: time and memory of a meta-step over a grid of configurations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch.optim import Optimizer

from fastmaml._environment import describe_device, versions
from fastmaml.engine.derivatives.copying import deep_copy
from fastmaml.episodes.batch import Episodes
from fastmaml.gradients import FirstOrder, GradientMethod
from fastmaml.maml import MAML
from fastmaml.measure.bench.accuracy import Comparison, Learned, comparison
from fastmaml.measure.bench.batches import enough, opened
from fastmaml.measure.bench.configured import in_configuration, starts_rates_anew, undisturbed
from fastmaml.measure.bench.grid import METHODS, configurations
from fastmaml.measure.bench.measure import step_seconds
from fastmaml.measure.bench.measuring import Measuring, Progress
from fastmaml.measure.bench.sizes import bytes_of
from fastmaml.measure.bench.sweep import Sweep


def bench(
    maml: MAML,
    episodes: Episodes | Iterable[Episodes],
    *,
    methods: Sequence[GradientMethod] = METHODS,
    steps: Sequence[int] = (1, 2, 5),
    tasks: Sequence[int] | None = None,
    backends: Sequence[str | None] | None = None,
    executors: Sequence[str | None] | None = None,
    vs: Literal["first-order"] | None = None,
    budget: int | str | None = None,
    repeats: int = 9,
    seconds: float = 30.0,
    accuracy: int | None = None,
    test: Episodes | Iterable[Episodes] | None = None,
    test_episodes: int = 200,
    optimizer: Optimizer | None = None,
    title: str = "",
    progress: Progress = lambda line: None,
    changed: Callable[[Sweep], None] = lambda sweep: None,
) -> Sweep:
    """Measure what a meta-step costs, for every combination of what is given.

    Of each: the time of ``maml(episodes).loss.backward()``, median and quartiles; tasks a second;
    peak memory, of the first call and of later ones; how far its meta-gradient is from the exact
    one; and the time of the first call, recording included. What cannot run is a cell that says
    why: out of memory, refused with the cause, or left out, on the CPU, where the planner's
    estimate does not fit in what is free, as the operating system would end the process. Ctrl-C
    ends the sweep and keeps what is done; `changed` may write it down while it goes on.

    Everything runs on copies: your parameters, ``.grad``, modes, buffers and the random state of
    torch and of Python stay as they are. Episodes are taken from an iterable.

    Args:
        maml: your model, loss, rule and scope. What is not varied is as it is there.
        episodes: a meta-batch, or an iterable of them, of which the first are measured.
        methods: gradient methods.
        steps: inner steps.
        tasks: tasks of the meta-batch; None for as many as the first one has. More are drawn from
            the iterable; without one, tasks are repeated.
        backends: as of `MAML`, with None for its choice; None for that of `maml`.
        executors: likewise.
        vs: "first-order" adds that method, and the table of the exact ones against it.
        budget: bytes, or a text such as "8GB", for which ``str()`` says what fits; see
            `Sweep.fits`.
        repeats: turns of each configuration, taken in rounds on the CPU.
        seconds: that the rounds may take together; there are at least three.
        accuracy: with `vs`, so many meta-steps are trained with each, from the parameters of
            `maml` and on the same episodes, and evaluated on `test`.
        test: held-out episodes for `accuracy`.
        test_episodes: how many of them.
        optimizer: for `accuracy`, one with the same class and defaults; None for Adam(1e-3).
        title: of the tables.
        progress: called with a line on what is being measured.
        changed: called with what is done so far, after every cell and every round.

    Raises:
        ValueError: an argument that cannot be obeyed, named in the message.
        Exception: what your model or loss raises on one task with first order in plain PyTorch;
            this is tried first.

    Cost: for each configuration, planning three times, about five meta-steps and its turns; for
    each number of steps and tasks an exact meta-step in float64; the memory of one more model, and
    of another in float64. Not for choosing a method by itself: ``gradient=None`` does that without
    measuring.
    """
    _check(maml, vs, repeats, seconds, accuracy)
    size = None if budget is None else _bytes(budget)
    first, more = opened(episodes)
    wanted = configurations(maml, first.tasks, methods, steps, tasks, backends, executors, vs)
    whole, note = enough(first, more, wanted[-1].tasks)
    compared = None
    if accuracy is not None:
        compared = comparison(accuracy, more, test, test_episodes, optimizer)
    empty = Sweep(
        title=title,
        model=_described(maml),
        device=describe_device(next(maml.parameters()).device),
        versions=versions(),
        cells=(),
        vs=vs,
        budget=size,
        interrupted=True,
    )
    with undisturbed(maml):
        twin = deep_copy(maml)
        step_seconds(in_configuration(twin, FirstOrder(), wanted[0].steps), whole[:1])
        anew = sorted({c.steps for c in wanted if maml.rates and starts_rates_anew(twin, c.steps)})
        notes = [note] if note else []
        if anew:
            notes.append(f"learned rates begin as the rule says at K={anew}, where they are others")
        learned: list[Learned] = []

        def so_far() -> Sweep:
            said = (*measuring.exact.notes, *notes)
            cells = tuple(measuring.cells)
            return replace(empty, cells=cells, learned=tuple(learned), notes=said)

        measuring = Measuring(
            twin, whole, wanted, repeats, seconds, progress, lambda: changed(so_far())
        )
        try:
            measuring.run()
            for found in _learned(compared, twin, sorted({c.steps for c in wanted}), progress):
                learned.append(found)
                changed(so_far())
        except KeyboardInterrupt:
            return so_far()
    return replace(so_far(), interrupted=False)


def _learned(
    compared: Comparison | None, twin: MAML, steps: Iterable[int], progress: Progress
) -> Iterator[Learned]:
    for k in steps if compared is not None else ():
        assert compared is not None
        progress(
            f"meta-training with and without second order, {k} steps, {compared.iterations} times"
        )
        yield from compared.run(twin, k)


def _bytes(budget: int | str) -> int:
    try:
        return bytes_of(budget)
    except ValueError as error:
        raise ValueError(f"budget={budget!r}: {error}") from None


def _check(maml: Any, vs: Any, repeats: Any, seconds: Any, accuracy: int | None) -> None:
    if not isinstance(maml, MAML):
        raise ValueError(
            f"maml is a {type(maml).__name__}; give the fastmaml.MAML itself (of a wrapper such as "
            "DistributedDataParallel, its .module)."
        )
    for name, value in (("repeats", repeats), ("accuracy", accuracy)):
        optional = name != "repeats" and value is None
        if not optional and (type(value) is not int or value < 1):
            raise ValueError(f"{name}={value!r}: give a whole number of at least 1.")
    if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise ValueError(f"seconds={seconds!r}: give a positive number.")
    if accuracy is not None and vs is None:
        raise ValueError(f"accuracy={accuracy} needs vs='first-order': it is what is compared.")


def _described(maml: MAML) -> str:
    """Such as "Conv4, 28,901 parameters in float32"."""
    parameters = list(maml.parameters())
    count = sum(p.numel() for p in parameters)
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
    return f"{type(maml.module).__name__}, {count:,} parameters in {', '.join(dtypes)}"
