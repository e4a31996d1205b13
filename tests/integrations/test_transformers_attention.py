"""Attention of a user's own in models of transformers: registered, or in the place of theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from outcomes import as_by_hand
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm

transformers = pytest.importorskip("transformers")

Attention = Callable[..., tuple[Tensor, None]]
MASK = torch.ones(2, 3, 6, dtype=torch.long)


def squashed(scale: float) -> Attention:
    """Sigmoids in place of a softmax."""

    def run(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, **rest: Any) -> Any:
        n = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(n, 1), v.repeat_interleave(n, 1)
        scores = q @ k.transpose(-1, -2) * scale
        return (scores.sigmoid() @ v).transpose(1, 2), None

    return run


def model(implementation: str) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=23, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16,
        attn_implementation=implementation,
    )  # fmt: skip
    made = transformers.LlamaForCausalLM(config).eval().double()
    for p in made.parameters():
        nn.init.normal_(p, std=0.4)
    return made


def episodes() -> fm.Episodes:
    torch.manual_seed(1)
    ids = [torch.randint(0, 23, (2, 3, 6)) for _ in range(2)]
    labels = torch.randint(0, 23, (2, 3))
    return fm.Episodes(*(fm.Batch({"input_ids": x, "attention_mask": MASK}, labels) for x in ids))


def loss(output: Any, labels: Tensor) -> Tensor:
    return F.cross_entropy(output.logits[:, -1], labels)


def right(maml: fm.MAML) -> None:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        as_by_hand(maml, episodes(), loss, 0.1)


@pytest.fixture
def _own_names() -> Iterator[None]:
    interface = transformers.AttentionInterface
    before = dict(interface._global_mapping)
    interface.register("squashed", squashed(0.5))
    yield
    interface._global_mapping.clear()
    interface._global_mapping.update(before)


@pytest.mark.slow
@pytest.mark.usefixtures("_own_names")
@pytest.mark.parametrize("executor", [None, "eager"])
@pytest.mark.parametrize("name", ["squashed", "sdpa"])
def test_a_function_that_is_registered(name: str, executor: str | None) -> None:
    """Also in the place of transformers' own, and between calls."""
    maml = fm.MAML(model(name), 0.1, steps=2, loss=loss, executor=executor, spot_checks=False)
    right(maml)
    transformers.AttentionInterface.register(name, squashed(0.3))
    right(maml)


@pytest.mark.slow
@pytest.mark.parametrize("executor", [None, "eager"])
def test_a_function_in_the_place_of_a_models_eager_one(
    executor: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama import modeling_llama

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", squashed(0.5))
    maml = fm.MAML(model("eager"), 0.1, steps=2, loss=loss, executor=executor, spot_checks=False)
    for scale in (0.5, 1.5):
        monkeypatch.setattr(modeling_llama, "eager_attention_forward", squashed(scale))
        right(maml)
    assert "attention is left as it is" in str(maml.explain(episodes()))


@pytest.mark.slow
def test_a_function_that_its_layers_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """As libraries of fused kernels exchange them."""
    from transformers.models.llama import modeling_llama

    maml = fm.MAML(model("sdpa"), 0.1, steps=2, loss=loss, spot_checks=False)
    right(maml)
    usual = modeling_llama.apply_rotary_pos_emb

    def other(q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        q, k = usual(q, k, *args, **kwargs)
        return 2 * q, k

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", other)
    right(maml)
    monkeypatch.undo()
    right(maml)


@pytest.mark.slow
def test_a_function_that_a_decorated_method_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decorators keep the method in their closures, where it is not seen at once."""
    from transformers.models.llama import modeling_llama

    decorated = modeling_llama.LlamaModel.forward
    assert "create_causal_mask" not in decorated.__code__.co_names
    maml = fm.MAML(model("sdpa"), 0.1, steps=2, loss=loss, spot_checks=False)
    right(maml)
    before = maml(episodes()).loss

    def recent(*args: Any, **kwargs: Any) -> Tensor:
        return torch.arange(6, dtype=torch.float64).expand(6, 6)

    monkeypatch.setattr(modeling_llama, "create_causal_mask", recent)
    right(maml)
    assert maml(episodes()).loss != before, "the mask makes no difference: nothing was tested"


def _without_mask(kind: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 23, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "intermediate_size": 12, "max_position_embeddings": 16}
    own = {"Gemma2": {"head_dim": 4}, "Qwen3": {"head_dim": 4}}.get(kind, {})
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **own, "pad_token_id": 0})
    made: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config).eval().double()
    for p in made.parameters():
        nn.init.normal_(p, std=0.4)
    return made


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Gemma2", "GPTNeoX"])
def test_decoders_without_a_mask_are_recorded(kind: str) -> None:
    """They look whether the positions that they number themselves are of one text or several."""
    given = episodes()
    data = fm.Episodes(
        *(
            fm.Batch({"input_ids": b.inputs["input_ids"]}, b.targets)
            for b in (given.support, given.query)
        )
    )
    maml = fm.MAML(_without_mask(kind), 0.1, steps=2, loss=loss, executor="captured")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for _ in range(2):
            as_by_hand(maml, data, loss, 0.1)
