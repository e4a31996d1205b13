"""How far two meta-gradients are apart, and what a difference looks like."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from fastmaml.maml import MAML
from fastmaml.measure.verify.result import Difference, Verification
from fastmaml.measure.verify.runs import Run


def compared(ours: Run, theirs: Run, first_order: Run, tolerance: float) -> Verification:
    """Both losses and meta-gradients, without notes."""
    loss = None
    if theirs.loss is not None and ours.loss is not None:
        loss = _difference("loss", ours.loss, theirs.loss, theirs.loss.abs())
    second_order = max(d.relative for d in _differences(first_order, ours))
    dtype = next(g.dtype for g in ours.gradient.values() if g is not None)
    return Verification(loss, _differences(ours, theirs), second_order, tolerance, dtype, ())


def notes(
    found: Verification, maml: MAML, tasks: int, ours: Run, theirs: Run, first_order: Run
) -> Iterator[str]:
    """What to know about the comparison, and what its difference looks like."""
    left_out = [n for n, g in ours.gradient.items() if g is not None and n not in theirs.gradient]
    if left_out:
        yield f"not compared, as the loop has no such parameters: {', '.join(left_out)}"
    method = maml.gradient
    second_order = method is None or method.second_order(maml.steps)
    if found.second_order <= found.tolerance and second_order:
        yield "first order gives the same here: take a larger lr or more steps for a sharper check"
    if found.agrees:
        return
    norms = [m for m in maml.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    missing = [n for n, g in theirs.gradient.items() if g is None and ours.gradient[n] is not None]
    if max(d.relative for d in _differences(first_order, theirs)) <= found.tolerance:
        yield "the reference is the first-order meta-gradient: is create_graph=True missing there?"
    elif (factor := _factor(ours, theirs, found.tolerance)) is not None:
        why = ": does it add up tasks instead of averaging them?" if factor > 1 else ""
        yield f"the reference is {factor:.6g} times this meta-gradient ({tasks} tasks){why}"
    elif missing:
        yield f"the loop gave no gradient to {', '.join(missing[:5])}: is it detached there?"
    elif maml.batch_norm == "batch" and any(not m.training for m in norms):
        yield (
            "normalisation layers are in eval() mode: a plain loop uses their running statistics "
            'there, MAML the batch at hand; call .train() of them, or use batch_norm="module"'
        )
    elif found.loss is None or found.loss.relative > found.tolerance:
        yield "compare lr, steps, the loss function, its mean over tasks, and train() and eval()"
    else:
        yield "the losses agree, and so the inner steps: the difference is in their derivatives"


def _factor(ours: Run, theirs: Run, tolerance: float) -> float | None:
    """What to multiply ours with to get theirs, if that is all."""
    pairs = list(_pairs(ours, theirs))
    square = sum(float((a * a).sum()) for _, a, _ in pairs)
    factor = sum(float((a * b).sum()) for _, a, b in pairs) / square if square else math.nan
    scaled = Run(None, {name: a * factor for name, a, _ in pairs})
    same = all(d.relative <= tolerance for d in _differences(scaled, theirs))
    return factor if same else None


def _differences(ours: Run, theirs: Run) -> tuple[Difference, ...]:
    pairs = list(_pairs(ours, theirs))
    whole = torch.stack([b.abs().max() for _, _, b in pairs]).max()
    return tuple(_difference(name, a, b, whole) for name, a, b in pairs)


def _difference(name: str, a: Tensor, b: Tensor, unit: Tensor) -> Difference:
    absolute = float((a - b).abs().max())
    relative = absolute / float(unit) if unit != 0 else (math.inf if absolute else 0.0)
    return Difference(name, float(b.abs().max()), absolute, relative)


def _pairs(ours: Run, theirs: Run) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Both gradients of each parameter; zero where nothing reached one."""
    for name, b in theirs.gradient.items():
        a = ours.gradient[name]
        if a is not None and b is not None:
            yield name, a, b
        elif a is not None:
            yield name, a, torch.zeros_like(a)
        elif b is not None:
            yield name, torch.zeros_like(b), b
