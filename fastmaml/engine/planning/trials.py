"""Trying a model out: on which backend it runs, and whether vmap can batch its tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from fastmaml.engine.base.attempt import attempted, caught, in_a_line, is_out_of_memory
from fastmaml.engine.guards.sight import Sight
from fastmaml.engine.planning.plan import Asked
from fastmaml.engine.step.meta_step import meta_step
from fastmaml.engine.step.program import Call, MetaResult, Program

T = TypeVar("T")


def run(call: Call) -> MetaResult:
    """The meta-step, each task with a weight of 1."""
    return meta_step(call.tried(len(call.seeds)))


def runs(call: Call, fixed_backend: bool) -> tuple[Program, Any, str]:
    """The program on a backend on which it runs, its outputs, and why another backend.

    Raises:
        Exception: whatever the model raises in plain PyTorch, or on a backend that is fixed.
    """
    program = call.program
    try:
        return program, run(call).outputs, ""
    except Exception as error:
        plain = program.forward.backend == "reference"
        if fixed_backend or plain or is_out_of_memory(error):
            raise
        why = f", as {program.forward.backend} cannot run it: {in_a_line(error)}"
    # Plain PyTorch then runs it, or raises what is wrong with it in its own words.
    program = _on_reference(program)
    return program, run(call._replace(program=program)).outputs, why


def batches(
    call: Call,
    asked: Asked,
    plainly: Sight,
    shapes: str,
    watched: Callable[[Program], T] | None = None,
) -> tuple[Program, str, str, T | None]:
    """The program on a backend that batches tasks, if one does; why none; why another backend.

    Args:
        call: of two tasks, or the only one; its program runs on one.
        asked: whether the backend is fixed, and whether recordings will run.
        plainly: of a run of one task.
        shapes: what gave a tensor a shape that depends on values there: that two tasks agree says
            nothing of others.
        watched: another way to run two tasks, whose result is the last one returned, or None if
            it failed.
    """
    alone = call.program
    if len(call.seeds) == 1:
        return alone, "", "", None
    first = ""
    for program in (alone, _on_reference(alone)):
        forward = replace(program.forward, batched=True, fuses=asked.lanes > 0)
        both = replace(program, chunk=2, forward=forward)
        with Sight() as sight:
            refusal, _ = attempted(partial(run, call._replace(program=both)))
        refusal = refusal or _caught(sight, plainly)
        if shapes:
            refusal = refusal or f"the shape of what {shapes} returns depends on values"
        if not refusal:
            # Apart: PyTorch may take other ways where its operations are watched.
            found = None if watched is None else attempted(partial(watched, both))[1]
            why = f", as {alone.forward.backend} cannot batch it: {first}" * bool(first)
            return program, "", why, found
        first = first or refusal
        if asked.fixed_backend or program.forward.backend == "reference":
            break
    return alone, first, "", None


def _caught(batched: Sight, plainly: Sight) -> str:
    """About an exception that only vmap raises, after which the user's code went on."""
    found = next(iter(batched.raised - plainly.raised), None)
    if found is None:
        return ""
    return caught(*found)


def _on_reference(program: Program) -> Program:
    return replace(program, forward=replace(program.forward, backend="reference"))
