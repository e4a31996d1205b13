"""Models of transformers inside the meta-step, against a loop written by hand, in float64."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import language_models as lm
import pytest
import torch
from language_models import METHODS, PATHS, check, hand_gradient, meta_gradient
from torch import Tensor, nn

import fastmaml as fm
from fastmaml import ops

pytest.importorskip("transformers", reason="transformers is not installed (fastmaml[text])")


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", METHODS)
def test_padded_text(method: str, path: str) -> None:
    model, batch = lm.bert(), lm.episodes()
    expected = hand_gradient(model, batch, 2, 0.1)
    maml = fm.MAML(
        model, lr=0.1, steps=2, loss=fm.losses.classification, gradient=METHODS[method],
        **PATHS[path],
    )  # fmt: skip
    check(meta_gradient(maml, batch), expected)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("path", ["eager", "native"])
@pytest.mark.parametrize("method", ["unrolled", "segments", "mixed-mode"])
def test_a_zero_head_a_task(method: str, path: str) -> None:
    model, batch = lm.bert(), lm.episodes()
    zero = {
        f"classifier.{n}": torch.zeros_like(p).requires_grad_()
        for n, p in model.classifier.named_parameters()
    }
    expected = hand_gradient(model, batch, 3, 0.1, head=zero)
    maml = fm.MAML(
        model, lr=0.1, steps=3, loss=fm.losses.classification, gradient=METHODS[method],
        head=fm.heads.Zero(), **PATHS[path],
    )  # fmt: skip
    check(meta_gradient(maml, batch), expected)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "method", ["unrolled", "checkpointed", "segments", "mixed-mode", "mixed-segments"]
)
def test_dropout_draws_the_same_masks(method: str, path: str) -> None:
    """In the hand-written loop attention is eager: its dropout is a call of F.dropout."""
    model, batch = lm.bert(attn_implementation="eager").train(), lm.episodes()
    expected = hand_gradient(model, batch, 3, 0.1)
    model.config._attn_implementation = "sdpa"
    maml = fm.MAML(
        model, lr=0.1, steps=3, loss=fm.losses.classification, gradient=METHODS[method],
        **PATHS[path],
    )  # fmt: skip
    check(meta_gradient(maml, batch), expected)
    other = meta_gradient(maml, batch, seed=4)
    with pytest.raises(AssertionError):
        check(other, expected)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("frozen", [True, False], ids=["only", "adapted"])
@pytest.mark.parametrize("method", ["unrolled", "checkpointed", "mixed-mode"])
def test_lora(method: str, frozen: bool, path: str) -> None:
    """Adapters as all that adapts, and as all that is learned or not."""
    pytest.importorskip("peft", reason="peft is not installed (fastmaml[text])")
    from fastmaml.integrations import transformers as integration

    model = integration.with_lora(lm.bert(), integration.Lora(rank=2)).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_B" in name:  # zero at first, as are then the derivatives of the others
                p.normal_(std=0.1)
            p.requires_grad_(p.requires_grad or not frozen)
    scope = integration.lora(model)
    batch = lm.episodes()
    expected = hand_gradient(model, batch, 2, 0.5, lambda n: scope(n, None))  # type: ignore[arg-type]
    maml = fm.MAML(
        model, lr=0.5, steps=2, loss=fm.losses.classification, gradient=METHODS[method],
        scope=scope, **PATHS[path],
    )  # fmt: skip
    found = meta_gradient(maml, batch)
    check(found, expected)
    learned = {
        n for (n, _), g in zip(model.named_parameters(), found, strict=True) if g is not None
    }
    assert any("word_embeddings" in n for n in learned) is not frozen


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["unrolled", "checkpointed", "mixed-mode"])
def test_tied_embeddings(method: str, path: str) -> None:
    """A masked language model, whose output layer is its embedding."""
    model = lm.bert("BertForMaskedLM")
    decoder, table = model.cls.predictions.decoder, model.bert.embeddings.word_embeddings
    assert decoder.weight is table.weight
    batch = lm.episodes(examples=2)

    def with_labels(b: fm.Batch) -> fm.Batch:
        return fm.Batch({**b.inputs, "labels": b.inputs["input_ids"].roll(1, -1)}, b.targets)

    batch = fm.Episodes(with_labels(batch.support), with_labels(batch.query))
    own: Callable[..., Tensor] = lambda output, _: output.loss  # noqa: E731
    expected = hand_gradient(model, batch, 2, 0.1, loss=own)
    maml = fm.MAML(model, lr=0.1, steps=2, loss=own, gradient=METHODS[method], **PATHS[path])
    check(meta_gradient(maml, batch), expected)


@pytest.mark.slow
def test_an_embedding_adapts_in_the_rows_that_are_looked_up() -> None:
    model, batch = lm.bert(), lm.episodes()
    maml = fm.MAML(model, lr=0.1, loss=fm.losses.classification)
    plan = maml.explain(batch)
    assert [t.name for t in plan.tables] == ["bert.embeddings.word_embeddings.weight"]
    assert "at most 72 of 2,500" in str(plan)
    tied = fm.MAML(
        lm.bert("BertForMaskedLM"), lr=0.1, loss=lambda y, t: y.logits.square().mean(),
        executor="eager",
    )  # fmt: skip
    assert not tied.explain(batch).tables
    decayed = fm.rules.chain(fm.rules.WeightDecay(0.1), fm.rules.ClipNorm(1.0), fm.rules.SGD(0.1))
    for rule, some in [
        (fm.rules.MetaSGD(0.1), False),
        (fm.rules.Adam(0.01), True),
        (decayed, False),
    ]:
        maml = fm.MAML(model, rule=rule, loss=fm.losses.classification, executor="eager")
        plan = maml.explain(batch)
        assert bool(plan.tables) is some, rule


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    [
        fm.rules.Adam(0.01),
        fm.rules.AdamW(0.01, weight_decay=0.1),
        fm.rules.Momentum(0.1, 0.9),
        fm.rules.chain(fm.rules.ClipNorm(0.5), fm.rules.SGD(0.1)),
        fm.rules.chain(fm.rules.WeightDecay(0.1), fm.rules.SGD(0.1)),
        fm.rules.LSLR(0.1),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_rows_that_are_looked_up_are_all_that_matters(rule: fm.rules.Rule) -> None:
    """The same with the whole table."""
    model, batch = lm.bert(), lm.episodes()
    maml = fm.MAML(model, rule=rule, steps=2, loss=fm.losses.classification, executor="eager")
    assert maml.explain(batch).tables
    found = meta_gradient(maml, batch)
    rates = [p.grad for p in maml.rates.parameters()]
    whole = fm.MAML(
        _reading_the_table(model), rule=rule, steps=2, loss=fm.losses.classification,
        executor="eager",
    )  # fmt: skip
    assert not whole.explain(batch).tables
    check(found, meta_gradient(whole, batch))
    for a, b in zip(rates, [p.grad for p in whole.rates.parameters()], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def _reading_the_table(model: nn.Module) -> nn.Module:
    """The same numbers from a model that uses its table a second time, so that it stays whole."""

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output + 0 * module.weight.detach().sum()  # type: ignore[union-attr, operator]

    copied = copy.deepcopy(model)
    copied.bert.embeddings.word_embeddings.register_forward_hook(hook)  # type: ignore[union-attr]
    return copied


def test_tables_reach_their_op_in_batched_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastmaml._C", reason="the native module is not built")
    op, calls = ops.task_embedding, []

    def counted(*given: Any, **how: Any) -> Tensor:
        calls.append(given[0].shape)
        return op(*given, **how)

    monkeypatch.setattr(ops, "task_embedding", counted)
    maml = fm.MAML(
        lm.bert(), lr=0.1, loss=fm.losses.classification, executor="eager", backend="cpp"
    )
    maml(lm.episodes())
    calls.clear()  # those of the plan, one of which is no batch
    maml(lm.episodes())
    assert len(calls) == 2 * 3  # words, positions and segments, in two passes


@pytest.mark.slow
def test_what_models_are_not_changed_into() -> None:
    """Settings are as they were after a meta-step, and after one that failed."""
    model, batch = lm.bert(attn_implementation="eager"), lm.episodes()

    def fails(output: Any, targets: Tensor) -> Tensor:
        assert model.config._attn_implementation == "sdpa"
        raise KeyError("no such thing")

    with pytest.raises(KeyError):
        fm.MAML(model, lr=0.1, loss=fails)(batch)
    assert model.config._attn_implementation == "eager"
    before = model(**batch.support.map(lambda x: x[0]).inputs).logits
    fm.MAML(model, lr=0.1, loss=fm.losses.classification)(batch).loss.backward()
    assert model.config._attn_implementation == "eager"
    assert torch.equal(model(**batch.support.map(lambda x: x[0]).inputs).logits, before)


@pytest.mark.slow
def test_attentions_are_there_for_those_who_ask() -> None:
    model, batch = lm.bert(attn_implementation="eager", output_attentions=True), lm.episodes()
    out = fm.MAML(model, lr=0.1, loss=fm.losses.classification)(batch)
    assert len(out.outputs["attentions"]) == 2
    assert out.outputs["attentions"][0].shape == (2, 4, 2, lm.LENGTH, lm.LENGTH)


def test_a_causal_language_model_with_its_own_loss() -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        **lm.SIZES, bos_token_id=1, eos_token_id=2, loss_type="ForCausalLM"
    )
    model = transformers.GPT2LMHeadModel(config).double().eval()
    tokens = torch.randint(3, lm.VOCABULARY, (2, 2, 3, lm.LENGTH))
    mask = torch.ones_like(tokens[0])
    support, query = (
        fm.Batch({"input_ids": x, "labels": x, "attention_mask": mask}, torch.zeros(2, 3))
        for x in tokens
    )
    batch = fm.Episodes(support, query)
    own: Callable[..., Tensor] = lambda output, _: output.loss  # noqa: E731
    expected = hand_gradient(model, batch, 2, 0.1, loss=own)
    maml = fm.MAML(model, lr=0.1, steps=2, loss=own, executor="captured")
    found = meta_gradient(maml, batch)
    for a, b in zip(found, expected, strict=True):  # transformers takes this loss in float32
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
    assert model.config.use_cache


def test_prototypes_of_a_decoder() -> None:
    """Its own last layer has no bias, which they need; one on the mean over the tokens has."""
    import transformers

    from fastmaml.integrations.transformers import PooledClassifier

    torch.manual_seed(0)
    config = transformers.GPT2Config(**lm.SIZES, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    how: dict[str, Any] = {"lr": 0.1, "steps": 0, "head": fm.heads.Prototype()}
    with pytest.raises(ValueError, match=r"needs a bias .*score\.weight .*pooling='mean'"):
        fm.MAML(transformers.GPT2ForSequenceClassification(config), **how)
    body = transformers.GPT2Model(config)
    model = PooledClassifier(body, config.hidden_size, lm.CLASSES).double().eval()
    maml = fm.MAML(model, loss=fm.losses.classification, **how)
    task = lm.episodes(tasks=1, examples=9)
    found = maml.evaluate(task, 0).outputs[0]
    parts = [part.map(lambda x: x[0]) for part in (task.support, task.query)]
    model.classifier = nn.Identity()
    with torch.no_grad():
        support, query = (model(**part.inputs) for part in parts)
        means = [support[parts[0].targets == c].mean(0) for c in range(lm.CLASSES)]
        distances = torch.cdist(query, torch.stack(means)).square()
    torch.testing.assert_close(found.softmax(-1), (-distances).softmax(-1), rtol=1e-6, atol=1e-8)


def test_padding_rows_get_no_gradient_under_vmap() -> None:
    """PyTorch's rule for embeddings under vmap forgets padding_idx."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(8, 4, padding_idx=1), nn.Flatten(), nn.Linear(12, 3)
    ).double()
    tokens = torch.randint(0, 8, (4, 5, 3))
    tokens[:, :, 0] = 1
    labels = torch.randint(3, (4, 5))
    batch = fm.Episodes(
        *(fm.Batch(x, y) for x, y in zip(tokens.split(2), labels.split(2), strict=True))
    )
    loss = nn.CrossEntropyLoss()
    expected = hand_gradient(model, batch_of_tuples(batch), 2, 0.5, loss=loss)
    assert not expected[0][1].any()
    check(meta_gradient(fm.MAML(model, lr=0.5, steps=2, loss=loss), batch), expected)


def batch_of_tuples(batch: fm.Episodes) -> fm.Episodes:
    """Inputs as keyword arguments, as the loop by hand passes them."""
    return fm.Episodes(
        *(fm.Batch({"input": b.inputs}, b.targets) for b in (batch.support, batch.query))
    )


@pytest.mark.slow
def test_bfloat16_autocast_keeps_float32_masters() -> None:
    model, batch = lm.bert().float(), lm.episodes()
    maml = fm.MAML(model, lr=0.1, steps=2, loss=fm.losses.classification)
    exact = meta_gradient(maml, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = meta_gradient(maml, batch)
        cast = fm.MAML(model, lr=0.1, loss=fm.losses.classification).explain(batch)
    assert "under autocast the model runs on PyTorch's operations" in str(cast)
    plain = fm.MAML(model, lr=0.1, loss=fm.losses.classification).explain(batch)
    assert "autocast" not in str(plain)
    pairs = [(a, b) for a, b in zip(rough, exact, strict=True) if a is not None and b is not None]
    assert all(a.dtype == torch.float32 for a, _ in pairs)
    error = torch.stack([(a - b).norm() for a, b in pairs]).norm()
    norm = torch.stack([b.norm() for _, b in pairs]).norm()
    assert 0 < float(error / norm) < 0.1


@pytest.mark.slow
def test_without_transformers_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None; sys.modules['peft'] = None\n"
        "import torch, fastmaml as fm\n"
        "from fastmaml.integrations import transformers as integration\n"
        "maml = fm.MAML(torch.nn.Linear(2, 2), lr=0.1, loss=torch.nn.functional.cross_entropy)\n"
        "b = fm.Batch(torch.randn(2, 3, 2), torch.zeros(2, 3).long())\n"
        "maml(fm.Episodes(b, b)).loss.backward()\n"
        "try: integration.sequence_classifier('bert-base-uncased', 2)\n"
        "except ImportError as error: print(error)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "fastmaml[text]"' in found.stdout


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["unrolled", "checkpointed", "mixed-mode"])
def test_checkpointed_layers(method: str, path: str) -> None:
    """With dropout, as layers are checkpointed in training mode only."""
    model, batch = lm.bert(attn_implementation="eager").train(), lm.episodes()
    expected = hand_gradient(model, batch, 2, 0.1)
    model.config._attn_implementation = "sdpa"
    name = "activation_checkpointing_enable"  # transformers' name of it since 5.20 or so
    getattr(model, name, getattr(model, "gradient_checkpointing_enable", None))()
    functions = {
        id(m): m._gradient_checkpointing_func
        for m in model.modules()
        if getattr(m, "gradient_checkpointing", False)
    }
    maml = fm.MAML(
        model, lr=0.1, steps=2, loss=fm.losses.classification, gradient=METHODS[method],
        **PATHS[path],
    )  # fmt: skip
    check(meta_gradient(maml, batch), expected)
    plan = maml.explain(batch)
    assert plan.batched
    assert ("executor: captured" in str(plan)) == (path != "eager")
    assert "layers are checkpointed" in str(plan)
    assert functions == {
        id(m): m._gradient_checkpointing_func for m in model.modules() if id(m) in functions
    }
    if path == "eager":
        model.eval()
        assert "gradient checkpointing does nothing in evaluation mode" in str(maml.explain(batch))
