"""`ParameterUpdate`: gradients that pass through learned transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from fastmaml.compat.learn2learn._gradients import inner_gradients

Transform = Callable[[Any], nn.Module | None]
"""Makes the module that turns a parameter's gradient into its update; None for the gradient."""


class ParameterUpdate(nn.Module):
    """Called like `torch.autograd.grad`, it returns updates in place of gradients.

    Args:
        parameters: of the model.
        transform: ``transform(parameter)`` makes the module that turns this parameter's gradient
            into its update, or returns None where the gradient is the update.

    Raises:
        ValueError: a transform that is neither.
    """

    def __init__(self, parameters: Iterable[Tensor], transform: Transform) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        indices: list[int | None] = []
        for parameter in parameters:
            made = transform(parameter)
            if made is not None and not isinstance(made, nn.Module):
                raise ValueError(
                    f"transform(parameter) returned a {type(made).__name__}: it has to return a "
                    "torch.nn.Module, or None to leave the gradient as it is."
                )
            indices.append(None if made is None else len(modules))
            modules += [] if made is None else [made]
        self.transforms_modules = nn.ModuleList(modules)
        self.transforms_indices = indices

    def forward(
        self,
        loss: Tensor,
        parameters: Iterable[Tensor],
        create_graph: bool = False,
        retain_graph: bool = False,
        allow_unused: bool = False,
        allow_nograd: bool = False,
    ) -> list[Tensor | None]:
        """The transformed gradient of `loss` by every parameter, None where it has none.

        Args:
            loss: one number.
            parameters: as many as this was made for, in the same order.
            create_graph, retain_graph, allow_unused: as in `torch.autograd.grad`; a graph that is
                created is retained, too.
            allow_nograd: take None for parameters that do not require a gradient.

        Raises:
            ValueError: another number of parameters.
            RuntimeError: the loss cannot be differentiated with respect to all of them. It can be
                used again.
        """
        given = list(parameters)
        if len(given) != len(self.transforms_indices):
            raise ValueError(
                f"there are {len(given)} parameters for {len(self.transforms_indices)} transforms: "
                "give the parameters that this ParameterUpdate was made for."
            )
        gradients = inner_gradients(
            loss,
            given,
            create_graph=create_graph,
            retain_graph=retain_graph or create_graph,
            allow_unused=allow_unused,
            allow_nograd=allow_nograd,
        )
        pairs = zip(gradients, self.transforms_indices, strict=True)
        return [g if g is None or i is None else self.transforms_modules[i](g) for g, i in pairs]
