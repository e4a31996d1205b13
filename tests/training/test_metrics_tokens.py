"""Metrics of tokens where models have encoders, questions have options, or a task diverges."""

from __future__ import annotations

import math
from typing import Any

import generating
import pytest
import torch
import torch.nn.functional as F

import fastmaml as fm
from fastmaml.training.evaluation import evaluate
from fastmaml.training.metrics import Answers, Option

pytest.importorskip("transformers", reason="no transformers (fastmaml[text])")


def source(kind: str, choose: bool = False) -> fm.episodes.Instructions:
    return fm.episodes.instructions(
        generating.rows(), generating.tokenizer(), support=3, query=4, tasks=4, cache=False,
        max_length=32, choose=choose, decoder_start=0 if kind == "T5" else None, sampling="equal",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["GPT2", "T5"])
def test_names_mean_what_the_model_predicts(kind: str) -> None:
    """At each place the next token, or with an encoder the one in that place."""
    model = generating.model(kind)
    loss = fm.losses.seq2seq if kind == "T5" else fm.losses.causal
    maml = fm.MAML(model, lr=0.1, steps=1, loss=loss).eval()
    episodes = source(kind).sample()
    found = evaluate(maml, iter([episodes]), 4, 1, metrics="perplexity,exact_match")
    losses = maml.evaluate(episodes).losses
    assert found.scores["perplexity"].means[-1] == pytest.approx(losses.exp().mean().item(), 1e-5)
    out = maml.evaluate(episodes)
    shift = 0 if kind == "T5" else 1
    logits = out.outputs.logits[:, :, : out.targets.shape[2] - shift]
    labels = out.targets[:, :, shift:]
    right = ((logits.argmax(-1) == labels) | (labels == -100)).all(-1).double().mean().item()
    assert found.scores["exact_match"].means[-1] == pytest.approx(right)


def test_the_likeliest_option_by_hand() -> None:
    maml = fm.MAML(generating.model("GPT2"), lr=0.5, steps=2, loss=fm.losses.causal).eval()
    episodes = source("GPT2", choose=True).sample()
    found = evaluate(maml, iter([episodes]), 4, 2, metrics="option").scores["option"]
    out, right = maml.evaluate(episodes), []
    for task in range(4):
        logits, labels = out.outputs.logits[task], out.targets["labels"][task]
        options = len(labels) // 4
        for question in range(4):
            scores = []
            for option in range(options):
                row = question * options + option
                there = labels[row, 1:] != -100
                each = F.cross_entropy(logits[row, :-1][there], labels[row, 1:][there])
                scores.append(float(each) if there.any() else math.inf)
            right.append(scores.index(min(scores)) == out.targets["right"][task, question])
    assert found.means[-1] == pytest.approx(sum(map(float, right)) / 16)


def test_a_task_that_diverged_has_no_score() -> None:
    nan = torch.full((2, 3, 5), math.nan)
    labels = torch.tensor([[-100, 1, 2], [-100, 1, 3]])
    targets: Any = {"labels": labels, "right": torch.tensor([0])}
    assert math.isnan(Answers(nan, targets, math.nan).loss)
    maml = fm.MAML(generating.model("GPT2"), lr=1e6, steps=3, loss=fm.losses.causal).eval()
    episodes = source("GPT2", choose=True).sample()
    found = evaluate(maml, iter([episodes]), 4, 3, metrics="option,exact_match,loss")
    assert not math.isfinite(found.scores["loss"].means[-1])
    assert math.isnan(found.scores["option"].means[-1])
    assert math.isnan(found.scores["exact_match"].means[-1])
    assert Option(shifted=True).value(Answers(torch.zeros(2, 3, 5), labels, 1.0)) is None


def test_texts_as_long_as_the_vocabulary_is_large_have_no_accuracy_by_mistake() -> None:
    """Cross-entropy's classes come second, a language model's last: both would fit."""
    logits, labels = torch.randn(2, 3, 5, 5), torch.zeros(2, 3, 5, dtype=torch.int64)
    losses = torch.zeros(2)
    assert fm.MetaOutput(losses.mean(), losses, {"logits": logits}, labels).accuracy is None
    assert fm.MetaOutput(losses.mean(), losses, logits, labels).accuracy is not None
