"""Small models that generate, with a tokenizer, and rows of prompts and answers for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language import WORDS
from tiny_language import tokenizer as plain_tokenizer

KINDS = ("Llama", "GPT2", "T5")
LENGTH = 32

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
"""A chat in which every turn ends with [SEP]."""


def tokenizer(**more: Any) -> Any:
    """Words ``w0``, ``w1``, ...; a text begins with [CLS] (2) and ends with [SEP] (3)."""
    return plain_tokenizer(eos_token="[SEP]", bos_token="[CLS]", **more)


def model(kind: str) -> Any:
    """A model of two layers, the same weights each time, without dropout."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "vocab_size": WORDS + 4}
    if kind == "T5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        config = transformers.T5Config(
            **special, **sizes, decoder_start_token_id=0, dropout_rate=0.0
        )
        return transformers.T5ForConditionalGeneration(config)
    if kind == "GPT2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 48}
        still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**special, **sizes, **still))
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 48}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**special, **sizes, **heads))


def save(kind: str, folder: Path) -> Path:
    """A folder with the model and its tokenizer."""
    model(kind).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def rows(tasks: int = 4, examples: int = 12) -> list[dict[str, Any]]:
    """As MetaICL has them: two options in even tasks and three in odd ones."""
    return [
        {
            "task": f"task {t}",
            "input": f"w{t} w{i} w3",
            "output": f"w{20 + i % 2} w9",
            "options": ["w20 w9", "w21 w9"] + ["w5"] * (t % 2),
        }
        for t in range(tasks)
        for i in range(examples)
    ]
