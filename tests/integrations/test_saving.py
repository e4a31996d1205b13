"""What is written by `save_pretrained` is what transformers and peft load."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import generating
import pytest
import torch
from tiny_language import save_model
from tiny_language import tokenizer as encoder_tokenizer
from torch import nn

import fastmaml as fm
from fastmaml.integrations.transformers import (
    Lora,
    for_classes,
    language_model,
    lora,
    save_pretrained,
    sequence_classifier,
)

transformers = pytest.importorskip("transformers", reason="no transformers (fastmaml[text])")
peft = pytest.importorskip("peft", reason="no peft (fastmaml[text])")
# Of a property of transformers' models that peft reads.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


def moved(model: nn.Module) -> nn.Module:
    """With all that can be learned elsewhere than it was."""
    torch.manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def logits(model: nn.Module, texts: tuple[str, ...] = ("w1 w2", "w3 w4 w5")) -> torch.Tensor:
    words = encoder_tokenizer()(list(texts), padding=True, return_tensors="pt")
    words.pop("token_type_ids")
    with torch.no_grad():
        found = model.eval()(**words)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_adapters_of_a_model_that_generates(kind: str, tmp_path: Path) -> None:
    base = str(generating.save(kind, tmp_path / "base"))
    model = moved(language_model(base, lora=Lora(rank=2)))
    assert save_pretrained(model, tmp_path / "out", generating.tokenizer()) == "adapter"
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size < 20_000
    found = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(found), logits(model))
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = words("w1", return_tensors="pt", add_special_tokens=False)["input_ids"]
    asked: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    answers = [m.generate(input_ids=prompt, **asked) for m in (found, model)]
    assert torch.equal(*answers)


def test_a_model_whose_weights_beneath_were_learned_too(tmp_path: Path) -> None:
    base = str(generating.save("GPT2", tmp_path / "base"))
    model = language_model(base, lora=Lora(rank=2))
    for p in model.parameters():
        p.requires_grad_()
    moved(model)
    before = {n: p.clone() for n, p in model.named_parameters()}
    assert save_pretrained(model, tmp_path / "out") == "model"
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(found), logits(model))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), "saving must not change the model"


@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "lora"])
def test_a_classifier_by_transformers_or_peft(adapters: bool, tmp_path: Path) -> None:
    base = str(save_model(tmp_path / "base"))
    model = moved(sequence_classifier(base, 3, lora=Lora(rank=2) if adapters else None))
    kind = save_pretrained(model, tmp_path / "out")
    assert kind == ("adapter" if adapters else "model")
    if adapters:
        cls = peft.AutoPeftModelForSequenceClassification
        found = cls.from_pretrained(tmp_path / "out", num_labels=3)
    else:
        cls = transformers.AutoModelForSequenceClassification
        found = cls.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(found), logits(model))


@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "lora"])
def test_a_classifier_on_the_mean(adapters: bool, tmp_path: Path) -> None:
    base = str(save_model(tmp_path / "base"))
    rank = Lora(rank=2) if adapters else None
    model = moved(sequence_classifier(base, 3, pooling="mean", lora=rank))
    assert save_pretrained(model, tmp_path / "out") == "model"
    found = sequence_classifier(str(tmp_path / "out"), 3, pooling="mean")
    torch.testing.assert_close(logits(found), logits(model))
    other = sequence_classifier(str(tmp_path / "out"), 4, pooling="mean")
    assert logits(other).shape == (2, 4)


@pytest.mark.parametrize("targets", [("c_attn", "lm_head"), ("c_attn", "wte")])
def test_an_adapter_of_a_tied_weight_changes_its_own_layer_alone(
    targets: tuple[str, ...], tmp_path: Path
) -> None:
    base = str(generating.save("GPT2", tmp_path / "base"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of tied weights
        model = language_model(base, lora=Lora(rank=2, targets=targets))
    for p in model.parameters():
        p.requires_grad_()
    moved(model)
    assert save_pretrained(model, tmp_path / "out") == "model"
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(found), logits(model))


def test_an_adapter_inside_the_last_layers_is_merged(tmp_path: Path) -> None:
    """Peft cannot load adapters of a module that it keeps whole."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"intermediate_size": 16, "vocab_size": 64, "max_position_embeddings": 40}
    transformers.RobertaModel(
        transformers.RobertaConfig(**sizes, **more, pad_token_id=0)
    ).save_pretrained(tmp_path / "base")
    generating.tokenizer().save_pretrained(tmp_path / "base")
    lora = Lora(rank=2, targets=("query", "dense"))
    model = moved(sequence_classifier(str(tmp_path / "base"), 3, lora=lora))
    assert save_pretrained(model, tmp_path / "out") == "model"
    found = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(found), logits(model))


def test_adapters_of_another_name(tmp_path: Path) -> None:
    base = str(save_model(tmp_path / "base"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    config = peft.LoraConfig(r=2, target_modules=["query"])
    model.requires_grad_(False)
    model = peft.inject_adapter_in_model(config, model, adapter_name="mine")
    model.classifier.requires_grad_()
    moved(model)
    assert save_pretrained(model, tmp_path / "out") == "adapter"
    cls = peft.AutoPeftModelForSequenceClassification
    found = cls.from_pretrained(tmp_path / "out", num_labels=3)
    assert torch.equal(logits(found), logits(model))


def test_the_names_of_classes_lie_beside_an_adapter(tmp_path: Path) -> None:
    base = str(save_model(tmp_path / "base"))
    model = for_classes(sequence_classifier(base, 3, lora=Lora(rank=2)), ["no", "yes"])
    assert save_pretrained(model, tmp_path / "out") == "adapter"
    names = json.loads((tmp_path / "out" / "id2label.json").read_text())
    assert names == {"0": "no", "1": "yes"}
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file: give a folder"):
        save_pretrained(model, tmp_path / "file")


def test_what_is_adapted_and_what_is_meta_learned(tmp_path: Path) -> None:
    base = str(generating.save("Llama", tmp_path / "base"))
    model = language_model(base, lora=Lora(rank=2))
    maml = fm.MAML(model, lr=0.5, steps=2, loss=fm.losses.causal, scope=lora(model))
    words, rows = generating.tokenizer(), generating.rows(1)
    support = fm.episodes.answered(rows, words, max_length=32, cache=False)
    learner = maml.adapt_to(support)
    assert maml.save_pretrained(tmp_path / "before", words) == "adapter"
    assert save_pretrained(learner, tmp_path / "after", words) == "adapter"
    before, after = (
        peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / name)
        for name in ("before", "after")
    )
    assert torch.equal(logits(before), logits(model))
    assert torch.equal(logits(after), logits(learner))
    assert not torch.equal(logits(before), logits(after))
    found = fm.losses.causal(after(**support.inputs), support.targets)
    assert found < fm.losses.causal(before(**support.inputs), support.targets)


def test_what_has_no_such_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a Linear has no save_pretrained"):
        save_pretrained(nn.Linear(2, 2), tmp_path)


def test_logits_that_a_task_lacks_are_taken_away(tmp_path: Path) -> None:
    for pooling in ("model", "mean"):
        folder = tmp_path / pooling
        base = str(save_model(tmp_path / "base"))
        model = sequence_classifier(base, 4, pooling=pooling)  # type: ignore[arg-type]
        wanted = logits(model)[:, :2]
        torch.testing.assert_close(logits(for_classes(model, ["no", "yes"])), wanted)
        save_pretrained(model, folder)
        found = sequence_classifier(str(folder), 2, pooling=pooling)  # type: ignore[arg-type]
        torch.testing.assert_close(logits(found), wanted)
        assert transformers.AutoConfig.from_pretrained(folder).id2label == {0: "no", 1: "yes"}
        with pytest.raises(ValueError, match="has 2 logits"):
            for_classes(model, ["a", "b", "c"])
