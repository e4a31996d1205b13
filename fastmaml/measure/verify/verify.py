"""`verify`: a meta-gradient beside that of a loop of the user's own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from fastmaml.engine.derivatives.copying import deep_copy
from fastmaml.episodes.batch import Episodes
from fastmaml.gradients.base import smooth
from fastmaml.maml import MAML
from fastmaml.measure.verify.comparison import compared, notes
from fastmaml.measure.verify.plain_loop import of_the_plain_loop
from fastmaml.measure.verify.result import Verification
from fastmaml.measure.verify.runs import Reference, of_fastmaml, of_reference


def verify(
    maml: MAML,
    episodes: Episodes,
    reference: Reference | None = None,
    *,
    tolerance: float | None = None,
    dtype: torch.dtype | None = torch.float64,
) -> Verification:
    """Compare ``maml(episodes)`` with a loop of your own, on copies; print and return the result.

    Your model, its ``.grad``, modes and buffers, and the random state of torch and of Python stay
    as they are.

    Args:
        maml: as you will train it; its second call is what is compared, which is a replay where
            the meta-step is recorded.
        episodes: a few tasks are enough. Floating-point tensors are converted to `dtype`.
        reference: ``loop(model, episodes)``, given a copy of ``maml.module``. It returns the mean
            query loss, a scalar that is connected to the parameters of that copy; or it calls
            ``backward()`` itself, and returns None or a loss that is detached. None: a plain loop
            over tasks, with `torch.func.functional_call`, `torch.autograd.grad` and the rule of
            `maml`, where learned rates are compared too.
        tolerance: the largest relative difference that counts as equal (`Difference`); None is the
            square root of the precision of `dtype`: 1.5e-8 for float64.
        dtype: what both compute in; None keeps the model's own, for models, losses or devices that
            cannot do float64.

    Raises:
        ValueError: what cannot be compared: a loop whose loss is no connected scalar, or that used
            other parameters than those of the copy; a model that draws random numbers (dropout in
            training mode), which no two loops do alike.

    Cost: three meta-steps, your loop, and three copies of the model.
    """
    if not isinstance(maml, MAML):
        raise ValueError(
            f"maml is a {type(maml).__name__}; give the fastmaml.MAML itself (of a wrapper such as "
            "DistributedDataParallel, its .module)."
        )
    with _undisturbed(maml):
        fast = deep_copy(maml)
        slow = deep_copy(maml)
        if dtype is not None:
            fast, slow, episodes = fast.to(dtype), slow.to(dtype), episodes.to(dtype)
        precise = _precision(fast) ** 0.5
        ours, first_order = of_fastmaml(fast, episodes, precise)
        if reference is None:
            theirs = of_the_plain_loop(slow, episodes)
        else:
            theirs = of_reference(reference, slow.module, episodes)
    found = compared(ours, theirs, first_order, precise if tolerance is None else tolerance)
    said = notes(found, maml, episodes.tasks, ours, theirs, first_order)
    found = replace(found, notes=tuple(said))
    print(found)
    return found


@contextmanager
def _undisturbed(maml: MAML) -> Iterator[None]:
    """Put back the gradients and the random state, whatever happens in between."""
    gradients = [(p, p.grad) for p in maml.parameters()]
    state = random.getstate()
    devices = {p.device for p in maml.parameters() if p.device.type == "cuda"}
    for p, _ in gradients:
        p.grad = None
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(state)
        for p, gradient in gradients:
            p.grad = gradient


def _precision(model: nn.Module) -> float:
    """Of the model's coarsest floating-point numbers."""
    return max(torch.finfo(p.dtype).eps for p in model.parameters() if smooth(p))
