"""`mamlpp`: MAML++'s inner loop, whole, in one call."""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastmaml.engine.model.scope import AllBut
from fastmaml.engine.step.forward import Loss
from fastmaml.maml.maml import MAML
from fastmaml.models.per_step import PerStep
from fastmaml.models.per_step_norms import per_step_batch_norm
from fastmaml.rules import LSLR


def mamlpp(
    model: nn.Module,
    lr: float = 0.1,
    steps: int = 5,
    loss: Loss = F.cross_entropy,
    **options: Any,
) -> MAML:
    """A `MAML` with the inner loop of MAML++ (Antoniou et al., "How to train your MAML", 2019).

    Inner rates that are learned for each tensor and step (`rules.LSLR`), and BatchNorm with a
    weight and a bias for each step (`models.PerStepBatchNorm2d`) that are meta-learned and do not
    adapt, as in the paper. The rest of MAML++ belongs to the outer loop: multi-step loss,
    derivative-order annealing and the cosine schedule are `LoopConfig.mamlpp`, or ``step_weights``
    and ``gradient`` of ``maml(episodes)`` in a loop of your own. Not for policies, whose outer loop
    is another one.

    Args:
        model: as for `MAML`. It is copied: ``maml.module`` is another one, with other BatchNorm
            layers, and the optimizer is to get ``maml.parameters()``. Without BatchNorm layers it
            is copied as it is.
        lr: what every inner rate starts from; the paper has 0.1 for Omniglot, 0.01 for
            mini-ImageNet.
        steps: inner steps.
        loss: ``loss(output, targets)``, a scalar for one task.
        options: of `MAML`, but for `rule`; a `scope` of your own is obeyed.

    Raises:
        ValueError: `rule` is given; BatchNorm layers of a kind that has no per-step one.

    Cost: as ``MAML(model, rule=LSLR(lr), steps=steps)``; per-step rows add no pass.

    Examples:
        >>> maml = mamlpp(fm.models.conv4(5), steps=5)
        >>> config = fm.LoopConfig.mamlpp(iterations=1000)
        >>> fm.MetaTrainer(maml, fm.episodes.omniglot(), config=config).fit()
    """
    if "rule" in options:
        raise ValueError(
            f"rule={options['rule']!r}: mamlpp learns the rates of each tensor and step. For "
            "another rule: MAML(fm.models.per_step_batch_norm(model, steps), rule=..., steps=...)."
        )
    model = with_per_step_norms(model, steps)
    options.setdefault("scope", all_but_norms(model))
    return MAML(model, rule=LSLR(lr), steps=steps, loss=loss, **options)


def with_per_step_norms(model: nn.Module, steps: int) -> nn.Module:
    """A copy with per-step BatchNorm layers in the places of its own, if there are any."""
    if any(isinstance(m, _BatchNorm) and m.affine for m in model.modules()):
        return per_step_batch_norm(model, steps)
    return copy.deepcopy(model)


def all_but_norms(model: nn.Module) -> AllBut:
    """The scope of MAML++: what is of no step's own and of no BatchNorm layer adapts."""
    kinds = PerStep, _BatchNorm
    owned = [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, kinds)
        for name, _ in module.named_parameters(recurse=False)
    ]
    return AllBut(tuple(owned))
