"""Tasks that say how many classes they have, and a model with too few outputs for them."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastmaml as fm

EXAMPLES = 6
NUMBERS = r"task 1 has 3 classes .*, but the model's outputs tell 2 apart: .*classes=3\)"


class Classifier(nn.Module):
    """Logits in a dict, as models of transformers return them, or as they are."""

    def __init__(self, outputs: int, in_dict: bool = False) -> None:
        super().__init__()
        self.layer, self.in_dict = nn.Linear(4, outputs), in_dict

    def forward(self, x: Tensor) -> Any:
        found = self.layer(x)
        return {"logits": found} if self.in_dict else found


def episodes(*classes: int, labels: int = 2, shift: int = 0) -> fm.Episodes:
    """One task for each number of classes; the labels that occur are 0 to `labels` - 1."""
    generator = torch.Generator().manual_seed(0)
    tasks = len(classes)

    def batch() -> fm.Batch:
        own = torch.tensor(classes).unsqueeze(-1)
        targets = {
            "labels": torch.arange(EXAMPLES).remainder(labels).add(shift).repeat(tasks, 1),
            "values": torch.randn(tasks, EXAMPLES, generator=generator),
            "classes": own,
        }
        return fm.Batch(torch.randn(tasks, EXAMPLES, 4, generator=generator), targets)

    return fm.Episodes(batch(), batch())


def learner(outputs: int = 2, in_dict: bool = False, **how: Any) -> fm.MAML:
    torch.manual_seed(0)
    given = {"lr": 0.1, "steps": 2, "loss": fm.losses.classification, "executor": "eager"}
    return fm.MAML(Classifier(outputs, in_dict), **given | how)


@pytest.mark.parametrize("executor", ["eager", None])
@pytest.mark.parametrize("in_dict", [False, True])
@pytest.mark.parametrize("labels", [2, 3])
@pytest.mark.parametrize("known", [False, True])
def test_too_few_outputs_are_an_error_with_both_numbers(
    executor: Any, in_dict: bool, labels: int, known: bool
) -> None:
    """Also where no row is of the class for which there is no output, and once a step is known."""
    maml = learner(in_dict=in_dict, executor=executor)
    for _ in range(2 * known):
        maml(episodes(2, 2)).loss.backward()
        maml.evaluate(episodes(2, 2))
    wrong = episodes(2, 3, labels=labels)
    for run in (
        lambda: maml(wrong),
        lambda: maml.evaluate(wrong),
        lambda: maml.evaluate_each_step(wrong),
    ):
        with pytest.raises(ValueError, match=NUMBERS):
            run()
    with pytest.raises(ValueError, match=r"task 0 has 3 classes .* tell 2 apart"):
        maml.adapt_to(wrong[1].support.map(lambda x: x[0]))


@pytest.mark.parametrize(
    "loss", [fm.losses.classification, functools.partial(fm.losses.classification)]
)
def test_a_label_beyond_the_tasks_own_classes(loss: Any) -> None:
    maml = learner(3, loss=loss)
    with pytest.raises(ValueError, match=r"the label 2 \(task 1, example 2\), but that task has 2"):
        maml(episodes(3, 2, labels=3))
    with pytest.raises(
        ValueError, match=r"the label -1 \(task 0, example 0\), but that task has 3"
    ):
        maml(episodes(3, 2, shift=-1))


def test_what_fits_runs() -> None:
    maml = learner(3)
    out = maml(episodes(2, 3, 1))
    assert out.losses.isfinite().all()
    assert out.accuracies is not None
    assert out.accuracies.isnan().tolist() == [False, False, True]
    ignored = episodes(2, 3)
    ignored.query.targets["labels"][:, :2] = -100  # as PyTorch's losses leave them out
    assert maml(ignored).losses.isfinite().all()


def test_plain_labels_with_the_same_loss() -> None:
    x, y = torch.randn(1, EXAMPLES, 4), torch.arange(EXAMPLES).remainder(3).unsqueeze(0)
    batch = fm.Batch(x, y)
    for in_dict in (False, True):
        with pytest.raises(ValueError, match=r"the label 2 .* outputs tell 2 classes apart"):
            learner(2, in_dict)(fm.Episodes(batch, batch))
        assert learner(3, in_dict)(fm.Episodes(batch, batch)).loss.isfinite()


# ---------------------------------------------------------------- where values cannot be looked at


def wrapped(output: Any, targets: Any) -> Tensor:
    """A loss of the user's, of which nothing is known."""
    return fm.losses.classification(output, targets)


def test_a_loss_that_wraps_it_gives_no_number() -> None:
    maml = learner(loss=wrapped)
    with pytest.raises(fm.NonFiniteLoss, match="task 1"):
        maml(episodes(2, 3))
    out = maml.evaluate(episodes(2, 3))
    assert out.losses.isnan().tolist() == [False, True]
    assert out.accuracies is not None
    assert out.accuracies.isnan().tolist() == [False, True]


def test_adapted_models_give_no_numbers() -> None:
    """`adapted` looks at no labels: what it gives is then of no use, rather than unadapted."""
    wrong = episodes(2, 3)
    outputs = learner().adapted(wrong.support)(wrong.query.inputs)
    assert outputs.flatten(1).isnan().any(1).tolist() == [False, True]


def test_the_reason_is_told_where_labels_were_not_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU, where looking would wait for it at every call."""
    maml = learner()
    maml(episodes(2, 2)).loss.backward()
    monkeypatch.setattr("fastmaml.maml.plan.check_labels", lambda *_: None)
    with pytest.raises(ValueError, match=NUMBERS):
        maml(episodes(2, 3))


def test_the_value_is_what_it_was() -> None:
    """What marks a model with too few outputs changes no number and no precision of others."""
    logits = torch.randn(EXAMPLES, 3, dtype=torch.bfloat16, requires_grad=True)
    task = episodes(2).support.map(lambda x: x[0])
    found = fm.losses.classification(logits, task.targets)
    expected = nn.functional.cross_entropy(logits[:, :2], task.targets["labels"])
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    (gradient,) = torch.autograd.grad(found, logits)
    (by_hand,) = torch.autograd.grad(expected, logits)
    assert torch.equal(gradient, by_hand)
