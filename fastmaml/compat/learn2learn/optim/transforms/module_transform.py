"""`ModuleTransform`: any module of vectors as a transform of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn


class ReshapedTransform(nn.Module):
    """Gives a module the gradient in a shape of its own, and the result the gradient's shape.

    Args:
        transform: the module.
        shape: what it takes, with at most one -1.
    """

    def __init__(self, transform: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        self.transform = transform
        self.in_shape = shape

    def forward(self, grad: Tensor) -> Tensor:
        """The update, of the shape of `grad`."""
        update: Tensor = self.transform(grad.reshape(self.in_shape))
        return update.reshape(grad.shape)


class ModuleTransform:
    """Makes a module for each parameter's gradient as a row ``[1, elements]``.

    A linear layer so made has elements² weights: for large parameters use `KroneckerTransform`.

    Args:
        module_cls: ``module_cls(elements, elements)`` makes the module, such as `nn.Linear`.
    """

    def __init__(self, module_cls: Callable[[int, int], nn.Module]) -> None:
        self.module_cls = module_cls

    def __call__(self, parameter: Tensor) -> ReshapedTransform:
        """The transform for `parameter`."""
        elements = parameter.numel()
        return ReshapedTransform(self.module_cls(elements, elements), (1, elements))
