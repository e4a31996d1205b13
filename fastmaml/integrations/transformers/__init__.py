"""Language models of Hugging Face transformers: load one, and choose what of it adapts.

A model of transformers goes into `fastmaml.MAML` as it is; nothing here is needed for that.
"""

from fastmaml.integrations.transformers.adapters import Lora, with_lora
from fastmaml.integrations.transformers.classes import for_classes
from fastmaml.integrations.transformers.loading import decoder_start, tokenizer
from fastmaml.integrations.transformers.pretrained import (
    PooledClassifier,
    language_model,
    sequence_classifier,
)
from fastmaml.integrations.transformers.saving import save_pretrained
from fastmaml.integrations.transformers.scopes import bias, last_layers, lora

__all__ = [
    "Lora",
    "PooledClassifier",
    "bias",
    "decoder_start",
    "for_classes",
    "language_model",
    "last_layers",
    "lora",
    "save_pretrained",
    "sequence_classifier",
    "tokenizer",
    "with_lora",
]
