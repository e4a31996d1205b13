"""Code that may take another way than when it was planned: what a plan trusts is watched anew.

A plan watches one run of one task. Where the code reads values, or draws what nothing draws again,
the next run may do what this one did not: write to a parameter, use a trainable tensor of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from fastmaml.engine.step.audit import Watch
from fastmaml.episodes.batch import Episodes
from fastmaml.gradients.base import Meta, detached

if TYPE_CHECKING:
    from fastmaml.engine.step.meta_step import Program


@contextlib.contextmanager
def careful(program: Program, meta: Meta, episodes: Episodes) -> Iterator[tuple[Meta, Episodes]]:
    """The arguments for a run; copies of both, watched, where `Program.uncertain`.

    Raises:
        ValueError: the code does what planning refuses; before there is a result. What gets no
            meta-gradient is noted, as only who learns minds (`check_reach`).
    """
    if not program.uncertain:
        yield meta, episodes
        return
    own = [x for x in tree_leaves(tuple(meta)) if isinstance(x, Tensor)]
    own += program.forward.frozen.values()
    episodes, (meta, parameters) = cloned(episodes), copies(program, meta)
    watch = Watch(episodes, own[0].device, own, parameters)
    try:
        with watch:
            yield meta, episodes
    except RuntimeError:
        watch.check_unchanged()  # what autograd says of it in its own words
        raise
    watch.check_unchanged()
    program.depends.unreached = program.depends.unreached or watch.unreached()
    if program.function is None and not program.gradient.steps_once:
        changed = program.depends.changed()
        why = drawing(watch.drew(), f"{changed}, which changes whenever it runs" if changed else "")
        check_steps(program.gradient, why)


def check_steps(gradient: object, drew: str) -> None:
    """Raise ValueError where steps that run again would not do the same."""
    if drew:
        raise ValueError(
            f"gradient={gradient} runs inner steps again, but {drew}: the meta-gradient would be "
            "wrong. Use gradient=Unrolled()."
        )


def drawing(drew: bool, restless: str) -> str:
    """Why running the model again may give other numbers; empty where it does not."""
    if drew:
        return (
            "the model draws random numbers in a way that cannot be drawn again (dropout and "
            "torch's common random functions can)"
        )
    return f"the model reads {restless}" if restless else ""


def cloned(episodes: Episodes) -> Episodes:
    """Copies, so that a model which writes to its inputs does no harm before that is noticed."""
    return Episodes(*(b.map(torch.clone) for b in (episodes.support, episodes.query)))


def copies(program: Program, meta: Meta) -> tuple[Meta, dict[str, Tensor]]:
    """The meta-parameters for a model that may write to them, and all of them that it may."""
    copied = tree_map_only(Tensor, torch.clone, detached(meta))
    return copied, {**copied.adapted, **copied.shared, **program.forward.frozen}
