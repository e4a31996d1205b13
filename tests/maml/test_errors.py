"""Bad input: each gets an error that names the argument and says what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import EXACT, tensor
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.gradients import Checkpointed, FirstOrder, MixedMode, Reptile, Truncated


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def labelled(inputs: Tensor | None = None, labels: Tensor | None = None) -> fm.Episodes:
    inputs = tensor(3, 4, 3) if inputs is None else inputs
    good = torch.tensor([0, 1, 0, 1]).repeat(3, 1)
    return fm.Episodes(fm.Batch(inputs, good), fm.Batch(inputs, good if labels is None else labels))


def make(**options: Any) -> fm.MAML:
    return fm.MAML(model(), **{"lr": 0.3, "loss": F.cross_entropy, **options})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": -1}, "steps=-1"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"tasks_chunk": 0}, "tasks_chunk=0"),
        ({"scope": "nothing.*"}, "selects no trainable parameter"),
        ({"executor": "graph"}, "executor='graph'"),
        ({"backend": "metal"}, "backend='metal'"),
        ({"batch_norm": "per-step"}, "batch_norm='per-step'"),
        ({"gradient": "second-order"}, "is no gradient method"),
        ({"gradient": Checkpointed(), "first_order": True}, "contradicts"),
        ({"gradient": Reptile(), "scope": "head"}, "Reptile learns only what adapts"),
        ({"gradient": Reptile(), "lr": None, "rule": fm.rules.MetaSGD(0.1)}, "learned rates"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make(**options)


def test_bad_models() -> None:
    with pytest.raises(ValueError, match=r"no parameters"):
        fm.MAML(nn.Tanh(), 0.1)
    with pytest.raises(ValueError, match="all of its 4 parameters are frozen"):
        fm.MAML(model().requires_grad_(False), 0.1)
    with pytest.raises(ValueError, match="lazy parameters without a shape"):
        fm.MAML(nn.LazyLinear(3), 0.1)
    with pytest.raises(ValueError, match=r"give a torch\.nn\.Module"):
        fm.MAML(F.relu, 0.1)  # type: ignore[arg-type]


def test_bad_gradient_knobs() -> None:
    for make_method, match in (
        (lambda: Truncated(last=-1), "last=-1"),
        (lambda: Checkpointed(segments=0), "segments=0"),
        (lambda: Checkpointed(offload="cpu"), "offload='cpu'"),  # type: ignore[arg-type]
        (lambda: MixedMode(offload=1), "offload=1"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=match):
            make_method()


def test_bad_episodes() -> None:
    with pytest.raises(ValueError, match=r"give a fastmaml\.Episodes"):
        make().evaluate((tensor(3, 4, 3), tensor(3, 4)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"give a fastmaml\.Batch"):
        make().adapt_to((tensor(4, 3), tensor(4)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="this MAML has no loss"):
        fm.MAML(model(), 0.1)(labelled())


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize(("label", "task"), [(2, 1), (-1, 2)])
def test_labels_out_of_range(label: int, task: int) -> None:
    maml, labels = make(), torch.tensor([0, 1, 0, 1]).repeat(3, 1)
    labels[task, 2] = label
    for _ in range(2):  # when such episodes are first seen, and later
        with pytest.raises(ValueError, match=rf"label {label} \(task {task}, example 2\)"):
            maml(labelled(labels=labels))
        maml(labelled())
    maml.evaluate(labelled(labels=labels.fill_(-100)[:, :].where(labels > 9, 1)))


def test_mismatched_dtypes_and_devices() -> None:
    with pytest.raises(ValueError, match=r"support.inputs is torch.float32.*torch.float64"):
        make()(labelled(tensor(3, 4, 3).float()))
    with pytest.raises(ValueError, match="support set is on meta and the model on cpu"):
        make()(labelled(tensor(3, 4, 3).to("meta")))


def test_the_models_own_error_is_shown_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        make()(labelled(tensor(3, 4, 5)))


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (lambda y, t: F.cross_entropy(y, t, reduction="none"), r"shape \[4\]"),
        (lambda y, t: 0.5, "returned float"),
        (lambda y, t: F.cross_entropy(y.detach(), t), "does not depend on any adapted parameter"),
    ],
)
def test_bad_losses(loss: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make(loss=loss)(labelled())


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("chunk", [1, 3])
def test_a_nan_is_reported_with_its_step_and_task(method: str, chunk: int) -> None:
    maml = make(steps=3, gradient=EXACT[method], tasks_chunk=chunk)
    maml(labelled()).loss.backward()
    before = [p.grad.clone() for p in maml.parameters()]
    inputs = tensor(3, 4, 3)
    inputs[1, 2, 0] = torch.nan
    with pytest.raises(
        fm.NonFiniteLoss, match="support loss of task 1 is nan at inner step 0"
    ) as e:
        maml(labelled(inputs))
    assert (e.value.step, e.value.tasks) == (0, [1])
    assert all(torch.equal(p.grad, b) for p, b in zip(maml.parameters(), before, strict=True))
    assert maml.evaluate(labelled(inputs)).losses.isfinite().tolist() == [True, False, True]


def test_a_diverging_task_names_the_step() -> None:
    def loss(y: Tensor, t: Tensor) -> Tensor:
        return (y - t).pow(4).mean()

    x = tensor(2, 4, 3) * torch.tensor([1.0, 1e3], dtype=torch.float64).view(2, 1, 1)
    data = fm.Episodes(fm.Batch(x, x[..., :2]), fm.Batch(x, x[..., :2]))
    torch.manual_seed(0)
    maml = fm.MAML(nn.Linear(3, 2).double(), 0.01, steps=8, loss=loss)
    with pytest.raises(fm.NonFiniteLoss, match=r"task 1 is (inf|nan) at inner step") as error:
        maml(data)
    assert error.value.tasks == [1]
    assert 1 <= error.value.step < 8
    unchecked = fm.MAML(nn.Linear(3, 2).double(), 0.01, steps=8, loss=loss, check_finite=False)
    assert not unchecked(data).loss.isfinite()


def test_a_nan_gradient_with_finite_losses_is_reported() -> None:
    x, y = tensor(2, 4, 3), torch.zeros(2, 4, 2, dtype=torch.float64)
    x[1] = 0  # the outputs of task 1 are exactly zero, where the square root has no slope
    data = fm.Episodes(fm.Batch(x, y), fm.Batch(x, y))
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False).double()
    maml = fm.MAML(model, 0.1, steps=0, loss=lambda y, t: (y - t).abs().sum().sqrt())
    with pytest.raises(fm.NonFiniteLoss, match="meta-gradient of task 1") as error:
        maml(data)
    assert error.value.tasks == [1]


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.3, 0.2], []])
def test_step_weights_of_the_wrong_length(weights: list[float]) -> None:
    with pytest.raises(ValueError, match=f"step_weights has {len(weights)} numbers for 2"):
        make(steps=2)(labelled(), step_weights=weights)


def test_step_weights_cannot_be_learned() -> None:
    with pytest.raises(ValueError, match="requires a gradient"):
        make(steps=2)(labelled(), step_weights=torch.ones(2, requires_grad=True))


def test_reptile_per_call_with_parameters_that_it_cannot_move() -> None:
    with pytest.raises(ValueError, match="would never learn"):
        make(scope="head")(labelled(), gradient=Reptile())
    make(scope="head")(labelled(), gradient=FirstOrder())
