"""Models that would change what is learned, or hide what they compute: errors with a way out."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from every_way import between, episodes, maml
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.gradients import FirstOrder


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("layer", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("frozen", [False, True])
def test_embeddings_that_renormalise_are_refused(layer: Any, frozen: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = layer(9, 3, max_norm=0.5), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            found = self.words((x.abs() * 3).long().clamp(max=8))
            return self.out(found if found.ndim == 2 else found.mean(1))

    model = Net().double()
    model.words.requires_grad_(not frozen)
    before = model.words.weight.clone()
    learning = maml(model)
    run = learning.per_task(lambda learner, support, query: learner(query.inputs).sum())
    support = episodes().support.map(lambda x: x[0])
    for call in (
        lambda: learning(episodes()),
        lambda: learning.evaluate(episodes()),
        lambda: learning.adapt_to(support),
        lambda: run(episodes()),
    ):
        with pytest.raises(ValueError, match=r"max_norm=0.5 .*embedding.max_norm = None"):
            call()
    assert torch.equal(model.words.weight, before)
    model.words.max_norm = None
    learning(episodes(), gradient=FirstOrder()).loss.backward()


def clamped(h: Tensor, v: Tensor) -> Tensor:
    with torch.no_grad():
        v.clamp_(-0.1, 0.1)
    return h * v


def clamped_data(h: Tensor, v: Tensor) -> Tensor:
    v.data.clamp_(-0.1, 0.1)
    return h * v


def assigned_data(h: Tensor, v: Tensor) -> Tensor:
    v.data = v.data.clamp(-0.1, 0.1)
    return h * v


@pytest.mark.parametrize("function", [clamped, clamped_data, assigned_data])
def test_parameters_that_forward_changes_are_refused(function: Any) -> None:
    model = between(function)
    before = model.vector.clone()
    learning = maml(model)
    run = learning.per_task(lambda learner, support, query: learner(query.inputs).sum())
    for call in (
        lambda: learning(episodes()),
        lambda: learning.evaluate(episodes()),
        lambda: run(episodes()),
    ):
        with pytest.raises(ValueError, match=r"changes its parameters in place.*\(vector\)"):
            call()
    assert torch.equal(model.vector, before)


def test_arguments_that_a_per_task_function_changes_are_refused() -> None:
    given, learning = episodes(), maml(between(lambda h, v: h * v))
    before = given.support.inputs.clone()

    @learning.per_task
    def run(learner: Any, support: fm.Batch, query: fm.Batch) -> Tensor:
        return F.mse_loss(learner(support.inputs.mul_(2)), support.targets)

    with pytest.raises(ValueError, match="changes its inputs in place"):
        run(given)
    assert torch.equal(given.support.inputs, before)


@pytest.mark.parametrize(
    ("wrapped", "way_out"),
    [
        (nn.DataParallel, r"give model\S*\.module.*DistributedDataParallel around the MAML"),
        (torch.jit.script, "give the Python module"),
        (lambda model: torch.jit.trace(model, torch.randn(4, 3)), "give the Python module"),
    ],
    ids=["DataParallel", "script", "trace"],
)
def test_modules_that_hide_others_are_refused(wrapped: Any, way_out: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = wrapped(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=way_out):
        fm.MAML(model, lr=0.1)
    with pytest.raises(ValueError, match=r"model\.1 "):
        fm.MAML(nn.Sequential(nn.Linear(3, 3), model), lr=0.1)


def test_sparse_parameters_are_refused() -> None:
    model = nn.Linear(3, 2)
    model.weight = nn.Parameter(torch.eye(2, 3).to_sparse())
    with pytest.raises(ValueError, match="parameter weight is sparse"):
        fm.MAML(model, lr=0.1)


def test_what_transformers_quantized_in_another_way_is_refused() -> None:
    model: Any = nn.Linear(3, 2)
    model.is_quantized, model.quantization_method = True, "gptq"
    with pytest.raises(ValueError, match=r"0 was quantized by gptq.*torchao or bitsandbytes"):
        fm.MAML(nn.Sequential(model, nn.Linear(2, 2)), lr=0.1)
    model.quantization_method = "torchao"
    fm.MAML(model, lr=0.1)
