"""What ``maml(episodes)`` returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from fastmaml.engine.base.trees import flatten, unflatten
from fastmaml.engine.step.meta_step import MetaResult
from fastmaml.losses import IGNORED, logits_of, masked

SAME_LOSS_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Losses of the same meta-step are nearer than this, relative to the largest, on any device."""


@dataclass(frozen=True)
class MetaOutput:
    """The result of a meta-step or of an evaluation.

    Attributes:
        loss: scalar, the mean of `losses`; ``loss.backward()`` adds the meta-gradient to ``.grad``.
        losses: ``[tasks]`` query losses after adaptation.
        outputs: a tree of ``[tasks, ...]``: what the adapted models return for the query inputs.
        targets: the query targets.

    `losses` and `outputs` may be used in a loss of your own: the meta-gradient is then computed
    anew for it, at the cost of a second meta-step; `loss` alone costs none.
    """

    loss: Tensor
    losses: Tensor
    outputs: Any
    targets: Any

    @property
    def accuracies(self) -> Tensor | None:
        """``[tasks]`` shares of right answers, where targets are classes; else None.

        They are where targets are integers ``[tasks, examples, ...]`` and outputs are one tensor
        ``[tasks, examples, classes, ...]`` of at least two classes, as cross-entropy takes them;
        or hold it as ``logits``. Examples with the label -100 are left out; a task that has no
        others has nan. For `losses.classification`'s targets of a mixture, that of each task among
        its own classes, and nan for a regression or where there are fewer outputs.
        """
        outputs, targets = logits_of(self.outputs), self.targets
        if outputs is not None and isinstance(targets, Mapping) and "classes" in targets:
            return _within_own_classes(outputs.detach(), targets)
        if outputs is None or not isinstance(targets, Tensor):
            return None
        if targets.is_floating_point() or outputs.ndim != targets.ndim + 1:
            return None
        if outputs.shape[2] < 2 or outputs.shape[:2] + outputs.shape[3:] != targets.shape:
            return None
        if outputs is not self.outputs and outputs.ndim > 3 and outputs.shape[:-1] == targets.shape:
            return None  # models of transformers have the classes of tokens in the last dimension
        return _share(outputs.detach().argmax(2) == targets, targets)

    @property
    def accuracy(self) -> Tensor | None:
        """Scalar: the mean of `accuracies` (of those that are no nan), or None."""
        accuracies = self.accuracies
        if accuracies is None or (isinstance(self.targets, Mapping) and accuracies.isnan().all()):
            return None
        return accuracies.nanmean()


def _within_own_classes(logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    """``[tasks]`` for tasks that differ in their number of classes."""
    classes = targets["classes"]
    right = _share(masked(logits, classes).argmax(-1) == targets["labels"], targets["labels"])
    own = classes.squeeze(-1)
    return torch.where((own == 1) | (own > logits.shape[-1]), torch.nan, right)


def _share(right: Tensor, labels: Tensor) -> Tensor:
    """``[tasks]``: how many are right of those whose label is not the one that is left out."""
    counts = labels != IGNORED
    return right.flatten(1).sum(1) / counts.flatten(1).sum(1)


# Wrappers such as DistributedDataParallel look for tensors in what a module returns.
register_pytree_node(
    MetaOutput,
    lambda out: ([out.loss, out.losses, out.outputs, out.targets], None),
    lambda children, _: MetaOutput(*children),
    serialized_type_name="fastmaml.MetaOutput",
)


def with_gradient(
    run: Callable[[tuple[Tensor | None, Tensor | None] | None, Any], MetaResult],
    parameters: Sequence[Tensor],
    targets: Any,
) -> tuple[MetaOutput, MetaResult]:
    """Run a meta-step and tie its result to `parameters` for autograd.

    Args:
        run: the meta-step, given the cotangents of the mean loss and of the losses
            ``[tasks]`` (None for the mean's alone) and of the outputs (None for zero);
            it must give the same numbers each time.
        parameters: the leaves of the meta-parameters, in the order of the meta-gradient's.
        targets: the query targets.
    """
    result = run(None, None)
    leaves, spec = flatten(result.outputs)
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    loss, losses, *tied = _MetaLoss.apply(run, result, tensors, *parameters)
    rest = iter(tied)
    outputs = unflatten([next(rest) if isinstance(x, Tensor) else x for x in leaves], spec)
    return MetaOutput(loss, losses, outputs, targets), result


class _MetaLoss(torch.autograd.Function):
    """Hands autograd a meta-gradient that the meta-step has already computed."""

    @staticmethod
    def forward(ctx: Any, run: Any, result: Any, outputs: Any, *parameters: Tensor) -> Any:
        """The mean loss, the losses and the outputs."""
        gradients = result.gradient.tensors()
        ctx.run, ctx.reached = run, [g is not None for g in gradients]
        ctx.losses = result.losses, result.losses._version
        ctx.save_for_backward(*parameters, *(g for g in gradients if g is not None))
        ctx.set_materialize_grads(False)
        ctx.is_tensor = [isinstance(x, Tensor) for x in flatten(result.outputs)[0]]
        # autograd wants tensors of its own to mark, not those that the result still holds
        outputs = [x.view_as(x) for x in outputs]
        ctx.mark_non_differentiable(
            *(x for x in outputs if not (x.is_floating_point() or x.is_complex()))
        )
        return (result.losses.mean(), result.losses.view_as(result.losses), *outputs)

    @staticmethod
    def backward(ctx: Any, loss: Any, losses: Any, *outputs: Any) -> Any:
        """The stored meta-gradient times the loss's cotangent, or a meta-step with all of them."""
        if torch.is_grad_enabled():  # so it is under create_graph=True alone
            raise RuntimeError(
                "the meta-gradient cannot be differentiated again: call backward() or "
                "torch.autograd.grad() without create_graph=True, or write the inner loop with "
                "maml.clone() and adapt(), whose graph has every derivative."
            )
        saved = ctx.saved_tensors[len(ctx.reached) :]
        if losses is None and all(g is None for g in outputs):
            found = iter(torch._foreach_mul(saved, loss))
            gradients = [next(found) if reached else None for reached in ctx.reached]
        else:
            gradients = _again(ctx, loss, losses, outputs)
        return (None, None, None, *gradients)


def _again(ctx: Any, loss: Any, losses: Any, outputs: Any) -> list[Tensor | None]:
    """The meta-gradient of a loss that uses more than the mean."""
    rest = iter(outputs)
    # No tree like the outputs: some, as those of transformers, drop entries that are None.
    cotangents = [next(rest) if tensor else None for tensor in ctx.is_tensor]
    result = ctx.run((loss, losses), cotangents)
    before, version = ctx.losses
    _check_same(before, version, result.losses)
    found: list[Tensor | None] = result.gradient.tensors()
    return found


def _check_same(losses: Tensor, version: int, again: Tensor) -> None:
    """The last of several nets: the meta-step that runs again has to be the one that ran."""
    if losses._version != version:
        return  # the user has written to them
    largest = float(losses.abs().nan_to_num(posinf=0).max())
    near = max(SAME_LOSS_TOLERANCE.get(losses.dtype, 1e-2) * largest, torch.finfo(losses.dtype).eps)
    if not torch.allclose(again, losses, rtol=0, atol=near, equal_nan=True):
        raise RuntimeError(
            "a loss of your own over out.losses or out.outputs runs the meta-step again, which now "
            f"gives {again.tolist()} and gave {losses.tolist()}: what the model or the loss reads "
            "has changed since maml(episodes). Call backward() first, or use out.loss."
        )
