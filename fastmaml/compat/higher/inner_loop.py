"""The two objects of an inner loop in one `with`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fastmaml.compat.higher.functional_module import FunctionalModule
from fastmaml.compat.higher.optim.base import DifferentiableOptimizer, Override
from fastmaml.compat.higher.optim.registry import get_diff_optim
from fastmaml.compat.higher.patch import monkeypatch
from fastmaml.compat.higher.tree import Device


@contextmanager
def innerloop_ctx(
    model: nn.Module,
    opt: torch.optim.Optimizer,
    device: Device = None,
    copy_initial_weights: bool = True,
    override: Override | None = None,
    track_higher_grads: bool = True,
) -> Iterator[tuple[FunctionalModule, DifferentiableOptimizer]]:
    """``with innerloop_ctx(model, opt, copy_initial_weights=False) as (fmodel, diffopt): ...``

    Inside, ``diffopt.step(loss)`` moves the parameters of `fmodel` as ``opt`` would move those of
    `model`, and everything stays differentiable. Neither `model` nor `opt` changes.

    **With the default** ``copy_initial_weights=True`` **the model's own parameters get no
    gradient**: the inner loop starts from detached copies, and only what else enters it (learned
    learning rates, data, a learned loss) is learned. To learn the initial weights, as MAML does,
    pass ``copy_initial_weights=False``.

    Args:
        model: any module. Its buffers are copied and never written back.
        opt: an optimizer over all or some of its parameters, with its parameter groups; momenta and
            moments that it has already gathered are copied.
        device: where copies of parameters, buffers and optimizer state go.
        copy_initial_weights: whether the initial fast parameters are detached from the model's.
        override: hyper-parameters to use instead, lists by name: one value for all parameter
            groups or one a group. A tensor that requires a gradient is learned:
            ``override={"lr": [rate]}``.
        track_higher_grads: False detaches every step, for adaptation at test time: no gradient
            arrives at anything from before the loop. For first order see `grad_callback` in
            `DifferentiableOptimizer.step`.

    Raises:
        ValueError: the optimizer's type has no differentiable version (see `register_optim`), it
            holds a parameter that is not the model's, or `override` does not fit.
    """
    fmodel = monkeypatch(model, device, copy_initial_weights, track_higher_grads)
    yield (
        fmodel,
        get_diff_optim(
            opt,
            model.parameters(),
            fmodel=fmodel,
            device=device,
            override=override,
            track_higher_grads=track_higher_grads,
        ),
    )
