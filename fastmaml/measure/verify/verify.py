"""`verify`: a meta-gradient beside that of a loop of the user's own."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fastmaml.gradients.base import smooth
from fastmaml.maml import MAML, PerTask
from fastmaml.measure.verify.calls import verified
from fastmaml.measure.verify.comparison import compared, notes
from fastmaml.measure.verify.result import Verification
from fastmaml.measure.verify.runs import Reference, of_fastmaml, of_reference, of_the_plain_loop


def verify(
    maml: MAML | PerTask,
    *data: Any,
    reference: Reference | None = None,
    tolerance: float | None = None,
    dtype: torch.dtype | None = torch.float64,
    **keywords: Any,
) -> Verification:
    """Compare ``maml(episodes)`` with a loop of your own, on copies; print and return the result.

    Or a function of one task, ``fast_adapt(*arguments)``, that ``@maml.per_task`` decorates: as it
    is called, behind a ``verify(``. Your model, its ``.grad``, modes and buffers, and the random
    state of torch and of Python stay as they are.

    Args:
        maml: as you will train it; its second call is what is compared, which is a replay where
            the meta-step is recorded. Or what ``@maml.per_task`` made of a function.
        data: one `Episodes`; of a per-task function, whatever it is called with. A few tasks are
            enough. Floating-point tensors are converted to `dtype`. A function at the end is the
            `reference`.
        reference: ``loop(model, *data, **keywords)``, given a copy of ``maml.module`` and the data,
            converted. It returns the mean query loss, a scalar that is connected to the parameters
            of that copy; or it calls ``backward()`` itself, and returns None or a loss that is
            detached. A loop with one more parameter named ``rates`` is given copies of what the
            rule learns, by name (``rates["lr"]`` of ``lr=nn.Parameter(...)``, ``rates["0.weight"]``
            of MetaSGD and LSLR), whose meta-gradients are compared, too. None: a plain loop over
            tasks in plain PyTorch, where learned rates are compared: with the rule of `maml`,
            `torch.func.functional_call` and `torch.autograd.grad`; of a per-task function,
            ``function(maml.clone(), *task)``.
        tolerance: the largest relative difference that counts as equal (`Difference`); None is the
            square root of the precision of `dtype`: 1.5e-8 for float64.
        dtype: what both compute in; None keeps the model's own, for models, losses or devices that
            cannot do float64, and for functions that refer to tensors or modules of their own.
        keywords: of a per-task function.

    Raises:
        ValueError: what cannot be compared: a loop whose loss is no connected scalar, or that used
            other parameters than those of the copy; a model that draws random numbers (dropout in
            training mode), which no two loops do alike; tensors of another dtype that the model,
            the loss or a function refers to; a per-task function that refers to trainable tensors
            (a learned loss, `maml` itself), which its own call refuses as well.

    Cost: three meta-steps, your loop, and three copies of the model.
    """
    if reference is None and data and callable(data[-1]):
        *data, reference = data  # type: ignore[assignment]  # a list does
    call = verified(maml, tuple(data), keywords)
    with _undisturbed(call.maml), _in_one_dtype(dtype):
        fast, slow = call.copy(dtype), call.copy(dtype)
        precise = _precision(fast.maml) ** 0.5
        ours, first_order = of_fastmaml(fast, precise)
        theirs = of_the_plain_loop(slow) if reference is None else of_reference(reference, slow)
    found = compared(ours, theirs, first_order, precise if tolerance is None else tolerance)
    found = replace(found, notes=tuple(notes(found, call, ours, theirs, first_order)))
    print(found)
    return found


@contextmanager
def _in_one_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Say why tensors do not fit together, where that may be the conversion's fault."""
    try:
        yield
    except RuntimeError as error:
        about = re.search(r"dtype|scalar type|Double|Float", str(error))
        if dtype is None or about is None or "inplace operation" in str(error):
            raise
        raise ValueError(
            f"verify converts model, data and rates to {str(dtype).removeprefix('torch.')}, and "
            f"that does not fit to what the model, the loss or a function refers to: {error}. Give "
            "dtype=None, which keeps the model's own with a coarser tolerance; or convert those "
            "tensors (class weights, a teacher, another module) yourself."
        ) from error


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
