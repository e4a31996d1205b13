"""Errors that say what is wrong with the user's data, model or losses, and what to do."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastmaml.engine.base.errors import NonFiniteLoss
from fastmaml.engine.step.data import TaskData, tensors_in
from fastmaml.engine.step.forward import call
from fastmaml.engine.step.inner_loop import InnerLoop
from fastmaml.engine.step.label_checks import Losses, check_labels, class_counts
from fastmaml.engine.step.meta_step import meta_step
from fastmaml.engine.step.program import Call, MetaResult, Program, tensors_of
from fastmaml.episodes.batch import Episodes
from fastmaml.gradients.base import Meta, detached
from fastmaml.losses import logits_of
from fastmaml.ops.coverage import all_finite


def check_reach(unreached: str, data: TaskData) -> None:
    """Raise ValueError where something trainable would get no gradient from a meta-step.

    Args:
        unreached: see `Program`.
        data: the tasks, whose tensors are to need none.
    """
    if unreached:
        raise ValueError(unreached)
    if not any(x.requires_grad for x in tensors_in(data)):
        return
    for name, tensors in data.named().items():
        if any(x.requires_grad for x in tensors):
            raise ValueError(
                f"the {name} requires a gradient, which a meta-step does not give: it reaches "
                "the parameters of this MAML's model alone. Make what computed these tensors a "
                "part of the model (scope= says what adapts; the rest is learned all the same), or "
                "detach() them."
            )


def explain_failure(error: Exception, model: nn.Module, losses: Losses, episodes: Episodes) -> None:
    """Raise a clearer error where the reason of `error` can be told; else return.

    Called when the model failed on the first task, run plainly.
    """
    floats = {p.dtype for p in model.parameters() if p.is_floating_point()}
    cast = torch.is_autocast_enabled(next(model.parameters()).device.type)
    named = {name: batch.inputs for name, batch in episodes.sets().items()}
    for name, x in ((name, x) for name, tree in named.items() for x in tensors_of(tree)):
        if floats and x.is_floating_point() and x.dtype not in floats and not cast:
            raise ValueError(
                f"{name}.inputs is {x.dtype} and the model {_names(floats)}: convert one of them, "
                f"for example with episodes.to({_names(floats)})."
            ) from error
    if isinstance(error, IndexError | RuntimeError):
        inputs = episodes[:1].support.map(lambda x: x.squeeze(0)).inputs
        buffers = {n: b.clone() for n, b in model.named_buffers()}  # the user's stay as they are
        with torch.no_grad():
            try:
                outputs = call(model, buffers, inputs)
            except (IndexError, RuntimeError):
                return  # the model itself fails: its own error, which the caller raises, says why
        logits = logits_of(outputs)
        if logits is not None:
            classes = class_counts(losses, logits.unsqueeze(0), episodes)
            check_labels(losses, classes, episodes)


def check_reached(program: Program) -> None:
    """The same of the meta-step that was just run, where runs are watched (`careful`)."""
    if program.depends.unreached:
        raise ValueError(program.depends.unreached)


def check_finite(call: Call, result: MetaResult) -> None:
    """Raise NonFiniteLoss, naming step and tasks, unless all losses and gradients are finite.

    ValueError, where labels that are no classes of the model's are the reason.
    """
    found = [x for x in (result.losses, *result.gradient.tensors()) if x is not None]
    if all_finite(found):
        return
    found = [torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in found]
    # The sum of a tensor is finite only if all of it is (or overflows, which the exact look below
    # tells apart); one number is read back from the device instead of one a tensor.
    if math.isfinite(torch.stack(_sums(found)).sum().item()):
        return
    if not result.losses.isfinite().all():
        if isinstance(call.data, Episodes):  # on a GPU labels are not looked at before each call
            given = call.program.forward.losses
            check_labels(given, class_counts(given, result.outputs, call.data), call.data)
        _raise_for_losses(call, result.losses)
    if not _finite(result.gradient):
        _raise_for_gradient(call)


def _sums(tensors: list[Tensor]) -> list[Tensor]:
    """Of each; of absolute values in one launch on a GPU, where launches are what they cost."""
    kinds = {(x.device.type, x.dtype) for x in tensors}
    if len(kinds) == 1 and tensors[0].device.type == "cuda":
        wide = torch.promote_types(tensors[0].dtype, torch.float32)
        return list(torch._foreach_norm(tensors, 1, dtype=wide))
    return [x.sum(dtype=torch.float32) for x in tensors]


def _finite(tree: Any) -> bool:
    return all(bool(x.isfinite().all()) for x in tensors_of(tree))


def _raise_for_gradient(call: Call) -> None:
    """Look at one task at a time, now that something is known to be wrong."""
    alone = [call.part(t, t + 1).tried(1) for t in range(len(call.seeds))]
    tasks = [t for t, one in enumerate(alone) if not _finite(meta_step(one).gradient)]
    raise NonFiniteLoss(
        f"The meta-gradient of task {tasks[0] if tasks else '?'} is NaN or infinite (so are those "
        f"of {max(len(tasks) - 1, 0)} other tasks) after {call.program.steps} inner steps, "
        "although every query loss is finite. No gradient was set. A derivative has no value "
        "somewhere on the way: look for square roots, norms, logarithms or divisions at zero in "
        "the model, the loss or the rule (torch.autograd.set_detect_anomaly names the operation), "
        "or lower the inner learning rate.",
        None,
        tasks,
    )


def _raise_for_losses(call: Call, losses: Tensor) -> None:
    tasks = (~losses.isfinite()).nonzero().flatten().tolist()
    first = tasks[0]
    if not call.program.method.runs_loop:
        others = f" (of {len(tasks)}: {str(tasks[:6])[1:-1]})" if len(tasks) > 1 else ""
        raise NonFiniteLoss(
            f"The query loss of task {first}{others} is {losses[first].item()}. "
            "Nothing was averaged in, and no gradient was set. Lower the inner learning rate, or "
            "look at that task's data.",
            None,
            tasks,
        )
    loop = call.part(first, first + 1).tried(1, every_step=True).loop()
    step, value = _first_bad_step(loop, call.meta)
    which = "support" if step < loop.steps else "query"
    when = f"at inner step {step}" if step < loop.steps else f"after {step} inner steps"
    others = f" (and of {len(tasks) - 1} other tasks: {tasks[1:6]})" if len(tasks) > 1 else ""
    raise NonFiniteLoss(
        f"The {which} loss of task {first}{others} is {value} {when}. Nothing was averaged in, and "
        "no gradient was set. Lower the inner learning rate or the number of steps, clip the inner "
        "gradient (rules.ClipNorm), or look at that task's data.",
        step,
        tasks,
    )


def _first_bad_step(loop: InnerLoop, meta: Meta) -> tuple[int, float]:
    """The first inner step whose support loss is not finite, or the number of steps."""
    with torch.no_grad():
        meta = detached(meta)
        carry = loop.start(meta)
        for step in range(loop.steps):
            value = loop.support_losses(step, carry.parameters, meta.shared).item()
            if not math.isfinite(value):
                return step, value
            carry = loop.step(step, carry, meta, create_graph=False)
        return loop.steps, loop.query(loop.steps, carry.parameters, meta.shared).losses.item()


def _names(dtypes: Any) -> str:
    return " and ".join(sorted(str(d) for d in dtypes))
