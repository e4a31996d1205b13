"""Which models of transformers are recorded and batched, and what is said of those that are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import generating
import pytest
import torch
from language_models import check, hand_gradient, meta_gradient
from torch import Tensor, nn

import fastmaml as fm

transformers = pytest.importorskip("transformers", reason="no transformers (fastmaml[text])")

WORDS, LENGTH, CLASSES = 40, 8, 3
SPECIAL = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2}


def tokens(**more: Callable[[Tensor], Tensor]) -> fm.Episodes:
    """Texts that end with token 2, and the next token of every place."""

    def batch(seed: int) -> fm.Batch:
        ids = torch.randint(3, WORDS, (2, 3, LENGTH), generator=torch.Generator().manual_seed(seed))
        ids[..., -1] = 2
        return fm.Batch({"input_ids": ids, **{n: make(ids) for n, make in more.items()}}, ids)

    return fm.Episodes(batch(0), batch(1))


def classes(**more: Callable[[Tensor], Tensor]) -> fm.Episodes:
    return fm.Episodes(*(
        fm.Batch(part.inputs, part.targets[..., 0] % CLASSES)
        for part in (tokens(**more).support, tokens(**more).query)
    ))  # fmt: skip


def restarting(ids: Tensor) -> Tensor:
    """Two texts in each row."""
    return torch.arange(LENGTH // 2).repeat(2).expand(ids.shape).contiguous()


def made(kind: str, task: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SPECIAL, num_labels=CLASSES, **settings)
    model: nn.Module = getattr(transformers, f"{kind}{task}")(config)
    return model.eval()


def lora_like(kind: str, **settings: Any) -> nn.Module:
    peft = pytest.importorskip("peft", reason="no peft (fastmaml[text])")
    model = made("Bert", "ForSequenceClassification", **SIZES, **HEADS)
    config = getattr(peft, f"{kind}Config")(target_modules=["query", "value"], **settings)
    found: nn.Module = peft.inject_adapter_in_model(config, model)
    return found


def whole(maml: fm.MAML, batch: fm.Episodes) -> dict[str, str]:
    lines = str(maml.explain(batch)).splitlines()
    return dict(line.split(": ", 1) for line in lines if ": " in line)


DECODERS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "Llama": (lambda: generating.model("Llama"), 1e-6),
    "GPT2": (lambda: generating.model("GPT2"), 1e-9),
    "Qwen2": (
        lambda: made("Qwen2", "ForCausalLM", num_key_value_heads=2, **SIZES, **HEADS), 1e-6
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("mask", [False, True], ids=["no mask", "mask"])
def test_decoders_are_recorded_and_batched_with_and_without_a_mask(kind: str, mask: bool) -> None:
    make, tolerance = DECODERS[kind]
    model = make().double().eval()
    batch = tokens(**({"attention_mask": torch.ones_like} if mask else {}))
    maml = fm.MAML(model, lr=0.1, steps=2, loss=fm.losses.causal, executor="captured")
    wanted = hand_gradient(model, batch, 2, 0.1, loss=fm.losses.causal)
    for _ in range(2):
        check(meta_gradient(maml, batch), wanted, tolerance)
    said = whole(maml, batch)
    assert said["tasks"] == "2 of 2 at a time under vmap"
    assert said["executor"].startswith("captured, ")


def test_padding_without_a_mask_is_still_warned_of_outside() -> None:
    model = generating.model("GPT2")
    maml = fm.MAML(model, lr=0.1, steps=1, loss=fm.losses.causal)
    maml(tokens())
    assert "warn_if_padding_and_no_attention_mask" not in model.__dict__
    assert "warn_if_padding_and_no_attention_mask" not in model.transformer.__dict__


@pytest.mark.parametrize("cache", [True, False])
def test_positions_that_begin_anew_mean_what_they_do_outside(cache: bool) -> None:
    """Without a cache and a mask, texts packed in one row do not see each other; with one they do.

    To see whether there are such, transformers looks at the positions: that is not recorded.
    """
    model, batch = generating.model("GPT2").double().eval(), tokens(position_ids=restarting)
    model.config.use_cache = cache
    maml = fm.MAML(model, lr=0.1, steps=2, loss=fm.losses.causal)
    wanted = hand_gradient(model, batch, 2, 0.1, loss=fm.losses.causal)
    check(meta_gradient(maml, batch), wanted, 1e-9)
    check(meta_gradient(maml, batch), wanted, 1e-9)
    said = whole(maml, batch)["executor"]
    assert said.startswith("captured") if cache else "reads a value back" in said
    assert not model._forward_pre_hooks
    model.config.use_cache = not cache
    other = hand_gradient(model, batch, 2, 0.1, loss=fm.losses.causal)
    assert any((a - b).abs().max() > 1e-6 for a, b in zip(wanted, other, strict=True))


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_encoders_in_bfloat16_are_recorded(kind: str) -> None:
    """As exact as plain PyTorch is in that dtype: at most twice its distance from float32."""
    exact = made(kind, "ForSequenceClassification", **SIZES, **HEADS)
    narrow = made(kind, "ForSequenceClassification", **SIZES, **HEADS).bfloat16()
    batch = classes(attention_mask=torch.ones_like)
    maml = fm.MAML(narrow, lr=0.05, steps=2, loss=fm.losses.classification, executor="captured")
    wanted = hand_gradient(exact, batch, 2, 0.05)
    plain = hand_gradient(narrow, batch, 2, 0.05)

    def off(found: list[Any]) -> float:
        pairs = [(a.float(), b) for a, b in zip(found, wanted, strict=True) if a is not None]
        return float(torch.stack([(a - b).norm() for a, b in pairs]).norm())

    meta_gradient(maml, batch)
    assert off(meta_gradient(maml, batch)) <= 2 * off(plain)
    assert whole(maml, batch)["executor"].startswith("captured, ")


RECORDED: dict[str, tuple[Callable[[], nn.Module], Callable[[], fm.Episodes], str]] = {
    "Deberta": (
        lambda: made("Deberta", "ForSequenceClassification", relative_attention=True,
                     pos_att_type=["c2p", "p2c"], **SIZES, **HEADS),
        lambda: classes(attention_mask=torch.ones_like), "2 of 2 at a time under vmap",
    ),
    "Bloom": (
        lambda: made("Bloom", "ForCausalLM", hidden_size=16, n_layer=2, n_head=2),
        tokens, "setup_context",
    ),
    "LoHa": (
        lambda: lora_like("LoHa", r=2),
        lambda: classes(attention_mask=torch.ones_like), "setup_context",
    ),
    "OFT": (
        lambda: lora_like("OFT", oft_block_size=4),
        lambda: classes(attention_mask=torch.ones_like), "vmap cannot batch this model",
    ),
}  # fmt: skip
UNRECORDED: dict[str, tuple[Callable[[], nn.Module], Callable[[], fm.Episodes], str]] = {
    "T5": (
        lambda: made("T5", "ForSequenceClassification", d_model=16, d_kv=8, d_ff=24, num_layers=2,
                     num_heads=2, decoder_start_token_id=0),
        lambda: classes(attention_mask=torch.ones_like), "unique_consecutive",
    ),
    "FNet": (
        lambda: made("FNet", "ForSequenceClassification", **SIZES),
        classes, "reinterprets a tensor's memory in another dtype",
    ),
    "Mixtral, eager experts": (
        lambda: made("Mixtral", "ForCausalLM", num_key_value_heads=2, num_local_experts=3,
                     experts_implementation="eager", **SIZES, **HEADS),
        tokens, "reads a value back",
    ),
    "FourierFT": (
        lambda: lora_like("FourierFT", n_frequency=10),
        lambda: classes(attention_mask=torch.ones_like),
        "reinterprets a tensor's memory in another dtype",
    ),
}  # fmt: skip


def loss_of(batch: fm.Episodes) -> Any:
    return fm.losses.causal if batch.query.targets.ndim == 3 else fm.losses.classification


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("kind", RECORDED)
def test_other_models_are_recorded(kind: str) -> None:
    make, data, tasks = RECORDED[kind]
    model, batch = make().double().eval(), data()
    maml = fm.MAML(model, lr=0.05, steps=2, loss=loss_of(batch), executor="captured")
    wanted = hand_gradient(model, batch, 2, 0.05, loss=loss_of(batch))
    for _ in range(2):
        check(meta_gradient(maml, batch), wanted, 1e-6)
    said = whole(maml, batch)
    assert tasks in said["tasks"]
    assert said["executor"].startswith("captured, ")


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("kind", UNRECORDED)
def test_of_those_that_are_not_the_reason_is_said(kind: str) -> None:
    make, data, reason = UNRECORDED[kind]
    model, batch = make().double().eval(), data()
    maml = fm.MAML(model, lr=0.05, steps=2, loss=loss_of(batch))
    wanted = hand_gradient(model, batch, 2, 0.05, loss=loss_of(batch))
    check(meta_gradient(maml, batch), wanted, 1e-6)
    assert reason in whole(maml, batch)["executor"]
