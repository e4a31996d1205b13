"""A loaded model's linear layers in few bits, before adapters are put in."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from torch import nn

from fastmaml.integrations.transformers.adapters import Lora

Quantize = Literal["int8"]
"""How weights are kept: 8 bits with a scale a row."""


def check_quantize(quantize: Quantize | None, lora: Lora | None) -> None:
    """Raise a ValueError for what cannot be, before anything is loaded."""
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize={quantize!r}: give 'int8' or None.")
    if quantize is not None and lora is None:
        raise ValueError(
            "quantize='int8' freezes the weights, and without adapters nothing would be learned: "
            "give lora=Lora()."
        )


def in_eight_bits(model: nn.Module, new: Collection[str] = ()) -> None:
    """Quantize the weights of linear layers, by torchao's `Int8WeightOnlyConfig`, in place.

    Args:
        model: of transformers, or a `PooledClassifier`. What gives its outputs stays as it is.
        new: the names of parameters that are not pretrained, whose layers stay as they are, too.

    Raises:
        ImportError: torchao is not installed.
        ValueError: there are no such layers.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise ImportError(
            'weights in 8 bits need torchao: pip install "fastmaml[quantized]" (or torchao).'
        ) from error
    outputs: Any = getattr(model, "get_output_embeddings", lambda: None)()
    chosen = {
        name
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and layer is not outputs and f"{name}.weight" not in new
    }
    if not chosen:
        raise ValueError(
            f"quantize='int8': {type(model).__name__} has no linear layers below its last one that "
            "are of nn.Linear (GPT-2 has its own). Load it with dtype=torch.bfloat16 instead."
        )
    quantize_(model, Int8WeightOnlyConfig(), filter_fn=lambda _, name: name in chosen)
