"""BatchNorm with a weight and a bias for every inner step (MAML++)."""

from __future__ import annotations

import copy
from typing import ClassVar, TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastmaml.episodes.checks import check_positive
from fastmaml.models.per_step import PerStep

M = TypeVar("M", bound=nn.Module)


class _PerStepBatchNorm(PerStep):
    """What the two below share."""

    dimensions: ClassVar[tuple[int, ...]]
    normalises_by_batch: ClassVar[bool] = True
    """Every example has a part in the others' results: see `engine.step.padding_checks`."""

    def __init__(self, features: int, steps: int, eps: float = 1e-5) -> None:
        super().__init__()
        check_positive(features=features, steps=steps)
        self.features, self.steps, self.eps = features, steps, eps
        self.weight = nn.Parameter(torch.ones(steps, features))
        self.bias = nn.Parameter(torch.zeros(steps, features))

    def forward(self, x: Tensor) -> Tensor:
        """The normalised input, of its shape."""
        if x.ndim not in self.dimensions:
            wanted = " or ".join(map(str, self.dimensions))
            raise ValueError(
                f"{type(self).__name__} was given a tensor of shape {list(x.shape)}: it takes "
                f"{wanted} dimensions, [examples, {self.features}, ...]."
            )
        weight, bias = self.at_step(self.weight), self.at_step(self.bias)
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=self.eps)

    def extra_repr(self) -> str:
        """Its sizes."""
        return f"{self.features}, steps={self.steps}, eps={self.eps}"


@final
class PerStepBatchNorm1d(_PerStepBatchNorm):
    """`PerStepBatchNorm2d` of inputs ``[examples, features]`` or ``[examples, features, length]``.

    Args:
        features: channels of the input.
        steps: inner steps that have a weight and a bias of their own.
        eps: added to the variance.
    """

    dimensions = (2, 3)


@final
class PerStepBatchNorm2d(_PerStepBatchNorm):
    """BatchNorm whose weight and bias are others at every inner step (Antoniou et al., 2019).

    MAML++'s BNWB. It maps ``[examples, features, height, width]`` to the same shape; its parameters
    are ``weight`` and ``bias``, ``[steps, features]`` each, of which a pass takes the row of its
    step (`PerStep` says which). Statistics are those of the batch at hand, in training and in
    evaluation: so each step has its own (BNRS). MAML++'s public implementation normalises in this
    way, too, and keeps per-step running statistics only as a record that nothing reads; here there
    are none. Not for use without a batch: one image alone is normalised by itself.

    Args:
        features: channels of the input.
        steps: inner steps that have a weight and a bias of their own; later ones use the last.
        eps: added to the variance.

    Raises:
        ValueError: `features` or `steps` is not positive; an input of another shape.
    """

    dimensions = (4,)


_KINDS: dict[type[nn.Module], type[_PerStepBatchNorm]] = {
    nn.BatchNorm1d: PerStepBatchNorm1d,
    nn.BatchNorm2d: PerStepBatchNorm2d,
}


def per_step_batch_norm(model: M, steps: int) -> M:
    """A copy of the model whose BatchNorm layers are per-step ones, all rows as the layer was.

    Layers without weights (``affine=False``) stay as they are: nothing of them is a step's own.

    Args:
        model: with `nn.BatchNorm1d` or `nn.BatchNorm2d` in it; not changed.
        steps: rows of each.

    Raises:
        ValueError: it has none of them, or BatchNorm layers of another kind with weights.
    """
    check_positive(steps=steps)
    model = copy.deepcopy(model)
    made: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.affine:
            if type(module) not in _KINDS:
                raise ValueError(
                    f"{name or 'the model'} is a {type(module).__name__}, of which there is no "
                    "per-step kind: use nn.BatchNorm1d or nn.BatchNorm2d, or derive a module of "
                    "your own from fastmaml.models.PerStep."
                )
            made[module] = _converted(module, steps)
    if not made:
        raise ValueError(
            f"{type(model).__name__} has no BatchNorm layer with weights: there is nothing that "
            "could be a step's own. Use the model as it is."
        )
    if model in made:
        return made[model]  # type: ignore[return-value]  # a layer alone becomes the layer's kind
    for owner in list(model.modules()):
        for name, child in owner._modules.items():
            if child in made:
                owner._modules[name] = made[child]
    return model


def _converted(layer: _BatchNorm, steps: int) -> nn.Module:
    found = _KINDS[type(layer)](layer.num_features, steps, layer.eps)
    for name in ("weight", "bias"):
        own = getattr(layer, name).detach()
        rows = own.expand(steps, -1).clone()
        setattr(found, name, nn.Parameter(rows, getattr(layer, name).requires_grad))
    return found.train(layer.training)
