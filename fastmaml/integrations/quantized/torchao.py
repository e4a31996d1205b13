"""Weights of torchao: tensor subclasses, as `torchao.quantization.quantize_` puts them in."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, final

from torch import Tensor, nn

from fastmaml.integrations.quantized.weight import Weight

_OF_ACTIVATIONS = ("act_quant_kwargs", "activation_quantization", "act_pre_scale")
"""What a weight says that does something to the inputs, too."""


def weight_of(layer: nn.Module, name: str) -> Weight | None:
    """The weight of a layer that torchao quantized; None of any other layer.

    Raises:
        ValueError: the layer quantizes its inputs, or is none that is linear.
    """
    library: Any = sys.modules.get("torchao.utils")
    if library is None:
        return None
    found = [(n, p) for n, p in layer.named_parameters(recurse=False) if _is_of(library, p)]
    if not found:
        return None
    own: Any = dict(found).get("weight")
    kind = f"torchao's {type(found[0][1]).__name__}"
    if own is None or len(found) > 1 or not isinstance(layer, nn.Linear):
        raise ValueError(
            f"{name} is a {type(layer).__name__} whose {found[0][0]} is {kind}: fastmaml knows "
            "quantized weights of nn.Linear alone. Leave this layer out, by quantize_(model, "
            "config, filter_fn=lambda module, name: isinstance(module, torch.nn.Linear))."
        )
    if any(getattr(own, attribute, None) is not None for attribute in _OF_ACTIVATIONS):
        raise ValueError(
            f"{name}.weight is {kind} that quantizes the layer's inputs, too, of which torchao "
            "has no derivative: quantize weights only (Int8WeightOnlyConfig, IntxWeightOnlyConfig)."
        )
    if own.requires_grad:
        raise ValueError(
            f"{name}.weight is {kind}, and requires a gradient, which bits do not have: freeze it "
            "with requires_grad_(False), and let adapters learn."
        )
    weight = Subclass(own, kind)
    if not all(type(x) is Tensor for x in weight.parts().values()):
        raise ValueError(
            f"{name}.weight is {kind}, which is made of other subclasses of Tensor: quantize it "
            "with a configuration of torchao 0.18 or later, such as Int8WeightOnlyConfig()."
        )
    return weight


def _is_of(library: Any, parameter: Tensor) -> bool:
    return isinstance(parameter, library.TorchAOBaseTensor)


@final
class Subclass(Weight):
    """A tensor subclass that tells what it is made of.

    Args:
        tensor: of torchao.
        kind: how messages call it.
    """

    def __init__(self, tensor: Any, kind: str) -> None:
        self.tensor, self.kind = tensor.detach(), kind
        self.names, self.settings = self.tensor.__tensor_flatten__()

    def parts(self) -> Mapping[str, Tensor]:
        """As the tensor names them."""
        return {name: getattr(self.tensor, name) for name in self.names}

    def dense(self, parts: Mapping[str, Tensor]) -> Tensor:
        """As the tensor says."""
        like = self.tensor
        made = type(like).__tensor_unflatten__(
            dict(parts), self.settings, like.shape, like.stride()
        )
        found: Tensor = made.dequantize()
        return found
