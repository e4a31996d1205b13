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

from fastmaml.engine.step.audit import Audit
from fastmaml.engine.step.data import mapped, tensors_in
from fastmaml.gradients.base import detached

if TYPE_CHECKING:
    from fastmaml.engine.step.program import Call


@contextlib.contextmanager
def careful(call: Call) -> Iterator[Call]:
    """The call for a run; of copies, watched, where `Program.uncertain`.

    Raises:
        ValueError: the code does what planning refuses; before there is a result. What gets no
            meta-gradient is noted, as only who learns minds (`check_reach`).
    """
    program = call.program
    if not program.uncertain:
        yield call
        return
    copied, audit = watched(call)
    try:
        with audit:
            yield copied
    except RuntimeError:
        audit.check_unchanged()  # what autograd says of it in its own words
        raise
    audit.check_unchanged()
    program.depends.unreached = program.depends.unreached or audit.unreached()
    if not program.method.steps_once:
        changed = program.depends.changed()
        why = drawing(audit.drew(), f"{changed}, which changes whenever it runs" if changed else "")
        check_steps(program.method, why)


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


def watched(call: Call) -> tuple[Call, Audit]:
    """The same of copies, which a model may write to, and what notices that it does."""
    program, meta = call.program, call.meta
    own = [x for x in tree_leaves(tuple(meta)) if isinstance(x, Tensor)]
    own += program.forward.frozen.values()  # among them a task's own head, which may be trainable
    copied = call._replace(
        meta=tree_map_only(Tensor, torch.clone, detached(meta)),
        data=mapped(call.data, torch.clone),
    )
    parameters = {**copied.meta.adapted, **copied.meta.shared, **program.forward.frozen}
    return copied, Audit(tensors_in(copied.data), call.seeds.device, own, parameters)
