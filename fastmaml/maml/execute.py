"""The last stages of a meta-step: run it, tie it to autograd, and check what it gave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastmaml.engine.model.buffers import keep_buffers
from fastmaml.engine.model.inventory import Inventory
from fastmaml.engine.step.checks import check_finite, check_reached
from fastmaml.engine.step.program import Call, Executor, MetaResult
from fastmaml.engine.step.rerun_guard import RerunGuard
from fastmaml.maml.output import MetaOutput, with_gradient
from fastmaml.maml.settings import task_weights

if TYPE_CHECKING:
    from fastmaml.maml.maml import MAML


def execute(
    maml: MAML, held: Inventory, call: Call, executor: Executor, targets: Any
) -> tuple[MetaOutput, MetaResult]:
    """The result of a planned call, its losses and outputs tied to the meta-parameters."""
    same = RerunGuard(maml.module, call.data, held, call.program)

    def run(cotangents: tuple[Tensor | None, Tensor | None] | None, outputs: Any) -> MetaResult:
        weights = call.weights
        if cotangents is not None:
            if not call.program.repeatable:
                raise RuntimeError(
                    "a loss of your own over out.losses or out.outputs runs the meta-step again, "
                    "but the model draws or counts what cannot be had again: use out.loss."
                )
            weights = task_weights(cotangents, held.dtype, held.device, len(call.seeds))
        with maml._turns, same:
            return executor(call._replace(weights=weights, cotangents=outputs))

    return with_gradient(run, call.meta.tensors(), targets)


def check(maml: MAML, call: Call, result: MetaResult) -> None:
    """Raise where the result is none; else keep what it left in the model's buffers.

    Raises:
        ValueError: something trainable got no gradient, as was seen while it ran.
        NonFiniteLoss: a loss or the meta-gradient is not finite (with ``check_finite``).
    """
    check_reached(call.program)
    if maml.check_finite:
        check_finite(call, result)
    if result.buffers:
        keep_buffers(maml.module, result.buffers)
