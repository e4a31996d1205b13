"""Trying a model out: on which backend it runs, and whether vmap can batch its tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastmaml.engine.base.attempt import attempted, caught, in_a_line, is_out_of_memory
from fastmaml.engine.guards.sight import Sight
from fastmaml.engine.step.meta_step import MetaResult, Program, meta_step
from fastmaml.episodes.batch import Episodes
from fastmaml.gradients.base import Meta

T = TypeVar("T")


def run(program: Program, meta: Meta, episodes: Episodes, seeds: Tensor) -> MetaResult:
    """The meta-step."""
    weights = torch.full((len(seeds),), 1.0, device=seeds.device)
    return meta_step(program, meta, episodes, seeds, weights, [0.0] * program.steps + [1.0])


def runs(
    program: Program, meta: Meta, episodes: Episodes, seeds: Tensor, fixed_backend: bool
) -> tuple[Program, Any, str]:
    """The program on a backend on which it runs, its outputs, and why another backend.

    Raises:
        Exception: whatever the model raises in plain PyTorch, or on a backend that is fixed.
    """
    try:
        return program, run(program, meta, episodes, seeds).outputs, ""
    except Exception as error:
        plain = program.forward.backend == "reference"
        if fixed_backend or plain or is_out_of_memory(error):
            raise
        why = f", as {program.forward.backend} cannot run it: {in_a_line(error)}"
    # Plain PyTorch then runs it, or raises what is wrong with it in its own words.
    program = _on_reference(program)
    return program, run(program, meta, episodes, seeds).outputs, why


def batches(
    alone: Program,
    meta: Meta,
    episodes: Episodes,
    seeds: Tensor,
    fixed_backend: bool,
    plainly: Sight,
    shapes: str,
    fuses: bool,
    watched: Callable[[Program], T] | None = None,
) -> tuple[Program, str, str, T | None]:
    """The program on a backend that batches tasks, if one does; why none; why another backend.

    Args:
        alone: runs on one task.
        meta: the meta-parameters.
        episodes: two tasks, or the only one.
        seeds: their seeds.
        fixed_backend: try no other one.
        plainly: of a run of one task.
        shapes: what gave a tensor a shape that depends on values there: that two tasks agree says
            nothing of others.
        fuses: as `TaskForward.fuses`, as the tasks will run.
        watched: another way to run two tasks, whose result is the last one returned, or None if
            it failed.
    """
    if len(seeds) == 1:
        return alone, "", "", None
    first = ""
    for program in (alone, _on_reference(alone)):
        forward = replace(program.forward, batched=True, fuses=fuses)
        both = replace(program, chunk=2, forward=forward)
        with Sight() as sight:
            refusal, _ = attempted(partial(run, both, meta, episodes, seeds))
        refusal = refusal or _caught(sight, plainly)
        if shapes:
            refusal = refusal or f"the shape of what {shapes} returns depends on values"
        if not refusal:
            # Apart: PyTorch may take other ways where its operations are watched.
            found = None if watched is None else attempted(partial(watched, both))[1]
            why = f", as {alone.forward.backend} cannot batch it: {first}" * bool(first)
            return program, "", why, found
        first = first or refusal
        if fixed_backend or program.forward.backend == "reference":
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
