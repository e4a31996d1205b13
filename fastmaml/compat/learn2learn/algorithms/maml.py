"""`MAML`: one gradient step after another on a clone of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastmaml.compat.learn2learn._gradients import inner_gradients
from fastmaml.compat.learn2learn.algorithms.base_learner import BaseLearner
from fastmaml.compat.learn2learn.utils.modules import clone_module, set_updates, update_module
from fastmaml.engine.routing.cloning import replace_parameters
from fastmaml.engine.step.forward import Loss
from fastmaml.maml import maml as fast_maml


def maml_update(
    model: nn.Module, lr: float | Tensor, grads: Iterable[Tensor | None] | None = None
) -> nn.Module:
    """Put ``p - lr * g`` in the place of every parameter p, keeping the graph, and return `model`.

    Args:
        model: changed in place.
        lr: a number, or a tensor that broadcasts with every gradient.
        grads: one for each of ``model.parameters()``, None where a parameter stays; by default the
            tensors' own attributes ``update`` are added instead.

    Raises:
        ValueError: not as many gradients as parameters.
    """
    if grads is not None:
        set_updates(model, [None if g is None else -lr * g for g in grads])
    return update_module(model)


class MAML(BaseLearner):
    """Model-agnostic meta-learning (Finn et al. 2017) with `clone` and `adapt`.

    One task at a time: ``learner = maml.clone()``, ``learner.adapt(loss)`` once a step, and the
    ``backward()`` of the query loss arrives at `model`. `fast` gives the same thing for all tasks
    of a meta-batch at once.

    BatchNorm does as the module's mode says; in training mode every support and query pass of every
    clone updates the model's own running statistics.

    Args:
        model: becomes ``module``; attributes that this object lacks are looked up there.
        lr: the inner learning rate: a number, or a tensor that broadcasts with every parameter; a
            `nn.Parameter` is among ``parameters()`` and learned.
        first_order: take inner gradients as constants.
        allow_unused: leave parameters that a loss does not reach as they are; None for the same as
            `allow_nograd`.
        allow_nograd: leave parameters that do not require a gradient as they are.
    """

    module: nn.Module

    def __init__(
        self,
        model: nn.Module,
        lr: float | Tensor,
        first_order: bool = False,
        allow_unused: bool | None = None,
        allow_nograd: bool = False,
    ) -> None:
        super().__init__()
        self.module = model
        self.lr = lr
        self.first_order = first_order
        self.allow_nograd = allow_nograd
        self.allow_unused = allow_nograd if allow_unused is None else allow_unused

    def adapt(
        self,
        loss: Tensor,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> None:
        """One gradient step on `loss`, in place.

        Args:
            loss: one number, computed with this learner.
            first_order, allow_unused, allow_nograd: for this step; None for the learner's own.

        Raises:
            RuntimeError: the loss cannot be differentiated with respect to every parameter; the
                message says which argument allows it. The loss can be used again.
        """
        first_order = self.first_order if first_order is None else first_order
        named = dict(self.module.named_parameters())
        gradients = inner_gradients(
            loss,
            list(named.values()),
            create_graph=not first_order,
            allow_unused=self.allow_unused if allow_unused is None else allow_unused,
            allow_nograd=self.allow_nograd if allow_nograd is None else allow_nograd,
            names=list(named),
        )
        pairs = zip(named.values(), gradients, strict=True)
        moved: dict[Tensor, Tensor] = {
            p: _descended(p, g, self.lr) for p, g in pairs if g is not None
        }
        replace_parameters(self.module, moved)

    def clone(
        self,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> MAML:
        """A learner whose parameters are clones of this one's, connected to them by autograd.

        Args:
            first_order, allow_unused, allow_nograd: of the clone; None for this learner's own.
        """
        return MAML(
            clone_module(self.module),
            lr=self.lr,
            first_order=self.first_order if first_order is None else first_order,
            allow_unused=self.allow_unused if allow_unused is None else allow_unused,
            allow_nograd=self.allow_nograd if allow_nograd is None else allow_nograd,
        )

    def fast(self, loss: Loss | None = None, steps: int = 1, **options: Any) -> fast_maml.MAML:
        """The same meta-learner as a `fastmaml.MAML`, for all tasks of a meta-batch at once.

        It has the same module, the same parameters (an optimizer goes on with either) and the same
        learning rate; what this loop calls ``adapt`` is then ``out = maml(episodes)``.

        Args:
            loss: ``loss(output, targets)`` of one task; not needed for its ``per_task``.
            steps: inner steps.
            options: of `fastmaml.MAML`. For a model with running statistics ``batch_norm`` is
                "module" by default, so that they do as the module's mode says, as here; give
                "batch" for ``per_task``, and where they are not used.

        Raises:
            RuntimeError: this is a clone, which has no parameters of its own.
            ValueError: a learning rate that `fastmaml.MAML` does not take (a tensor that is neither
                a scalar nor a parameter).
        """
        return batched(
            self.module,
            {"lr": self.lr, "allow_unused": self.allow_unused, "allow_nograd": self.allow_nograd},
            self.first_order,
            {"loss": loss, "steps": steps, **options},
        )


def _descended(p: Tensor, g: Tensor, lr: float | Tensor) -> Tensor:
    """``p - lr * g``, for a number in one operation instead of two, as its derivatives are."""
    return torch.add(p, g, alpha=-lr) if isinstance(lr, int | float) else p - lr * g


def batched(
    module: nn.Module, settings: Mapping[str, Any], first_order: bool, options: Mapping[str, Any]
) -> fast_maml.MAML:
    """A `fastmaml.MAML` around `module` with a learner's settings, overruled by `options`."""
    if not all(p.is_leaf for p in module.parameters()):
        raise RuntimeError(
            "fast() is for the meta-learner itself: the parameters of a clone are not its own."
        )
    tracks = any(getattr(m, "running_mean", None) is not None for m in module.modules())
    given = {"batch_norm": "module" if tracks else "batch", **settings, **options}
    if "rule" in options:
        given.pop("lr", None)
    if "gradient" not in options:
        given.setdefault("first_order", first_order)
    return fast_maml.MAML(module, **given)
