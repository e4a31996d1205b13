"""Metrics of one task: against scikit-learn and scipy called directly, and loops by hand."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmaml import MetaOutput
from fastmaml.training.metrics import (
    F1,
    Accuracy,
    Answers,
    ExactMatch,
    Matthews,
    Metric,
    Pearson,
    Perplexity,
    Spearman,
    chosen,
    suited,
)

sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")

EXAMPLES, CLASSES = 40, 3


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mixed(classes: int, seed: int = 0) -> Answers:
    """A task of a mixture with three logits, of which a task of fewer classes has the first."""
    labels = torch.arange(EXAMPLES) % max(classes, 2) * (classes > 1)
    targets = {
        "labels": labels,
        "values": drawn(EXAMPLES, seed=seed + 1),
        "classes": torch.tensor([classes]),
    }
    return Answers(SimpleNamespace(logits=drawn(EXAMPLES, CLASSES, seed=seed)), targets, 0.5)


def plain(classes: int) -> Answers:
    return Answers(drawn(EXAMPLES, classes), torch.arange(EXAMPLES) % classes, 0.5)


@pytest.mark.parametrize("answers", [mixed(2), mixed(3), plain(2), plain(4)])
def test_of_classes(answers: Answers) -> None:
    count = answers.classes
    said = answers.logits[:, :count].argmax(1).numpy()
    right = answers.labels.numpy()
    assert answers.kind == "classification"
    average = "binary" if count == 2 else "macro"
    assert F1().value(answers) == sklearn.f1_score(right, said, average=average)
    assert Matthews().value(answers) == sklearn.matthews_corrcoef(right, said)
    found = Accuracy(shifted=True).value(answers)
    assert found == pytest.approx(sklearn.accuracy_score(right, said))


def test_logits_of_other_tasks_do_not_count() -> None:
    answers = mixed(2)
    whole = answers.logits.argmax(1)
    assert (whole == 2).any(), "the third logit is sometimes the largest"
    assert answers.predicted.max() == 1


def test_f1_of_two_classes_is_that_of_class_1() -> None:
    """Precision 2/3 and recall 2/2 of class 1; the other class would have 2 * 1 * 2/3 / (5/3)."""
    logits = torch.tensor([[0.0, 1], [0, 1], [0, 1], [1, 0], [1, 0]])
    answers = Answers(logits, torch.tensor([1, 1, 0, 0, 0]), 0.0)
    assert F1().value(answers) == pytest.approx(2 * (2 / 3) / (5 / 3))


@pytest.mark.parametrize("form", ["mixture", "vector", "column"])
def test_of_values(form: str) -> None:
    answers = mixed(1)
    right, said = answers.targets["values"], answers.logits[:, 0]
    if form == "vector":
        answers = Answers(said, right, 0.5)
    elif form == "column":
        answers = Answers(said[:, None], right[:, None], 0.5)
    assert answers.kind == "regression"
    pearson = stats.pearsonr(said.double(), right.double()).statistic
    spearman = stats.spearmanr(said.double(), right.double()).statistic
    assert Pearson().value(answers) == pytest.approx(pearson, rel=1e-12)
    assert Spearman().value(answers) == pytest.approx(spearman, rel=1e-12)
    assert abs(pearson - spearman) > 0.001


def of_values(said: list[float], right: list[float]) -> Answers:
    return Answers(torch.tensor(said), torch.tensor(right), 0.0)


@pytest.mark.parametrize("metric", [Pearson(), Spearman()])
def test_correlations_that_are_not_defined(metric: Metric) -> None:
    assert metric.value(of_values([0.0, 0.0, 0.0], [1.0, 2.0, 3.0])) == 0
    assert metric.value(of_values([1.0, 2.0, 3.0], [5.0, 5.0, 5.0])) == 0
    assert metric.value(of_values([1.0], [5.0])) is None
    for bad in (math.nan, math.inf):
        found = metric.value(of_values([bad, 2.0, 3.0], [1.0, 2.0, 4.0]))
        assert found is not None
        assert math.isnan(found), "a model that diverged is not left out"


def test_classes_that_are_all_alike() -> None:
    """Without scikit-learn's warnings, which are errors here; its values are the same."""
    for right, said in (([0, 0], [0, 0]), ([0, 1], [1, 1]), ([1, 1], [0, 1]), ([0, 0], [1, 0])):
        answers = Answers(torch.eye(2)[said], torch.tensor(right), 0.0)
        assert Matthews().value(answers) == 0
        assert F1().value(answers) == pytest.approx(
            sklearn.f1_score(right, said, zero_division=0.0)
        )


def tokens(shifted: bool, form: str = "tensor") -> Answers:
    """Five examples of seven tokens: padding, one with none to predict, one right, one in part."""
    logits = drawn(5, 7, 11)
    labels = torch.randint(11, (5, 7), generator=torch.Generator().manual_seed(1))
    labels[:, :3] = -100
    labels[1, 5:] = -100
    labels[2] = -100
    for example, last in ((3, 7), (4, 5)):
        for i in range(3, last):
            logits[example, i - shifted, labels[example, i]] += 20
    targets = {"labels": labels} if form == "dict" else labels
    return Answers({"logits": logits}, targets, 0.5)


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("form", ["tensor", "dict"])
def test_of_tokens(form: str, shifted: bool) -> None:
    answers = tokens(shifted, form)
    logits, labels = answers.logits, answers.labels
    right, logs, examples = [], [], []
    for example in range(5):
        own = []
        for i in range(1 if shifted else 0, 7):
            label = int(labels[example, i])
            if label == -100:
                continue
            row = logits[example, i - 1 if shifted else i].double()
            own.append(int(row.argmax()) == label)
            logs.append(float(row.exp().sum().log() - row[label]))
        right += own
        examples += [all(own)] if own else []
    assert answers.kind == "tokens"
    assert len(examples) == 4
    assert sum(examples) == 1
    assert ExactMatch(shifted=shifted).value(answers) == sum(examples) / 4
    found = Accuracy(shifted=shifted).value(answers)
    assert found == pytest.approx(sum(right) / len(right), rel=1e-12)
    expected = math.exp(sum(logs) / len(logs))
    assert Perplexity(shifted=shifted).value(answers) == pytest.approx(expected, rel=1e-5)


def test_names_mean_labels_of_the_next_position() -> None:
    answers = tokens(shifted=True)
    for metric in chosen("accuracy,exact_match,perplexity").everywhere:
        kind: Any = type(metric)
        assert metric.value(answers) == kind(shifted=True).value(answers)
        assert metric.value(answers) != kind(shifted=False).value(answers)


def test_tasks_without_a_token_to_predict() -> None:
    answers = Answers(drawn(2, 4, 5), torch.full((2, 4), -100), 0.0)
    for metric in chosen("accuracy,exact_match,perplexity").everywhere:
        assert metric.value(answers) is None


def test_a_perplexity_beyond_all_numbers_is_infinite() -> None:
    logits = torch.zeros(1, 3, 5)
    logits[..., 0] = 1e5
    assert Perplexity(shifted=True).value(Answers(logits, torch.ones(1, 3).long(), 0.0)) == math.inf
    half = Answers(drawn(2, 4, 5).bfloat16(), torch.ones(2, 4).long(), 0.0)
    single = Answers(half.output.float(), half.targets, 0.0)
    metric = Perplexity(shifted=False)
    assert metric.value(half) == metric.value(single)


@pytest.mark.parametrize(
    ("output", "targets"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3)),  # three values an example
        (torch.zeros(2, 5, 4, 4), torch.zeros(2, 4, 4).long()),  # images of classes
        (torch.zeros(2, 3), torch.zeros(3).long()),
        (torch.zeros(2, 1), torch.zeros(2).long()),
        (torch.zeros(2, 3), {"words": torch.zeros(2)}),
        ("nothing", torch.zeros(2).long()),
    ],
)
def test_other_tasks(output: Any, targets: Any) -> None:
    assert Answers(output, targets, 0.0).kind == "other"


def test_of_several_labels() -> None:
    """Three examples, four labels; the last one is never there and never said."""
    right = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]])
    said = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0]])
    answers = Answers((2.0 * said - 1).double(), right, 0.0)
    names = "label_accuracy,label_match,label_f1"
    found = {m.name: m.value(answers) for m in chosen(names).everywhere}
    assert found == {"label_accuracy": 10 / 12, "label_match": 1 / 3, "label_f1": 2 * 3 / (4 + 4)}
    metrics = pytest.importorskip("sklearn.metrics")
    expected = metrics.f1_score(right.numpy(), said.numpy(), average="micro")
    assert found["label_f1"] == pytest.approx(expected)
    nothing = Answers(torch.full((3, 4), -1.0), torch.zeros(3, 4), 0.0)
    assert [m.value(nothing) for m in chosen(names).everywhere] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_of_one_label(shape: tuple[int, ...]) -> None:
    answers = Answers(
        torch.tensor([[2.0], [-1.0], [0.5]]), torch.tensor([1.0, 1, 0]).view(shape), 0
    )
    found = {m.name: m.value(answers) for m in chosen("label_accuracy,label_f1").everywhere}
    assert found == {"label_accuracy": 1 / 3, "label_f1": 0.5}


@pytest.mark.parametrize(
    ("output", "targets"),
    [
        (torch.zeros(2, 3), torch.full((2, 3), 0.5)),
        (torch.zeros(2, 3), torch.zeros(2, 2)),
        (torch.zeros(2, 3), torch.zeros(2).long()),
        ("nothing", torch.zeros(2, 3)),
    ],
)
def test_of_no_labels(output: Any, targets: Any) -> None:
    assert chosen("label_f1").everywhere[0].value(Answers(output, targets, 0.0)) is None


def test_where_less_is_better() -> None:
    assert chosen("rmse,perplexity,loss,f1,pearson").lower == {"rmse", "perplexity", "loss"}


def test_accuracy_is_that_of_the_meta_step() -> None:
    for answers in (mixed(2), plain(3)):
        one = {k: v[None] for k, v in answers.targets.items()} if answers.classes == 2 else None
        targets = answers.targets[None] if one is None else one
        out = MetaOutput(torch.zeros(()), torch.zeros(1), answers.logits[None], targets)
        assert out.accuracies is not None
        found = Accuracy(shifted=True).value(answers)
        assert found == pytest.approx(out.accuracies[0].item())


@dataclass(frozen=True)
class Named(Metric):
    """One of a user's own."""

    name: str = "halves"

    def value(self, answers: Answers) -> float:
        return answers.loss / 2


def test_choosing() -> None:
    assert chosen(None).names == []
    assert chosen(" f1, matthews ,").everywhere == (F1(), Matthews())
    assert chosen(["f1", Named()]).names == ["f1", "halves"]
    assert chosen(Named()).of("any") == (Named(),)
    own = chosen({"a": "f1", "b": [Named(), "f1"]})
    assert (own.of("b"), own.of("c"), own.of(None)) == ((Named(), F1()), (), ())
    assert own.names == ["f1", "halves"]
    assert chosen(own) is own
    assert Named().kinds == ("classification", "regression", "tokens", "other")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("f2", "metrics has 'f2': choose from accuracy, f1, matthews"),
        ("", "metrics has the names []: give at least one"),
        (["f1", "f1"], r"metrics has the names ['f1', 'f1']: give at least one"),
        ({"a": "f1,pearsen"}, "metrics has 'pearsen': choose from"),
        (Named("f1"), "a Named has the name 'f1', which means something else"),
        (Named("episodes"), "a Named has the name 'episodes', which means something else"),
    ],
)
def test_a_bad_choice(given: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message follows)
        chosen(given)
    assert message in str(caught.value)


def test_those_that_suit_each_data_set() -> None:
    found = suited("f1,pearson,loss", {"cola": "classification", "stsb": "regression"})
    assert [x.name for x in found.of("cola")] == ["f1", "loss"]
    assert [x.name for x in found.of("stsb")] == ["pearson", "loss"]
    with pytest.raises(ValueError, match="'pearson', which is of regression, and these tasks are"):
        suited("f1,pearson", {"cola": "classification"})


@pytest.mark.parametrize(
    ("name", "package"),
    [("f1", "scikit-learn"), ("matthews", "scikit-learn"), ("pearson", "scipy")],
)
def test_without_the_package_it_says_so_at_once(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("sklearn", "sklearn.metrics", "scipy", "scipy.stats"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"'{name}' is computed by {package}.*fastmaml\[text\]"):
        chosen(name)
    assert chosen("accuracy,exact_match,perplexity,loss").names[-1] == "loss"
