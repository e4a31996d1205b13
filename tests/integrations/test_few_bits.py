"""Models of transformers in bfloat16, or quantized, under LoRA: meta-gradients, files, training."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import generating
import language_models as lm
import pytest
import torch
from hand_loop import Parameters, hand_loop
from quantized_layers import error
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastmaml as fm
from fastmaml.integrations.transformers import (
    Lora,
    language_model,
    lora,
    save_pretrained,
    with_lora,
)
from fastmaml.training.config import InstructionsConfig
from fastmaml.training.recipes import build_maml

transformers = pytest.importorskip("transformers", reason="no transformers (fastmaml[text])")
peft = pytest.importorskip("peft", reason="no peft (fastmaml[text])")
# Of a property of transformers' models that peft reads.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
METHODS = {
    "unrolled": fm.gradients.Unrolled(),
    "checkpointed": fm.gradients.Checkpointed(),
    "mixed-mode": fm.gradients.MixedMode(),
}
LR, STEPS = 0.5, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bases")
    for kind in ("Llama", "GPT2"):
        generating.save(kind, place / kind)
    return place


def trained(model: nn.Module) -> nn.Module:
    """With other adapters than new ones, half of whose derivatives are zero."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_B" in name:
                p.normal_(std=0.1)
    return model


def texts(tasks: int = 2) -> fm.Episodes:
    generator = torch.Generator().manual_seed(1)

    def batch() -> fm.Batch:
        tokens = torch.randint(4, 60, (tasks, 3, 7), generator=generator)
        mask = torch.ones_like(tokens)
        mask[:, 0, 5:] = 0
        labels = tokens.masked_fill(mask == 0, -100)
        return fm.Batch({"input_ids": tokens, "attention_mask": mask}, labels)

    return fm.Episodes(batch(), batch())


def by_hand(model: nn.Module, batch: fm.Episodes, loss: Any = fm.losses.causal) -> Parameters:
    with sdpa_kernel(SDPBackend.MATH):
        return hand_loop(model, loss, batch, LR, STEPS)[1]


def found(model: nn.Module, batch: fm.Episodes, loss: Any = fm.losses.causal, **more: Any) -> Any:
    maml = fm.MAML(model, lr=LR, steps=STEPS, loss=loss, scope=lora(model), **more)
    maml.zero_grad()
    maml(batch).loss.backward()
    if more.get("executor") is None:
        told = str(maml.explain(batch))
        assert "at a time under vmap" in told
        assert "executor: captured" in told
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def dense(model: nn.Module) -> nn.Module:
    """In float64, with dense weights."""
    exact = copy.deepcopy(model)
    for layer in exact.modules():
        if isinstance(layer, nn.Linear) and hasattr(layer.weight, "dequantize"):
            weight: Any = layer.weight
            if type(weight) is not nn.Parameter:
                layer.weight = nn.Parameter(weight.dequantize(), requires_grad=False)
    return exact.double()


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_bfloat16_errs_at_most_twice_as_much_as_torch(kind: str, method: str, folder: Path) -> None:
    loaded = language_model(str(folder / kind), lora=Lora(rank=2), dtype=torch.bfloat16)
    model, batch = trained(loaded), texts()
    kinds = {p.requires_grad: p.dtype for p in model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    expected = by_hand(copy.deepcopy(model).double(), batch)
    plain = error(by_hand(model, batch), expected)
    assert error(found(model, batch, gradient=METHODS[method]), expected) <= 2 * plain


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("method", METHODS)
def test_a_classifier_in_bfloat16(method: str) -> None:
    """Adapters are in float32, the last layer is not."""
    model = trained(with_lora(lm.bert().bfloat16(), Lora(rank=2)))
    kinds = {n: p.dtype for n, p in model.named_parameters() if p.requires_grad}
    assert {t for n, t in kinds.items() if ".lora_" in n} == {torch.float32}
    assert {t for n, t in kinds.items() if "classifier" in n} == {torch.bfloat16}
    batch, loss = lm.episodes(), fm.losses.classification
    expected = by_hand(copy.deepcopy(model).double(), batch, loss)
    plain = error(by_hand(model, batch, loss), expected)
    assert error(found(model, batch, loss, gradient=METHODS[method]), expected) <= 2 * plain


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "gradient checkpointing"])
@pytest.mark.parametrize("executor", ["eager", "captured"])
def test_eight_bits(executor: Any, checkpointing: bool, folder: Path) -> None:
    pytest.importorskip("torchao", reason="no torchao (fastmaml[quantized])")
    loaded = language_model(str(folder / "Llama"), lora=Lora(rank=2), quantize="int8")
    model, batch = trained(loaded), texts()
    assert type(model.get_output_embeddings().weight) is nn.Parameter  # type: ignore[operator]
    expected = by_hand(dense(model), batch)
    if checkpointing:
        name = "activation_checkpointing_enable"  # transformers' name of it since 5.20 or so
        getattr(model, name, getattr(model, "gradient_checkpointing_enable", None))()
        model.train()
    assert error(found(model, batch, executor=executor), expected) < 1e-5


@pytest.mark.parametrize("bits", [4, 8])
def test_as_transformers_loads_bitsandbytes(bits: int, tmp_path: Path) -> None:
    library = pytest.importorskip("bitsandbytes", reason="no bitsandbytes")
    base = generating.model("Llama").config
    base.hidden_size = base.intermediate_size = 64
    base.head_dim = 32
    transformers.LlamaForCausalLM(base).save_pretrained(tmp_path)
    asked = (
        transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True)
        if bits == 4
        else transformers.BitsAndBytesConfig(load_in_8bit=True)
    )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=asked, dtype=torch.float32
    )
    config = peft.LoraConfig(r=2, task_type="CAUSAL_LM")
    model, batch = trained(peft.get_peft_model(loaded, config)).train(), texts()
    exact: Any = copy.deepcopy(model)
    for name, layer in list(exact.named_modules()):
        if type(layer) in (library.nn.Linear4bit, library.nn.Linear8bitLt):
            weight = layer.weight
            state = layer.state if bits == 8 and weight.SCB is None else weight
            made = (
                library.functional.dequantize_4bit(weight.data, weight.quant_state)
                if bits == 4
                else weight.data.double() * state.SCB.double().unsqueeze(1) / 127
            )
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
            plain.weight = nn.Parameter(made, requires_grad=False)
            exact.set_submodule(name, plain)
    expected = by_hand(exact.double(), batch)
    for method in METHODS.values():
        assert error(found(model, batch, gradient=method, executor="eager"), expected) < 1e-4


def test_adapters_of_a_quantized_model_are_written_alone(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="no torchao (fastmaml[quantized])")
    model = trained(
        language_model(str(folder / "Llama"), lora=Lora(rank=2), quantize="int8")
    ).eval()
    assert save_pretrained(model, tmp_path / "out") == "adapter"
    base = language_model(str(folder / "Llama"), lora=Lora(rank=2), quantize="int8")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*without `get_apply_tensor_subclass`")
        again = peft.PeftModel.from_pretrained(base.unload(), tmp_path / "out").eval()  # type: ignore[operator]
    inputs = texts().support.map(lambda x: x[0]).inputs
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits)
    norms = [p for n, p in model.named_parameters() if "layernorm" in n]
    norms[0].requires_grad_()
    with pytest.raises(ValueError, match="merged into quantized weights"):
        save_pretrained(model, tmp_path / "other")
    with pytest.raises(ValueError, match="quantized after it was loaded"):
        save_pretrained(base.unload(), tmp_path / "other")  # type: ignore[operator]


def test_what_cannot_be_quantized_is_said_before(folder: Path) -> None:
    with pytest.raises(ValueError, match="give lora="):
        language_model(str(folder / "Llama"), quantize="int8")
    with pytest.raises(ValueError, match=r"quantize='int4': give 'int8'"):
        language_model(str(folder / "Llama"), lora=Lora(), quantize="int4")  # type: ignore[arg-type]
    config = InstructionsConfig(data="x", model=str(folder / "Llama"), base="int8")
    with pytest.raises(ValueError, match="give --scope lora"):
        build_maml(config)
    pytest.importorskip("torchao", reason="no torchao (fastmaml[quantized])")
    with pytest.raises(ValueError, match="GPT-2 has its own"):
        language_model(str(folder / "GPT2"), lora=Lora(), quantize="int8")


def test_a_quantized_last_layer_is_refused() -> None:
    pytest.importorskip("torchao", reason="no torchao (fastmaml[quantized])")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = lm.bert().float()
    quantize_(model, Int8WeightOnlyConfig())
    with pytest.raises(ValueError, match=r"modules_to_not_convert=\['classifier'\]"):
        with_lora(model, Lora(rank=2))
