"""Models of transformers of many kinds inside the meta-step, against themselves outside it."""

from __future__ import annotations

import threading
from typing import Any

import language_models as lm
import pytest
import torch
from language_models import METHODS, check, hand_gradient, meta_gradient
from torch import nn

import fastmaml as fm
from fastmaml.integrations.transformers.host import find_host

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (fastmaml[text])"
)

SPECIAL = {
    f"{x}_token_id": i for x, i in (("pad", 0), ("bos", 1), ("eos", 2), ("cls", 1), ("sep", 2))
}
ONE_KEY = {"num_key_value_heads": 1}
SLIDES = {**ONE_KEY, "sliding_window": 4}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta": ("Roberta", {}),
    "distilbert": (
        "DistilBert",
        {"n_layers": 2, "dim": 16, "n_heads": 2, "hidden_dim": 24},
    ),
    "electra": ("Electra", {"embedding_size": 8}),
    "albert": ("Albert", {"embedding_size": 8}),
    "modernbert": ("ModernBert", {"global_attn_every_n_layers": 2, "local_attention": 4}),
    "deberta": ("DebertaV2", {}),
    "mpnet": ("MPNet", {}),
    "gpt2": ("GPT2", {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 32}),
    "llama": ("Llama", ONE_KEY),
    "falcon": ("Falcon", {}),
}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon-alibi": ("Falcon", {"alibi": True}),
    "mistral": ("Mistral", SLIDES),
    "gemma2": ("Gemma2", {**SLIDES, "head_dim": 8}),
    "qwen3": ("Qwen3", {**ONE_KEY, "head_dim": 8}),
    "opt": ("OPT", {"ffn_dim": 24, "word_embed_proj_dim": 16}),
    "neox": ("GPTNeoX", {}),
    "t5": ("T5", {**T5, "decoder_start_token_id": 0}),
    "mobilebert": ("MobileBert", {}),
}
FLOAT32 = {"llama", "mistral", "gemma2", "qwen3"}
"""They normalise in float32, whatever their parameters are; eager softmax often does."""


def classifier(kind: str, **how: Any) -> nn.Module:
    name, more = {**KINDS, **MORE}[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**lm.SIZES, **more, **SPECIAL, **how)
    model: nn.Module = getattr(transformers, f"{name}ForSequenceClassification")(config)
    return model.double().eval()


def episodes() -> fm.Episodes:
    """With token 2, an end, as the last one of every text, which T5 looks for."""
    batch = lm.episodes()
    for part in (batch.support, batch.query):
        tokens, mask = part.inputs["input_ids"], part.inputs["attention_mask"]
        tokens[tokens == 2] = 3
        tokens.scatter_(-1, mask.sum(-1, keepdim=True) - 1, 2)
    return batch


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("kind", KINDS)
def test_meta_gradients(kind: str) -> None:
    """Batched over tasks, and equal to the loop by hand."""
    model, batch = classifier(kind), episodes()
    expected = hand_gradient(model, batch, 1, 0.1)
    maml = fm.MAML(model, lr=0.1, loss=fm.losses.classification, gradient=METHODS["checkpointed"])
    plan = maml.explain(batch)
    assert "vmap" in plan.reasons[0]
    assert "cannot" not in plan.reasons[0]
    found = meta_gradient(maml, batch)
    if kind in FLOAT32:
        expected = [None if g is None else g.float() for g in expected]
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, check_dtype=False, rtol=1e-4, atol=1e-5)
    else:
        check(found, expected)


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", [*KINDS, *MORE])
def test_without_inner_steps_a_model_is_itself(kind: str, attention: str) -> None:
    """Whatever branches it takes on the name of its attention, with padding."""
    model, batch = classifier(kind), episodes()
    model = model.float() if kind in FLOAT32 else model
    if attention == "eager":
        model.set_attn_implementation("eager")  # type: ignore[operator]
    maml = fm.MAML(model, lr=0.1, loss=fm.losses.classification, executor="eager")
    found = maml.evaluate(batch, 0).outputs["logits"]
    parts = [batch.query.map(lambda x, i=i: x[i]).inputs for i in range(batch.tasks)]
    with torch.no_grad():
        expected = torch.stack([model(**inputs).logits for inputs in parts])
    precise = 1e-6 if kind in FLOAT32 or attention == "eager" else 1e-11
    torch.testing.assert_close(found, expected, rtol=precise, atol=precise)
    assert expected.std() > 1e-5


def test_masks_outside_and_of_other_threads_are_transformers_own() -> None:
    """A mask of ones alone is none, which our masks, made without a look at it, never are."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, create_bidirectional_mask

    config = transformers.BertConfig(**lm.SIZES)
    config._attn_implementation = "sdpa"
    hidden, ones = torch.zeros(1, 3, 16), torch.ones(1, 3)
    before = dict(ALL_MASK_ATTENTION_FUNCTIONS)
    found: dict[str, Any] = {}

    def made(where: str) -> None:
        found[where] = create_bidirectional_mask(config, hidden, ones)

    def loss(output: Any, targets: Any) -> Any:
        thread = threading.Thread(target=made, args=("other",))
        thread.start()
        thread.join()
        made("inside")
        return fm.losses.classification(output, targets)

    maml = fm.MAML(lm.bert(), lr=0.1, loss=loss, executor="eager")
    maml.evaluate(lm.episodes(tasks=1), 0)
    made("outside")
    assert found["inside"] is not None
    assert found["other"] is None
    assert found["outside"] is None
    assert dict(ALL_MASK_ATTENTION_FUNCTIONS) == before


def test_models_within_models_keep_attention_that_has_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gemma 2 caps its scores, which only its own eager attention does."""
    model = classifier("gemma2")
    wrapper = classifier("mistral")
    wrapper.inner = model
    monkeypatch.setattr(type(wrapper.config), "sub_configs", {"inner_config": type(model.config)})
    wrapper.config.inner_config = model.config
    host = find_host(wrapper)
    assert host is not None
    with host.inside(lambda layer, *args: layer(*args)):
        assert wrapper.config._attn_implementation == "sdpa"
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "eager"
