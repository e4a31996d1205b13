"""What models with quantized linear layers need inside a meta-step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from fastmaml.integrations.layers_again import within
from fastmaml.integrations.quantized import bitsandbytes, torchao
from fastmaml.integrations.quantized.weight import Weight

Tensors = Mapping[str, Tensor]

KNOWN = frozenset({"bitsandbytes", "torchao"})
"""Of the libraries that transformers quantizes with."""


@final
@dataclass(frozen=True)
class QuantizedLayer:
    """A linear layer, and what its parts are called among the constants of a model."""

    name: str
    layer: nn.Module
    weight: Weight
    parts: tuple[str, ...]

    @property
    def parameter(self) -> str:
        """The name of its weight."""
        return f"{self.name}.weight" if self.name else "weight"

    def constants(self) -> Tensors:
        """What stands for the weight now."""
        return {f"{self.parameter}.{n}": x for n, x in self.weight.parts().items()}

    def own(self, constants: Tensors) -> Tensors:
        """Of the constants of a model those that stand for the weight, by their short names."""
        return {name: constants[f"{self.parameter}.{name}"] for name in self.parts}


@final
@dataclass(frozen=True)
class QuantizedHost:
    """How a model with quantized layers runs inside a meta-step.

    While it does, and only then, such a layer is ``x @ Wᵀ + b``, where W is the dense weight that
    its bits stand for, and so has every derivative, batched and recorded too: the libraries' own
    layers have none under vmap or forward mode. W is made for each use and let go.

    Attributes:
        layers: all of them.
    """

    layers: tuple[QuantizedLayer, ...]

    @property
    def functions(self) -> tuple[Any, ...]:
        """Which layers, of what kind."""
        return tuple((x.name, x.weight.kind) for x in self.layers)

    def constants(self, frozen: Tensors) -> dict[str, Tensor]:
        """These with the parts of quantized weights in their place."""
        found = dict(frozen)
        for layer in self.layers:
            found.pop(layer.parameter, None)
            found |= layer.constants()
        return found

    @contextlib.contextmanager
    def inside(self, constants: Tensors) -> Iterator[None]:
        """The context in which the model runs, with these in the place of its own."""
        with contextlib.ExitStack() as stack:
            for own in self.layers:
                stack.enter_context(_as_product(own, constants))
            yield

    def checkpointing(self, checkpoint: Callable[..., Any], constants: Tensors) -> Any:
        """`checkpoint` for layers that hold such ones: they run again when nothing is inside."""
        return within(partial(self.inside, constants), checkpoint)

    def notes(self) -> list[str]:
        """For `MAML.explain`."""
        counts: dict[str, int] = {}
        for layer in self.layers:
            counts[layer.weight.kind] = counts.get(layer.weight.kind, 0) + 1
        kinds = ", ".join(f"{count} of {kind}" for kind, count in counts.items())
        return [
            f"quantized linear layers ({kinds}): products with the dense weights that their bits "
            "stand for, which are made where they are used; inputs are not quantized"
        ]


@contextlib.contextmanager
def _as_product(own: QuantizedLayer, constants: Tensors) -> Iterator[None]:
    """The layer as the product with its weight: the instance's forward hides the class's."""
    attributes = own.layer.__dict__
    before = attributes.get("forward")
    attributes["forward"] = partial(_product, own.layer, own.weight, own.own(constants))
    try:
        yield
    finally:
        if before is None:
            attributes.pop("forward", None)
        else:
            attributes["forward"] = before


def _product(layer: nn.Module, weight: Weight, parts: Tensors, input: Tensor) -> Tensor:
    """``input @ Wᵀ + b``, in the input's dtype."""
    device, bias = input.device.type, layer.bias
    kind = weight.computes_in or input.dtype
    if torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
    output = weight.linear(input.to(kind), tuple(parts), *parts.values())
    if isinstance(bias, Tensor):
        output = output + bias.to(kind)
    return output.to(input.dtype)


def _check_forward(layer: nn.Module, name: str, kind: str) -> None:
    """Raise ValueError where such a layer computes something else than its class does."""
    own = layer.__dict__.get("forward")
    # Those of accelerate move tensors between devices.
    usual = own is None or hasattr(layer, "_hf_hook") or getattr(own, "func", None) is _product
    library = type(layer).forward.__module__.partition(".")[0]
    if not usual or library not in ("torch", "bitsandbytes"):
        raise ValueError(
            f"{name or 'the model'} is {kind} with a forward() of its own, in place of which the "
            "product with its weight would run: put what it does besides into a module around it."
        )


def find_quantized(model: nn.Module) -> QuantizedHost | None:
    """The host of a model with quantized linear layers; None of any other.

    Only a program that has imported their libraries can have such ones, so nothing is imported.

    Raises:
        ValueError: a layer whose derivatives are not known; the message names it.
    """
    found = []
    for name, layer in model.named_modules():
        weight = torchao.weight_of(layer, name) or bitsandbytes.weight_of(layer, name)
        if weight is not None:
            _check_forward(layer, name, weight.kind)
            found.append(QuantizedLayer(name, layer, weight, tuple(weight.parts())))
        method = getattr(layer, "quantization_method", None)
        method = getattr(method, "value", method)
        if getattr(layer, "is_quantized", False) and method is not None and method not in KNOWN:
            raise ValueError(
                f"{name or 'the model'} was quantized by {method}, of whose layers fastmaml does "
                "not know the derivatives: load it in bfloat16, or quantize it with torchao or "
                "bitsandbytes."
            )
    return QuantizedHost(tuple(found)) if found else None
