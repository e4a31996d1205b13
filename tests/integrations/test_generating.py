"""Models that generate: losses of tokens, and meta-gradients with and without adapters by hand."""

from __future__ import annotations

from typing import Any

import generating
import pytest
import torch
import torch.nn.functional as F
from generating import KINDS
from language_models import METHODS, PATHS, check, hand_gradient, meta_gradient
from torch import Tensor, nn

import fastmaml as fm
from fastmaml.integrations.transformers import Lora, lora
from fastmaml.integrations.transformers.adapters import with_generating_lora

pytest.importorskip("transformers", reason="no transformers (fastmaml[text])")
pytest.importorskip("peft", reason="no peft (fastmaml[text])")

TOLERANCE = {"Llama": 1e-6, "GPT2": 1e-9, "T5": 1e-6}
"""Llama and T5 normalise in float32, whatever dtype they are of."""


def losses(kind: str) -> Any:
    return fm.losses.seq2seq if kind == "T5" else fm.losses.causal


def episodes(kind: str, choose: bool = False) -> fm.Episodes:
    source = fm.episodes.instructions(
        generating.rows(), generating.tokenizer(), support=3, query=2, tasks=2, cache=False,
        max_length=32, choose=choose, decoder_start=0 if kind == "T5" else None,
    )  # fmt: skip
    return source.sample()


def with_adapters(kind: str) -> nn.Module:
    """Adapters that are not new, half of whose derivatives would be zero."""
    task = "SEQ_2_SEQ_LM" if kind == "T5" else "CAUSAL_LM"
    model = with_generating_lora(generating.model(kind), Lora(rank=2), task)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_B" in name:
                p.normal_(std=0.1)
    return model.double().eval()


def by_hand(logits: Tensor, labels: Tensor, moved: int) -> float:
    found = []
    for row, wanted in zip(logits, labels, strict=True):
        for i, label in enumerate(wanted.tolist()):
            if label != -100 and i >= moved:
                found.append(-row[i - moved].log_softmax(-1)[label])
    return float(torch.stack(found).mean())


@pytest.mark.parametrize(("loss", "moved"), [("causal", 1), ("seq2seq", 0)])
def test_losses_of_tokens_are_means_over_the_tokens_that_count(loss: str, moved: int) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 5, 7), torch.randint(7, (4, 5))
    labels[:, :2] = -100
    labels[1] = -100
    labels[1, 2] = 3
    function = getattr(fm.losses, loss)
    assert float(function(logits, labels)) == pytest.approx(by_hand(logits, labels, moved), 1e-6)
    dictionary = {"labels": labels, "right": torch.tensor([1, 0])}
    right = by_hand(logits[[1, 2]], labels[[1, 2]], moved)
    assert float(function({"logits": logits}, dictionary)) == pytest.approx(right, 1e-6)
    assert function(logits, torch.full_like(labels, -100)).isnan()
    with pytest.raises(ValueError, match=rf"losses.{loss} was given logits of shape \[4, 5\]"):
        function(logits[..., 0], labels)


def test_losses_of_classes_of_tokens_and_of_values() -> None:
    logits, labels = torch.randn(2, 3, 4), torch.tensor([[0, 1, -100], [3, -100, -100]])
    wanted = F.cross_entropy(logits[labels >= 0], labels[labels >= 0])
    torch.testing.assert_close(fm.losses.token_classification(logits, labels), wanted)
    values, targets = torch.randn(5, 1), torch.randn(5)
    wanted = F.mse_loss(values[:, 0], targets)
    torch.testing.assert_close(fm.losses.regression(values, targets), wanted)
    with pytest.raises(ValueError, match=r"outputs of shape \[5, 2\] and targets of shape \[5\]"):
        fm.losses.regression(torch.randn(5, 2), targets)


def test_the_loss_of_the_model_itself_needs_no_targets() -> None:
    model = generating.model("GPT2").eval()
    given = episodes("GPT2")

    def labelled(batch: fm.Batch) -> fm.Batch:
        return fm.Batch({**batch.inputs, "labels": batch.targets})

    own = fm.Episodes(labelled(given.support), labelled(given.query))
    first = fm.MAML(model, lr=0.1, steps=2, loss=fm.losses.causal)
    other = fm.MAML(model, lr=0.1, steps=2, loss=fm.losses.own)
    wanted = torch.autograd.grad(first(given).loss, [*model.parameters()])
    for _ in range(3):  # the first one runs eagerly, the others are replays
        found = torch.autograd.grad(other(own).loss, [*model.parameters()])
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert other.evaluate(own).accuracy is None
    learner = other.adapt_to(own[0].support.map(lambda x: x[0]))
    assert isinstance(learner, type(model))
    with pytest.raises(ValueError, match="without a loss"):
        fm.losses.own(torch.zeros(3), None)


@pytest.mark.sampled(at_most=4)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "lora"])
def test_meta_gradients_are_those_by_hand(
    kind: str, path: str, method: str, adapters: bool
) -> None:
    model = with_adapters(kind) if adapters else generating.model(kind).double().eval()
    given = episodes(kind, choose=adapters)
    scope: Any = lora(model) if adapters else "all"
    maml = fm.MAML(
        model, lr=0.3, steps=2, loss=losses(kind), gradient=METHODS[method], scope=scope,
        **PATHS[path],
    )  # fmt: skip
    wanted = hand_gradient(model, given, 2, 0.3, loss=losses(kind))
    for _ in range(2):  # the first one runs eagerly, the other is a replay
        check(meta_gradient(maml, given), wanted, TOLERANCE[kind])
