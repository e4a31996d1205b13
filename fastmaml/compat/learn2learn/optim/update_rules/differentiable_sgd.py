"""`DifferentiableSGD`: gradient descent that autograd can look through."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from fastmaml.engine.routing.cloning import replace_parameters


class DifferentiableSGD(nn.Module):
    """Puts ``p - lr * g`` in the place of every parameter p of a module, keeping the graph.

    Args:
        lr: a number, or a tensor that broadcasts with every gradient.
    """

    def __init__(self, lr: float | Tensor) -> None:
        super().__init__()
        self.lr = lr

    def forward(self, module: nn.Module, gradients: Iterable[Tensor | None] | None = None) -> None:
        """Change `module` in place.

        Args:
            module: whose parameters move.
            gradients: one for each of ``module.parameters()``, None where a parameter stays; by
                default the parameters' ``grad``.

        Raises:
            ValueError: not as many gradients as parameters.
        """
        parameters = list(module.parameters())
        given = [p.grad for p in parameters] if gradients is None else list(gradients)
        if len(given) != len(parameters):
            raise ValueError(
                f"there are {len(given)} gradients for {len(parameters)} parameters: give one for "
                "each of module.parameters(), None for a parameter that is to stay as it is."
            )
        moving = zip(parameters, given, strict=True)
        replace_parameters(module, {p: p - self.lr * g for p, g in moving if g is not None})
