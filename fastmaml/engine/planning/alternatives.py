"""Errors that name what PyTorch cannot differentiate, and the gradient method that needs less."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from functools import partial

import torch

from fastmaml.engine.base.attempt import attempted, is_out_of_memory
from fastmaml.engine.base.errors import MissingDerivative
from fastmaml.engine.planning.trials import runs
from fastmaml.engine.step.program import Call
from fastmaml.gradients import FirstOrder, GradientMethod, Unrolled
from fastmaml.gradients.base import leaves_of
from fastmaml.gradients.forward_check import WrongFunctions

_FORWARD = re.compile(r"forward AD with (?:aten::)?(\w+) that does not support it")
_REVERSE = re.compile(r"derivative for '?(?:aten::)?(\w+?)'? is not implemented")
"""What torch says where it has no derivative."""

_EXACT = "gradient=Unrolled() or gradient=Checkpointed()"


def check_method(call: Call, reads: str) -> None:
    """Raise `MissingDerivative` where the gradient method would be wrong for such a task.

    Args:
        call: of that task.
        reads: what reads values in it; empty if nothing does.
    """
    program, method = call.program, call.program.method
    if program.steps == 0:
        return
    if reads and method.tried_once:
        raise MissingDerivative(
            f"gradient={method} takes forward-mode derivatives, some of which PyTorch "
            "has wrong, so that they are tried out; but the model or the loss reads values "
            f"({reads}), and may call other functions the next time. Use {_EXACT}; or read none "
            "(torch.distributions: validate_args=False)."
        )
    # The formulas are what is in doubt: under autocast its rounding would hide or feign a fault.
    # What it is tried out against needs second derivatives, which PyTorch may not have.
    own = torch.autocast(call.seeds.device.type, enabled=False)
    with explaining(call), own:
        doubt = method.doubt(call.tried(1).loop(), call.meta)
    if doubt:
        raise MissingDerivative(
            f"gradient={method} would give a wrong meta-gradient: {doubt}. Use {_EXACT}: "
            "they differentiate backwards only."
        )


@contextlib.contextmanager
def explaining(call: Call) -> Iterator[None]:
    """Raise `MissingDerivative` where another gradient method runs what fails inside."""
    try:
        yield
    except RuntimeError as error:
        explain_missing(error, call)
        raise


def explain_missing(error: RuntimeError, call: Call) -> None:
    """Raise `MissingDerivative` where another gradient method runs what raised `error`.

    Args:
        error: what the program raised on one task.
        call: of that task.
    """
    # Those say what to do.
    if is_out_of_memory(error) or "gradient=" in str(error) or "backend=" in str(error):
        return
    said, asked = [str(error)], call.program.method
    if not asked.differentiates_query:
        return  # it was not asked for, and none asks less
    for method in _others(asked):
        other = call.by(method=method)
        refusal, _ = attempted(partial(runs, other, False))
        if not refusal:
            name = next(filter(None, map(named, said)), "")
            if not name and method.exact:
                name = _without_forward(other)
            message = _message(error, name, asked, method)
            raise MissingDerivative(message) from error
        said.append(refusal)


@contextlib.contextmanager
def naming() -> Iterator[None]:
    """Raise `MissingDerivative` where a user's own function of a task differentiates in vain."""
    try:
        yield
    except RuntimeError as error:
        name = named(str(error))
        if not name or isinstance(error, MissingDerivative):
            raise
        raise MissingDerivative(
            f"the per-task function's adapted learner needs second derivatives, and PyTorch has "
            f"none of {name}. Make the MAML with gradient=FirstOrder(), which needs none and is "
            f"approximate; or write it in operations that have them. PyTorch says: {error}"
        ) from error


def named(error: str) -> str:
    """The function that torch's error says has no derivative, as users call it; "" if it has none.

    Torch names the kernel of the pass that it cannot differentiate: ``_cdist_backward``.
    """
    found = _FORWARD.search(error) or _REVERSE.search(error)
    return re.sub(r"(_forward|_backward)$", "", found[1]).strip("_") if found else ""


def _others(method: GradientMethod) -> Iterator[GradientMethod]:
    """Methods that ask less of PyTorch, the exact one first."""
    if method.exact and method != Unrolled():
        yield Unrolled()
    if method != FirstOrder():
        yield FirstOrder()


def _without_forward(call: Call) -> str:
    """The functions that have no forward-mode derivative, found by trying each on its own."""
    loop, meta = call.tried(1).loop(), leaves_of(call.meta)
    with torch.enable_grad(), WrongFunctions() as tried:
        for step in loop.sets:
            loop.support_loss(step, loop.start(meta).parameters, meta.shared)
    return ", ".join(tried.names)


def _message(error: RuntimeError, name: str, asked: GradientMethod, other: GradientMethod) -> str:
    if other.exact:
        needed, ways = "forward-mode derivatives", f"{_EXACT}, which need none"
    else:
        needed, ways = (
            "second derivatives",
            (
                f"gradient={other}, which needs none and is approximate; or write it in operations "
                "that have them; or leave it out of what adapts (scope=)"
            ),
        )
    why = f"PyTorch has none of {name}" if name else "they fail for this model or its loss"
    return f"gradient={asked} needs {needed}, and {why}. Use {ways}. What failed: {error}"
