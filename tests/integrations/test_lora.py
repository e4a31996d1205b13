"""Low-rank adapters: what adapts and what is learned, and meta-gradients against those by hand."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import language_models as lm
import pytest
import torch
from language_models import METHODS, PATHS, check, hand_gradient, meta_gradient
from tiny_language import WORDS, save_model, tokenizer
from torch import nn

import fastmaml as fm
from fastmaml.integrations.transformers import (
    Lora,
    PooledClassifier,
    lora,
    sequence_classifier,
    with_lora,
)

transformers = pytest.importorskip("transformers", reason="no transformers (fastmaml[text])")
if find_spec("peft") is None:  # which takes seconds to import: not while tests are collected
    pytest.skip("peft is not installed (fastmaml[text])", allow_module_level=True)


def trained(model: nn.Module) -> nn.Module:
    """In float64, with other adapters than new ones, half of whose derivatives are zero."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_B" in name:
                p.normal_(std=0.1)
    return model.double()


def adapted(model: nn.Module) -> set[str]:
    scope = lora(model)
    return {n for n, p in model.named_parameters() if p.requires_grad and scope(n, p)}


def by_hand(model: nn.Module, batch: fm.Episodes) -> Any:
    names = adapted(model)
    return hand_gradient(model, batch, 2, 0.5, names.__contains__)


def learned(model: nn.Module, method: str, path: str = "native") -> fm.MAML:
    return fm.MAML(
        model, lr=0.5, steps=2, loss=fm.losses.classification, gradient=METHODS[method],
        scope=lora(model), **PATHS[path],
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("path", ["captured", "native"])
@pytest.mark.parametrize("method", ["segments", "mixed-mode"])
def test_dropout_of_the_adapters_and_of_the_model(method: str, path: str) -> None:
    """In the hand-written loop attention is eager: its dropout is a call of F.dropout."""
    model = lm.bert(attn_implementation="eager")
    model = trained(with_lora(model, Lora(rank=2, dropout=0.3))).train()
    batch = lm.episodes()
    expected = by_hand(model, batch)
    model.config._attn_implementation = "sdpa"
    check(meta_gradient(learned(model, method, path), batch), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's own
@pytest.mark.parametrize("method", ["unrolled", "checkpointed", "mixed-mode"])
def test_a_model_of_peft_itself(method: str) -> None:
    """Which keeps a copy of the classifier, and adapts and learns that and the adapters."""
    import peft

    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, lora_dropout=0.0)
    model = trained(peft.get_peft_model(lm.bert(), config))
    batch = lm.episodes()
    names = adapted(model)
    assert names == {n for n, p in model.named_parameters() if p.requires_grad}
    assert sum("classifier.modules_to_save" in n for n in names) == 2
    assert all(".lora_" in n or "classifier" in n for n in names)
    expected = by_hand(model, batch)
    check(meta_gradient(learned(model, method), batch), expected)


def roberta(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.RobertaConfig(**lm.SIZES, pad_token_id=0, **more)
    return transformers.RobertaForSequenceClassification(config).double().eval()


@pytest.mark.slow
def test_a_classifier_of_two_layers_adapts_with_the_adapters(tmp_path: Path) -> None:
    """RoBERTa's; nothing is learned that does not adapt."""
    config = transformers.RobertaConfig(**lm.SIZES, pad_token_id=0)
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    model = trained(sequence_classifier(str(tmp_path), 3, lora=Lora(rank=2), dropout=0.0)).eval()
    names = adapted(model)
    assert names == {n for n, p in model.named_parameters() if p.requires_grad}
    layers = {n.rpartition(".")[0] for n in names if ".lora_" not in n}
    assert layers == {"classifier.dense", "classifier.out_proj"}
    batch = lm.episodes()
    expected = by_hand(model, batch)
    check(meta_gradient(learned(model, "checkpointed"), batch), expected)


def test_adapters_in_a_model_that_is_learned_as_a_whole() -> None:
    """What adapts is then what lies outside the pretrained model, and the adapters."""
    pooled = PooledClassifier(lm.bert("BertModel"), lm.SIZES["hidden_size"], lm.CLASSES)
    plain = nn.ModuleDict({"inside": pooled, "last": nn.Linear(2, 2)})
    for model, on_top in (
        (roberta(), {"classifier.dense", "classifier.out_proj"}),
        (pooled, {"classifier"}),
        (plain, {"last", "inside.classifier"}),
    ):
        model = with_lora(model, Lora(rank=2, targets=("query",)))
        model.requires_grad_(True)
        layers = {n.rpartition(".")[0] for n in adapted(model) if ".lora_" not in n}
        assert layers == on_top
        assert any(".lora_" in n for n in adapted(model))


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [None, Lora(rank=2)], ids=["all", "lora"])
@pytest.mark.parametrize("kept", ["alone", "with a tokenizer"])
def test_a_decoder_through_the_loader(tmp_path: Path, adapters: Any, kept: str) -> None:
    """GPT-2 has no padding token, and looks for the last token that is none."""
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS + 4, "n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 48}
    config = transformers.GPT2Config(**sizes, bos_token_id=3, eos_token_id=3)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    if kept != "alone":
        tokenizer().save_pretrained(tmp_path)
    model = sequence_classifier(str(tmp_path), 3, dropout=0.0, lora=adapters)
    padding = 3 if kept == "alone" else 0
    assert model.config.pad_token_id == padding
    model = trained(model).eval()
    batch = lm.episodes()
    for part in (batch.support, batch.query):
        tokens, mask = part.inputs["input_ids"], part.inputs["attention_mask"]
        tokens.remainder_(WORDS).add_(4).masked_fill_(mask == 0, padding)
    scope = "all" if adapters is None else lora(model)
    names = {n for n, _ in model.named_parameters()} if adapters is None else adapted(model)
    expected = hand_gradient(model, batch, 1, 0.1, names.__contains__)
    maml = fm.MAML(model, lr=0.1, loss=fm.losses.classification, scope=scope)
    check(meta_gradient(maml, batch), expected)


def test_a_loaded_encoder_keeps_its_padding(tmp_path: Path) -> None:
    model = sequence_classifier(str(save_model(tmp_path)), 3)
    assert model.config.pad_token_id == 0
