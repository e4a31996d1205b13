"""Tasks of unequal size, filled up: as if each ran by itself, without what fills up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hand_loop import hand_loop
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

import fastmaml as fm
from fastmaml.gradients import Checkpointed, GradientMethod, MixedMode, Unrolled
from fastmaml.training.evaluation import evaluate

SIZES = ((2, 3), (5, 1), (3, 7))
"""Support and query examples of each task."""

METHODS: tuple[GradientMethod, ...] = (Unrolled(), Checkpointed(), MixedMode())
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def filled(x: Tensor, size: int) -> Tensor:
    return torch.cat([x, x[:1].expand(size - len(x), *x.shape[1:])])


def counts(x: Tensor, size: int) -> Tensor:
    return torch.arange(size) < len(x)


def values(inputs: Tensor) -> Tensor:
    return torch.stack([inputs.sum(1), inputs[:, 0].sin(), inputs[:, 1] * inputs[:, 2]], 1)


def bits(inputs: Tensor) -> Tensor:
    return (inputs[:, :3] > 0).to(inputs.dtype)


def classes(inputs: Tensor) -> Tensor:
    return inputs[:, :3].argmax(1)


def with_counts(y: Tensor, size: int) -> Any:
    return {"values": filled(y, size), "counts": counts(y, size)}


def ignored(y: Tensor, size: int) -> Any:
    return torch.where(counts(y, size), filled(y, size), -100)


KINDS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "regression": (values, with_counts, fm.losses.regression),
    "counted": (bits, with_counts, fm.losses.counted(F.binary_cross_entropy_with_logits)),
    "classes": (classes, ignored, F.cross_entropy),
    "classification": (classes, ignored, fm.losses.classification),
}
"""What is right for inputs, how it is filled up, and the loss."""


def tasks(kind: str) -> tuple[list[fm.Episodes], fm.Episodes]:
    """Each task alone, and all of them filled up."""
    target, fill, _ = KINDS[kind]
    draw = torch.Generator().manual_seed(1)
    alone, parts = [], []
    for sizes in SIZES:
        x, xq = (torch.randn(n, 4, generator=draw, dtype=torch.float64) for n in sizes)
        one = [fm.Batch(v, target(v)) for v in (x, xq)]
        alone.append(fm.Episodes(*(batch.map(lambda v: v.unsqueeze(0)) for batch in one)))
        parts.append([(filled(b.inputs, 8), fill(b.targets, 8)) for b in one])
    sets = [tree_map(lambda *x: torch.stack(x), *side) for side in zip(*parts, strict=True)]
    return alone, fm.Episodes(*(fm.Batch(*side) for side in sets))


@pytest.mark.parametrize("executor", ["eager", None])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_as_each_task_alone(kind: str, method: GradientMethod, executor: Any) -> None:
    """Losses, meta-gradients and accuracies, twice, as the second call may be recorded."""
    alone, padded = tasks(kind)
    loss, net = KINDS[kind][2], model()
    found = [hand_loop(net, loss, one, 0.3, 2) for one in alone]
    maml = fm.MAML(net, 0.3, steps=2, loss=loss, gradient=method, executor=executor)
    for _ in range(2):
        net.zero_grad()
        out = maml(padded)
        out.loss.backward()
        torch.testing.assert_close(out.losses, torch.stack([x for x, _ in found]), **EXACT)
        for name, p in net.named_parameters():
            expected = torch.stack([g[name] for _, g in found]).mean(0)
            torch.testing.assert_close(p.grad, expected, **EXACT)
    accuracies = [maml(one).accuracy for one in alone]
    if None in accuracies:
        assert out.accuracies is None
    else:
        assert out.accuracies is not None
        torch.testing.assert_close(out.accuracies, torch.stack(accuracies))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_recorded(kind: str) -> None:
    maml = fm.MAML(model(), 0.3, steps=2, loss=KINDS[kind][2])
    assert "captured" in str(maml.explain(tasks(kind)[1]))
    maml = fm.MAML(model(), 0.3, steps=2, loss=KINDS[kind][2], executor="captured")
    maml(tasks(kind)[1]).loss.backward()  # or raises


def test_evaluations_leave_them_out() -> None:
    """Accuracies, chances and metrics are those of each task alone."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    for kind, metrics in (("classes", "f1,matthews,loss"), ("one value", "pearson,spearman")):
        maml, alone, padded = one_value() if kind == "one value" else classifier()
        found = evaluate(maml, iter([padded]), 3, 2, metrics=metrics)
        expected = evaluate(maml, iter(alone), 3, 2, metrics=metrics)
        assert found.means == pytest.approx(expected.means)
        assert found.chance == (None if kind == "one value" else pytest.approx(expected.chance))
        for name, score in expected.scores.items():
            assert found.scores[name].means == pytest.approx(score.means, nan_ok=True), name


def classifier() -> tuple[fm.MAML, list[fm.Episodes], fm.Episodes]:
    return fm.MAML(model(), 0.3, loss=F.cross_entropy), *tasks("classes")


def one_value() -> tuple[fm.MAML, list[fm.Episodes], fm.Episodes]:
    def first(x: Tensor) -> Tensor:
        return x[..., :1] if x.is_floating_point() and x.shape[-1] == 3 else x

    alone, padded = tasks("regression")
    net = nn.Sequential(model(), nn.Linear(3, 1).double())
    maml = fm.MAML(net, 0.1, loss=fm.losses.regression)
    return maml, [one.map(first) for one in alone], padded.map(first)


def test_a_task_without_examples_that_count() -> None:
    """Its accuracy and loss are nan, and a meta-step says so."""
    _, padded = tasks("classes")
    padded.query.targets[1] = -100
    maml = fm.MAML(model(), 0.3, loss=F.cross_entropy)
    out = maml.evaluate(padded)
    assert out.accuracies is not None
    assert out.accuracies.isnan().tolist() == [False, True, False]
    with pytest.raises(fm.NonFiniteLoss, match="query loss of task 1"):
        maml(padded)


@pytest.mark.parametrize("kind", ["regression", "classes"])
def test_batch_statistics_are_refused(kind: str) -> None:
    """They would be of the examples that fill up, too; statistics of before would not."""
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    alone, padded = tasks(kind)
    maml = fm.MAML(net, 0.3, loss=KINDS[kind][2])
    maml(alone[0])
    with pytest.raises(ValueError, match=r"model.1 normalises.*unequal='buckets'"):
        maml(padded)
    with pytest.raises(ValueError, match=r"model.1 normalises"):
        maml.adapted(padded.support)
    if kind == "classes":  # of the same sizes, when a plan is there
        whole = padded.map(lambda x: x.clamp_min(0) if x.dtype == torch.int64 else x)
        maml(whole)
        with pytest.raises(ValueError, match=r"model.1 normalises"):
            maml(padded)
    maml = fm.MAML(net.eval(), 0.3, loss=KINDS[kind][2], batch_norm="module")
    maml(padded)
    with pytest.raises(ValueError, match=r"model.1 normalises"):
        fm.MAML(fm.models.per_step_batch_norm(net, 1), 0.3, loss=KINDS[kind][2])(padded)


def mixed(labels: Tensor) -> dict[str, Tensor]:
    """Targets of `losses.classification`: two classifications of three classes, a regression."""
    classes = torch.tensor([[3], [3], [1]])
    return {"labels": labels, "values": labels.double(), "classes": classes}


def test_labels_of_a_mixture() -> None:
    """As plain labels, in metrics and beside BatchNorm; a regression has no labels."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    inputs = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(18).view(3, 6) % 3
    padded = labels.clone()
    padded[:2, 4:] = -100
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    maml = fm.MAML(net, 0.3, loss=fm.losses.classification, executor="eager")
    with pytest.raises(ValueError, match=r"model.1 normalises.*unequal='buckets'"):
        maml(fm.Episodes(*[fm.Batch(inputs, mixed(padded))] * 2))
    of_regressions = labels.clone()
    of_regressions[2] = -100
    maml(fm.Episodes(*[fm.Batch(inputs, mixed(of_regressions))] * 2))
    maml = fm.MAML(model(), 0.3, loss=fm.losses.classification, executor="eager")
    found = [
        evaluate(
            maml, [fm.Episodes(*[fm.Batch(inputs, targets)] * 2)[:2]], 2, 1, metrics="accuracy,f1"
        )
        for targets in (mixed(padded), padded)
    ]
    means = [{name: one.means for name, one in x.scores.items()} for x in found]
    assert means[0] == means[1]
    assert means[0]["accuracy"] == found[0].means == found[1].means


def test_losses_say_what_does_not_fit() -> None:
    rows = {"values": torch.zeros(4, 2), "counts": torch.ones(4, dtype=torch.bool)}
    with pytest.raises(ValueError, match="has to return 2 values an example"):
        fm.losses.regression(torch.zeros(4, 1), rows)
    with pytest.raises(ValueError, match=r"result of shape \[\] for 4 examples"):
        fm.losses.counted(lambda x, y, reduction: (x - y).sum())(torch.zeros(4, 2), rows)
