"""Weights of bitsandbytes' `Linear4bit` (QLoRA) and `Linear8bitLt` (LLM.int8)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmaml.integrations.quantized.weight import Weight


def weight_of(layer: nn.Module, name: str) -> Weight | None:
    """The weight of a layer of bitsandbytes; None of any other layer.

    Raises:
        ValueError: the layer is not quantized yet, quantizes at every call, or is an embedding.
    """
    library: Any = sys.modules.get("bitsandbytes.nn")
    if library is None:
        return None
    if isinstance(layer, library.Linear4bit):
        return _four_bits(layer, name)
    if isinstance(layer, library.Linear8bitLt):
        return _eight_bits(layer, name)
    if isinstance(layer, library.Embedding4bit | library.Embedding8bit):
        raise ValueError(
            f"{name} is bitsandbytes' {type(layer).__name__}: fastmaml knows quantized weights of "
            "linear layers alone. Leave the embeddings as they are."
        )
    return None


def _four_bits(layer: Any, name: str) -> Weight:
    state = getattr(layer.weight, "quant_state", None) or layer.quant_state
    kind = f"bitsandbytes' {type(layer).__name__}"
    if state is None:
        raise ValueError(
            f"{name} is {kind}, whose weight is not quantized yet: move the model to its device "
            "first (model.to(device)), which does it."
        )
    if getattr(state, "packing_format_for_cpu", False):
        raise ValueError(
            f"{name} is {kind}, whose weight a call in eval() mode has packed for inference on "
            "this CPU: load the model anew, or call model.state_dict(), which unpacks it with its "
            "scales rounded to bfloat16; and call a copy of it in eval() mode."
        )
    if tuple(state.shape) != (layer.out_features, layer.in_features):
        raise ValueError(
            f"{name} is {kind}, whose weight was quantized from the shape {list(state.shape)}: "
            f"quantize it from [{layer.out_features}, {layer.in_features}]."
        )
    if layer.weight.device.type == "cpu" and layer.in_features % state.blocksize:
        raise ValueError(
            f"{name} is {kind} with {layer.in_features} inputs, which is no multiple of its blocks "
            f"of {state.blocksize}: on the CPU bitsandbytes then computes with other weights than "
            "were quantized (seen in 0.50). Leave this layer out (llm_int8_skip_modules), or use "
            "a GPU."
        )
    return FourBits(layer, state, kind)


def _eight_bits(layer: Any, name: str) -> Weight:
    kind = f"bitsandbytes' {type(layer).__name__}"
    if layer.state.has_fp16_weights:
        raise ValueError(
            f"{name} is {kind} with has_fp16_weights=True, which quantizes its weight anew at "
            "every call and has no second derivative: make it with has_fp16_weights=False, as "
            "transformers does."
        )
    if layer.weight.dtype is not torch.int8:
        raise ValueError(
            f"{name} is {kind}, whose weight is not quantized yet: move the model to its device "
            "first (model.to(device)), which does it."
        )
    return EightBits(layer, kind)


@final
class FourBits(Weight):
    """A weight in nf4 or fp4; its scales may be in 8 bits."""

    def __init__(self, layer: Any, state: Any, kind: str) -> None:
        self.layer, self.state, self.kind = layer, state, kind

    def parts(self) -> Mapping[str, Tensor]:
        """The packed weight and its scales, and what these are made of."""
        own, inner = self.state, self.state.state2
        found = {"packed": self.layer.weight.data, "code": own.code, "scales": own.absmax}
        if inner is not None:
            found |= {"offset": own.offset, "code2": inner.code, "scales2": inner.absmax}
        return found

    def dense(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The library's formula: its kernels are given addresses, which no recording can see."""
        own, packed, code, scales = self.state, parts["packed"], parts["code"], parts["scales"]
        if own.state2 is not None:
            entries = parts["code2"].index_select(0, scales.int())
            scales = _scaled(entries, parts["scales2"], own.state2.blocksize) + parts["offset"]
        byte = torch.arange(256, device=packed.device)
        pairs = torch.stack((code[byte >> 4], code[byte & 15]), dim=1)
        if packed.dtype is not torch.uint8:  # bnb_4bit_quant_storage
            packed = packed.view(torch.uint8)
        entries = pairs.index_select(0, packed.flatten().int()).flatten()[: own.shape.numel()]
        return _scaled(entries, scales, own.blocksize).to(own.dtype).reshape(own.shape)

    @property
    def computes_in(self) -> torch.dtype | None:
        """As the layer was made."""
        found: torch.dtype | None = self.layer.compute_dtype
        return found


@final
class EightBits(Weight):
    """A weight of 8 bits, with a scale a row."""

    def __init__(self, layer: Any, kind: str) -> None:
        self.layer, self.kind = layer, kind

    def parts(self) -> Mapping[str, Tensor]:
        """The weight and its scales, which the layer's first call moves to another place."""
        weight, state = self.layer.weight, self.layer.state
        scales = state.SCB if weight.SCB is None else weight.SCB
        return {"weight": weight.data, "scales": scales}

    def dense(self, parts: Mapping[str, Tensor]) -> Tensor:
        """As the library's derivative has it."""
        return parts["weight"] * (parts["scales"] * (1 / 127)).unsqueeze(1)


def _scaled(entries: Tensor, scales: Tensor, block: int) -> Tensor:
    """Each block of this size times its scale; the last one may be smaller."""
    left = -len(entries) % block
    blocks = F.pad(entries, (0, left)) if left else entries
    return (blocks.view(-1, block) * scales.unsqueeze(1)).flatten()[: len(entries)]
