"""Memory plans of families of models, and what is said of those that cannot be planned."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastmaml.cli import main
from fastmaml.gradients import Checkpointed, FirstOrder
from fastmaml.integrations.transformers import Lora
from fastmaml.measure.planning import plan_memory
from fastmaml.measure.planning.meta_step import Subject, Watch
from fastmaml.measure.planning.stand_in import stand_in

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

SIZES: dict[str, Any] = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 90},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0},
    **{"bos_token_id": 1, "eos_token_id": 2},
}
SETTING: dict[str, Any] = {
    **{"tasks": 1, "steps": 1, "tokens": 8, "support": 1, "query": 1, "layers": "kept"},
    "methods": FirstOrder(),
}


def llama() -> Any:
    return transformers.LlamaConfig(**SIZES)


@pytest.mark.parametrize("family", ["Gemma", pytest.param("Gemma3Text", marks=pytest.mark.slow)])
def test_models_that_make_tensors_of_numbers_are_planned(family: str) -> None:
    """Gemma multiplies embeddings by a buffer that `torch.tensor` makes."""
    config = getattr(transformers, f"{family}Config")(**SIZES, head_dim=16)
    plan = plan_memory(config, **SETTING)
    with torch.device("meta"):
        real = transformers.AutoModelForCausalLM.from_config(config)
    size = sum(p.numel() for p in real.parameters())
    assert plan.standing.parameters == size + plan.standing.learned
    assert plan.ways[0].fits


class Attribute(nn.Module):
    """Holds tensors as nothing but attributes."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.scale = torch.full((), 2.0)
        self.hidden = [self.scale] if hidden else []

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x * (self.hidden[0] if self.hidden else self.scale)
        return found


@pytest.mark.parametrize("hidden", [False, True])
def test_tensors_that_are_plain_attributes(hidden: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = transformers.AutoModelForCausalLM.from_config

    def scaled(config: Any, **more: Any) -> Any:
        model = made(config, **more)
        model.model.norm = nn.Sequential(model.model.norm, Attribute(hidden))
        return model

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_config", scaled)
    subject = Subject(llama(), Lora(4), torch.float32, 1, 1, (1, 1), 8, "reference")
    watch = Watch(subject, FirstOrder(), 1, False)
    if not hidden:
        assert watch.measurement().peak.bytes > 0
        return
    with pytest.raises(ValueError, match=r"llama cannot run on tensors without .* bench module"):
        watch.measurement()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lora": "8"}, "lora='8' is a str: give a rank such as 8, a Lora, or None"),
        ({"lora": True}, r"Lora\(rank=True\)"),
        ({"dtype": "bfloat16"}, "dtype='bfloat16' is a str: give .* torch.bfloat16"),
        ({"methods": ["unrolled"]}, "methods has 'unrolled', which is no gradient method"),
        ({"methods": "unrolled"}, "methods='unrolled': give gradient methods such as"),
        ({"methods": Checkpointed}, "methods=<class .*: give gradient methods such as"),
        ({"memory": "80"}, "memory='80' has no unit: write 80GiB"),
        ({"memory": " 1e9 "}, "has no unit: write 1e9GiB"),
        ({"memory": 80}, "memory=80 is 80 bytes, and no device has less than 1 MiB"),
        ({"memory": "80kB"}, "memory='80kB' is 80000 bytes"),
        ({"memory": -3}, "memory=-3: -3 is no size"),
    ],
)
def test_bad_arguments_say_what_to_write(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_memory(llama(), **{**SETTING, **wrong})


def test_bytes_are_a_number_and_a_method_needs_no_list() -> None:
    plan = plan_memory(llama(), **SETTING, memory=2**31)
    assert plan.memory == 2**31
    assert [way.method for way in plan.ways] == [FirstOrder()]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("T5Config", r"model=T5Config\(\.\.\.\) has an encoder and a decoder"),
        ("ViTConfig", r"model=ViTConfig\(\.\.\.\): .* makes no model of it .*encoders of texts\."),
    ],
)
def test_a_refused_model_is_named_in_a_line(config: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        plan_memory(getattr(transformers, config)(), **SETTING)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    "Phi3": (SIZES, "o_proj, qkv_proj, gate_up_proj, down_proj, lm_head"),
    "Mixtral": ({**SIZES, "num_local_experts": 2}, "q_proj, k_proj, v_proj, o_proj, lm_head"),
    "Mamba": (SIZES, "in_proj, x_proj, dt_proj, out_proj, lm_head"),
    "DistilBert": (
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "vocab_size": 90},
        "q_lin, k_lin, v_lin, out_lin, lin1, lin2, pre_classifier, classifier",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_without_known_places_are_told_which_there_are(family: str) -> None:
    sizes, names = FAMILIES[family]
    config = getattr(transformers, f"{family}Config")(**sizes)
    with pytest.raises(ValueError, match=re.escape(f"(targets=(...)), of {names}.")) as error:
        plan_memory(config, **SETTING)
    assert "lora=Lora(8, targets=(...)), or --lora-targets with names after it" in str(error.value)
    assert "\n" not in str(error.value)


def test_adapters_in_named_places() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        config = transformers.Phi3Config(**SIZES)
        model = stand_in(config, Lora(4, targets=("qkv_proj",)), torch.bfloat16, False)
    learned = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(learned) == 2
    assert all("qkv_proj.lora_" in name for name in learned)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--memory", "80"], "memory='80' has no unit: write 80GiB"),
        (["--lora", "0", "--lora-targets", "q_proj"], "leave one of them out"),
    ],
)
def test_the_command_says_what_to_write(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--plan", "llama-3-8b", *flags]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("fastmaml: ")
    assert message in said
