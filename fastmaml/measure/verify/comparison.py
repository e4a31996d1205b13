"""How far two meta-gradients are apart, and what a difference looks like."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from fastmaml.measure.verify.calls import Verified
from fastmaml.measure.verify.result import Difference, Verification
from fastmaml.measure.verify.runs import Run, rates_of


def compared(ours: Run, theirs: Run, first_order: Run, tolerance: float) -> Verification:
    """Both losses and meta-gradients, without notes."""
    loss = None
    if theirs.loss is not None and ours.loss is not None:
        loss = _difference("loss", ours.loss, theirs.loss, theirs.loss.abs())
    second_order = max(d.relative for d in _differences(first_order, ours))
    dtype = next(g.dtype for g in ours.gradient.values() if g is not None)
    return Verification(loss, _differences(ours, theirs), second_order, tolerance, dtype, ())


def notes(
    found: Verification, call: Verified, ours: Run, theirs: Run, first_order: Run
) -> Iterator[str]:
    """What to know about the comparison, and what its difference looks like."""
    maml, tasks = call.maml, call.tasks
    left_out = [n for n, g in ours.gradient.items() if g is not None and n not in theirs.gradient]
    if left_out:
        names = ", ".join(repr(n) for n in list(rates_of(maml))[:3])
        yield (
            f"not compared: {', '.join(left_out)}; give the loop a parameter rates, and let it use "
            f"what it holds by the names {names}"
        )
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
    elif (factor := _factor(ours, theirs, found.tolerance)) is not None and not _is_one(factor):
        why = ": does it add up tasks instead of averaging them?" if factor > 1 else ""
        yield f"the reference is {factor:.6g} times this meta-gradient ({tasks} tasks){why}"
    elif missing:
        yield f"the loop gave no gradient to {', '.join(missing[:5])}: is it detached there?"
    elif maml.batch_norm == "batch" and any(not m.training for m in norms):
        yield (
            "normalisation layers are in eval() mode: a plain loop uses their running statistics "
            'there, MAML the batch at hand; call .train() of them, or use batch_norm="module"'
        )
    elif _rounds_as_float32(found):
        yield (
            "a difference as float32 rounds: does the model, the loss or the loop compute in "
            "float32 (.float(), a cast, a tensor of its own)? Then take that out, or give "
            "tolerance=1e-5, or dtype=None"
        )
    elif found.loss is None or not found.loss.relative <= found.tolerance:
        yield "compare lr, steps, the loss function, its mean over tasks, and train() and eval()"
    else:
        yield "the losses agree, and so the inner steps: the difference is in their derivatives"


def _rounds_as_float32(found: Verification) -> bool:
    """Whether what was computed in float64 differs as numbers do that were float32 on the way."""
    limit = 100 * torch.finfo(torch.float32).eps
    rows = (*found.gradients, *(() if found.loss is None else (found.loss,)))
    return found.dtype == torch.float64 and all(row.relative < limit for row in rows)


def _factor(ours: Run, theirs: Run, tolerance: float) -> float | None:
    """What to multiply ours with to get theirs, if that is all."""
    pairs = list(_pairs(ours, theirs))
    square = sum(float((a * a).sum()) for _, a, _ in pairs)
    factor = sum(float((a * b).sum()) for _, a, b in pairs) / square if square else math.nan
    scaled = Run(None, {name: a * factor for name, a, _ in pairs})
    same = all(d.relative <= tolerance for d in _differences(scaled, theirs))
    return factor if same else None


def _is_one(factor: float) -> bool:
    """Whether the gradients are the same: then it is the loss that differs. NaN is no factor."""
    return not abs(factor - 1) > 1e-6


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
