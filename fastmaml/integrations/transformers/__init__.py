"""Language models of Hugging Face transformers: load one, and choose what of it adapts.

A model of transformers goes into `fastmaml.MAML` as it is; nothing here is needed for that.
"""

from fastmaml.integrations.transformers.pretrained import (
    Lora,
    PooledClassifier,
    sequence_classifier,
    tokenizer,
    with_lora,
)
from fastmaml.integrations.transformers.scopes import bias, last_layers, lora

__all__ = [
    "Lora",
    "PooledClassifier",
    "bias",
    "last_layers",
    "lora",
    "sequence_classifier",
    "tokenizer",
    "with_lora",
]
