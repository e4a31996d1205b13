"""A head per task: the meta-gradient through its beginning, against a loop written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import fastmaml as fm

WAYS, WIDTH = 3, 5
METHODS = {
    "unrolled": fm.gradients.Unrolled(),
    "checkpointed": fm.gradients.Checkpointed(),
    "segments": fm.gradients.Checkpointed(2),
    "mixed-mode": fm.gradients.MixedMode(),
}
HEADS = {
    "zero": fm.heads.Zero(),
    "prototype": fm.heads.Prototype(),
    "soft": fm.heads.Prototype(scale=0.3),
}
PATHS = ["eager", "captured"]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WAYS))
    return layers.double()


def episodes(tasks: int = 3, each: int = 2) -> fm.Episodes:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(WAYS).repeat_interleave(each).repeat(tasks, 1)

    def batch() -> fm.Batch:
        x = torch.randn(tasks, WAYS * each, 4, generator=generator, dtype=torch.float64)
        return fm.Batch(x + labels.unsqueeze(-1), labels)

    return fm.Episodes(batch(), batch())


def start(head: Any, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The definition, class by class."""
    if isinstance(head, fm.heads.Zero):
        zeros = torch.zeros(WAYS, WIDTH + 1, dtype=torch.float64, requires_grad=True)
        return {"2.weight": zeros[:, :-1], "2.bias": zeros[:, -1]}
    means = [features[labels == c].mean(0) for c in range(WAYS)]
    return {
        "2.weight": torch.stack([2 * head.scale * c for c in means]),
        "2.bias": torch.stack([-head.scale * (c @ c) for c in means]),
    }


def by_hand(model: nn.Module, head: Any, batch: fm.Episodes, steps: int, lr: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    body = {n: p for n, p in model.named_parameters() if not n.startswith("2.")}
    for task in range(batch.tasks):
        x, y = batch.support.inputs[task], batch.support.targets[task]
        hidden = torch.tanh(F.linear(x, body["0.weight"], body["0.bias"]))
        # The inner gradient is taken at a fixed head, so θ must be no ancestor of it.
        theta = {**{n: p.view_as(p) for n, p in body.items()}, **start(head, hidden, y)}
        for _ in range(steps):
            loss = F.cross_entropy(functional_call(model, theta, x), y)
            found = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
            theta = {n: p - lr * g for (n, p), g in zip(theta.items(), found, strict=True)}
        queries = functional_call(model, theta, batch.query.inputs[task])
        total = total + F.cross_entropy(queries, batch.query.targets[task])
    return total / batch.tasks


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("executor", PATHS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("head", HEADS)
def test_the_meta_gradient_goes_through_the_beginning(
    head: str, method: str, executor: Any
) -> None:
    model, batch = network(), episodes()
    by_hand(model, HEADS[head], batch, 3, 0.2).backward()
    body = [p for n, p in model.named_parameters() if not n.startswith("2.")]
    expected = [p.grad for p in body]
    model.zero_grad()
    maml = fm.MAML(
        model, lr=0.2, steps=3, loss=F.cross_entropy, head=HEADS[head], gradient=METHODS[method],
        executor=executor,
    )  # fmt: skip
    maml(batch).loss.backward()
    for p, g in zip(body, expected, strict=True):
        assert g is not None
        assert p.grad is not None
        torch.testing.assert_close(p.grad, g, rtol=1e-11, atol=1e-13)
    assert all(p.grad is None for n, p in model.named_parameters() if n.startswith("2."))


def test_one_task_at_a_time_is_the_same() -> None:
    model, batch = network(), episodes()
    losses = [
        fm.MAML(
            model, lr=0.2, steps=2, loss=F.cross_entropy, head=fm.heads.Prototype(),
            tasks_chunk=chunk, executor="eager",
        )(batch).losses
        for chunk in (1, 2, 3)
    ]  # fmt: skip
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-13, atol=0)
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-13, atol=0)


def test_the_models_own_head_does_not_matter_and_adapt_to_returns_the_tasks() -> None:
    model, batch = network(), episodes(tasks=1)
    maml = fm.MAML(model, lr=0.1, steps=2, loss=F.cross_entropy, head=fm.heads.Prototype())
    before = maml.evaluate(batch).losses
    with torch.no_grad():
        model[2].weight.fill_(7.0)  # type: ignore[index]
    torch.testing.assert_close(maml.evaluate(batch).losses, before, rtol=0, atol=0)
    learner = maml.adapt_to(batch[0].support.map(lambda x: x.squeeze(0)))
    loss = F.cross_entropy(learner(batch.query.inputs[0]), batch.query.targets[0])
    torch.testing.assert_close(loss, before[0], rtol=1e-12, atol=0)


def test_prototypes_classify_by_the_nearest_mean() -> None:
    """Without inner steps: the arg-max of the logits is the nearest class mean."""
    model, batch = network(), episodes(tasks=1)
    maml = fm.MAML(model, lr=0.1, steps=0, loss=F.cross_entropy, head=fm.heads.Prototype())
    logits = maml.evaluate(batch).outputs[0]
    with torch.no_grad():
        support, query = (model[:2](b.inputs[0]) for b in (batch.support, batch.query))  # type: ignore[index]
        means = torch.stack([support[batch.support.targets[0] == c].mean(0) for c in range(WAYS)])
        distances = torch.cdist(query, means).square()
    torch.testing.assert_close(logits.softmax(-1), (-distances).softmax(-1), rtol=1e-9, atol=1e-12)


def test_learned_rates_reach_the_head() -> None:
    model = network()
    maml = fm.MAML(
        model, rule=fm.rules.MetaSGD(0.1), steps=2, loss=F.cross_entropy, head=fm.heads.Prototype()
    )
    maml(episodes()).loss.backward()
    named = {n: p.grad for n, p in maml.rates.named_parameters()}
    found = [g for n, g in named.items() if "2" in n]
    assert len(found) == 2
    assert all(g is not None and bool(g.abs().sum() > 0) for g in found)


def _bare() -> nn.Module:
    return nn.Sequential(nn.Linear(4, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WAYS, bias=False))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fm.MAML(_bare(), lr=0.1, head=fm.heads.Prototype()), r"needs a bias .*2\.weight"),
        (lambda: fm.MAML(nn.Conv2d(1, 2, 3), lr=0.1, head=fm.heads.Zero()), "nn.Linear"),
        (lambda: fm.MAML(network(), lr=0.1, head="zero"), "head='zero'"),  # type: ignore[arg-type]
        (lambda: fm.heads.Prototype(scale=0), "scale=0"),
        (lambda: fm.MAML(network(), lr=0.1, head=fm.heads.Zero()).clone(), "clone"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_layer_called_on_every_token_has_no_prototypes() -> None:
    model = nn.Sequential(nn.Linear(4, WIDTH), nn.Linear(WIDTH, WAYS)).double()
    maml = fm.MAML(
        model, lr=0.1, head=fm.heads.Prototype(), loss=lambda y, t: F.cross_entropy(y.mean(1), t)
    )
    batch = episodes()

    def tokens(b: fm.Batch) -> fm.Batch:
        return fm.Batch(b.inputs.unsqueeze(2).expand(-1, -1, 6, -1).clone(), b.targets)

    with pytest.raises(ValueError, match="one vector an example"):
        maml(fm.Episodes(tokens(batch.support), tokens(batch.query)))
