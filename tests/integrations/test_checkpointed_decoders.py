"""Gradient checkpointing of decoders of transformers, against the same without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from language_models import METHODS, PATHS, TOLERANCE, check, meta_gradient
from torch import nn

import fastmaml as fm

pytest.importorskip("transformers", reason="transformers is not installed (fastmaml[text])")


def decoder(kind: str, dropout: float) -> nn.Module:
    """A decoder of two layers in float64, in training mode."""
    import transformers

    torch.manual_seed(0)
    small = {"vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "gpt2":
        rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
        config: Any = transformers.GPT2Config(
            hidden_size=16, n_positions=32, bos_token_id=1, eos_token_id=2, **small, **rates
        )
    else:
        config = transformers.LlamaConfig(
            hidden_size=16, intermediate_size=24, attention_dropout=dropout, **small,
            attn_implementation="sdpa" if kind == "llama" else "eager",
        )  # fmt: skip
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    return model.double().train()


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("path", ["eager", "native"])
@pytest.mark.parametrize("method", ["unrolled", "checkpointed", "segments", "mixed-mode"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama of eager attention"])
def test_checkpointed_layers_of_decoders(kind: str, dropout: float, method: str, path: str) -> None:
    """Llama's norms are in float32, which rounds; the masks are the same ones."""
    model, tokens = decoder(kind, dropout), torch.randint(1, 50, (2, 4, 9))
    given = fm.Batch({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, tokens)
    batch = fm.Episodes(given, given)
    found = []
    for switch in ("disable", "enable"):
        old = getattr(model, f"gradient_checkpointing_{switch}", None)
        getattr(model, f"activation_checkpointing_{switch}", old)()
        maml = fm.MAML(
            model, lr=0.1, steps=2, loss=lambda y, t: nn.functional.cross_entropy(
                y.logits.flatten(0, 1), t.flatten()
            ), gradient=METHODS[method], **PATHS[path],
        )  # fmt: skip
        found.append(meta_gradient(maml, batch))
    check(found[1], found[0], TOLERANCE if kind == "gpt2" else 1e-6)
    plan = maml.explain(batch)
    assert plan.batched
    assert ("executor: captured" in str(plan)) == (path != "eager")


def switch_on(model: nn.Module) -> None:
    old = getattr(model, "gradient_checkpointing_enable", None)
    getattr(model, "activation_checkpointing_enable", old)()


def test_layers_run_again_with_the_attention_that_they_ran_with() -> None:
    """Eager attention takes a missing mask for none: it is causal by its mask alone."""
    tokens, found = torch.randint(1, 50, (2, 4, 9)), []
    given = fm.Batch({"input_ids": tokens}, tokens)
    batch = fm.Episodes(given, given)
    for again in (False, True):
        model = decoder("llama of eager attention", 0.0)
        if again:
            switch_on(model)
        loss = fm.losses.causal
        found.append(meta_gradient(fm.MAML(model, lr=0.1, steps=1, loss=loss), batch))
        assert model.config._attn_implementation == "eager"
    check(found[1], found[0], 1e-6)


class Routed(nn.Module):
    """What transformers' hooks collect of the routers inside checkpointed layers."""

    def __init__(self) -> None:
        super().__init__()
        import transformers

        torch.manual_seed(0)
        config = transformers.MixtralConfig(
            vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, num_local_experts=2,
            num_experts_per_tok=2, use_cache=False, experts_implementation="eager",
        )  # fmt: skip
        self.model = transformers.MixtralForCausalLM(config)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out = self.model(input_ids=tokens, output_router_logits=True)
        even = sum(r.softmax(-1).square().mean() for r in out.router_logits)
        return out.logits[:, -1, :3] + 5 * even * torch.arange(3)


def test_router_losses_of_checkpointed_layers() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 50, (2, 4, 7), generator=generator)
    given = fm.Batch(tokens, torch.randint(3, (2, 4), generator=generator))
    found = []
    for again in (False, True):
        model = Routed().double().train()
        if again:
            switch_on(model.model)
        maml = fm.MAML(model, lr=0.1, steps=1, loss=nn.functional.cross_entropy, executor="eager")
        found.append(meta_gradient(maml, fm.Episodes(given, given)))
    check(found[1], found[0], 1e-6)


def test_clones_of_checkpointed_decoders_keep_what_their_layers_compute() -> None:
    tokens, found = torch.randint(1, 50, (2, 3, 7)), []
    for switch in ("disable", "enable"):
        model: Any = decoder("gpt2", 0.1)
        old = getattr(model, f"gradient_checkpointing_{switch}", None)
        getattr(model, f"activation_checkpointing_{switch}", old)()
        learner = fm.MAML(model, lr=0.1).clone()
        torch.manual_seed(3)
        for _ in range(2):
            learner.adapt(learner(input_ids=tokens[0], labels=tokens[0], use_cache=False).loss)
        learner(input_ids=tokens[1], labels=tokens[1], use_cache=False).loss.backward()
        found.append([p.grad for p in model.parameters()])
    check(found[1], found[0], TOLERANCE)
