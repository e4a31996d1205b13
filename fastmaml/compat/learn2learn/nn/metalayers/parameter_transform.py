"""A layer whose parameters pass through learned transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from fastmaml.compat.learn2learn.nn.metalayers.meta_layer import MetaLayer
from fastmaml.engine.routing.called_by_hand import called


class ParameterTransform(MetaLayer):
    """Calls a layer with its parameters transformed, as in LoRA; the parameters themselves stay.

    Args:
        module: the layer inside.
        transform: ``transform(parameter)`` makes a module that turns this parameter into the one
            that is used.
    """

    def __init__(self, module: nn.Module, transform: Callable[[Tensor], nn.Module]) -> None:
        super().__init__(module)
        self.transform = transform
        # Names of parameters may have dots, which names of modules may not.
        self.parameter_transforms = nn.ModuleDict(
            {name.replace(".", "/"): transform(p) for name, p in module.named_parameters()}
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer inside returns with the transformed parameters."""
        transformed = {
            p: self.parameter_transforms[name.replace(".", "/")](p)
            for name, p in self.module.named_parameters()
        }
        # Every place once: with ties seen to by torch, what a layer under two names held is lost.
        places = {
            f"{prefix}.{name}".removeprefix("."): transformed[p]
            for prefix, owner in self.module.named_modules()
            for name, p in owner._parameters.items()
            if p is not None
        }
        call = partial(functional_call, self.module, places, args, kwargs, tie_weights=False)
        return called(self.module, False, call)

    def meta_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the transforms."""
        return self.parameter_transforms.parameters()
