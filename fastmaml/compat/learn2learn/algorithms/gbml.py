"""`GBML`: gradient-based meta-learning whose updates are learned functions of the gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastmaml.compat.learn2learn._gradients import inner_gradients
from fastmaml.compat.learn2learn.optim.parameter_update import ParameterUpdate, Transform
from fastmaml.compat.learn2learn.optim.update_rules import DifferentiableSGD
from fastmaml.compat.learn2learn.utils.modules import clone_module
from fastmaml.engine.routing.called_by_hand import called


class GBML(nn.Module):
    """MAML with an update ``p - lr * transform(g)`` that is meta-learned with the parameters.

    With `MetaCurvatureTransform` it is Meta-Curvature (Park and Oliva 2019), with
    `KroneckerTransform` of `KroneckerLinear` Meta-KFO (Arnold et al. 2019).

    Args:
        module: the model.
        transform: ``transform(parameter)`` makes the module that turns this parameter's gradient
            into its update, or returns None where the gradient is the update.
        lr: the inner learning rate.
        adapt_transform: whether `adapt` also moves the transforms' own parameters, by gradient
            descent on the loss after every update of the module.
        first_order: take inner gradients as constants; the transforms still learn.
        allow_unused: leave parameters that a loss does not reach as they are.
        allow_nograd: leave parameters that do not require a gradient as they are.
        compute_update: the `ParameterUpdate` to use instead of a new one.
    """

    def __init__(
        self,
        module: nn.Module,
        transform: Transform,
        lr: float | Tensor = 1.0,
        adapt_transform: bool = False,
        first_order: bool = False,
        allow_unused: bool = False,
        allow_nograd: bool = False,
        *,
        compute_update: ParameterUpdate | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.transform = transform
        self.lr = lr
        self.adapt_transform = adapt_transform
        self.first_order = first_order
        self.allow_unused, self.allow_nograd = allow_unused, allow_nograd
        self.compute_update = compute_update or ParameterUpdate(module.parameters(), transform)
        self.diff_sgd = DifferentiableSGD(lr)
        # Once the module has moved, a loss depends on the transforms, and they can adapt to it.
        self._moved = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returns."""
        return called(self.module, not self.first_order, self.module, *args, **kwargs)

    def clone(
        self,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
        adapt_transform: bool | None = None,
    ) -> GBML:
        """A learner whose parameters and transforms are clones of this one's.

        Args:
            first_order, allow_unused, allow_nograd, adapt_transform: of the clone; None for this
                learner's own.
        """
        return GBML(
            clone_module(self.module),
            self.transform,
            lr=self.lr,
            adapt_transform=self.adapt_transform if adapt_transform is None else adapt_transform,
            first_order=self.first_order if first_order is None else first_order,
            allow_unused=self.allow_unused if allow_unused is None else allow_unused,
            allow_nograd=self.allow_nograd if allow_nograd is None else allow_nograd,
            compute_update=clone_module(self.compute_update),
        )

    def adapt(
        self,
        loss: Tensor,
        first_order: bool | None = None,
        allow_nograd: bool | None = None,
        allow_unused: bool | None = None,
    ) -> None:
        """One step on `loss`, in place. Note the order of the last two arguments.

        Args:
            loss: one number, computed with this learner.
            first_order, allow_nograd, allow_unused: for this step; None for the learner's own.

        Raises:
            RuntimeError: the loss cannot be differentiated with respect to every parameter; the
                message says which argument allows it. The loss can be used again.
        """
        first_order = self.first_order if first_order is None else first_order
        allow_nograd = self.allow_nograd if allow_nograd is None else allow_nograd
        allow_unused = self.allow_unused if allow_unused is None else allow_unused
        transforms = list(self.compute_update.parameters())
        of_transforms: list[Tensor | None] = []
        if self.adapt_transform and self._moved and transforms:
            of_transforms = inner_gradients(
                loss,
                transforms,
                create_graph=not first_order,
                retain_graph=True,  # differentiated once more below
                allow_unused=allow_unused,
                allow_nograd=allow_nograd,
            )
            self.diff_sgd(self.compute_update, of_transforms)
        updates = self.compute_update(
            loss,
            self.module.parameters(),
            create_graph=not first_order or self.adapt_transform,
            retain_graph=not first_order or self.adapt_transform,
            allow_unused=allow_unused,
            allow_nograd=allow_nograd,
        )
        self.diff_sgd(self.module, updates)
        self._moved = True
