"""Frozen weights that torchao quantized: meta-gradients against the dense network's, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import quantized_layers as q
import torch
from torch import Tensor, nn

import fastmaml as fm

pytest.importorskip("torchao", reason="no torchao (fastmaml[quantized])")
METHODS = {
    "unrolled": fm.gradients.Unrolled(),
    "checkpointed": fm.gradients.Checkpointed(),
    "mixed-mode": fm.gradients.MixedMode(),
}


def quantized(model: nn.Module, config: Any = None) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, config or Int8WeightOnlyConfig())
    return model


def dense(model: nn.Module) -> nn.Module:
    return q.dense(model, lambda layer: layer.weight.dequantize())


@pytest.mark.parametrize("executor", ["eager", "captured"])
@pytest.mark.parametrize("method", METHODS)
def test_the_meta_gradient_is_that_of_the_dense_network(method: str, executor: Any) -> None:
    model, batch = q.network(quantized, torch.float32), q.episodes(torch.float32)
    expected = q.by_hand(dense(model), batch)
    assert q.error(q.by_hand(dense(model), batch, first_order=True), expected) > 0.1
    maml = q.learned(model, gradient=METHODS[method], executor=executor)
    assert "3 of 3 at a time under vmap" in str(maml.explain(batch))
    for _ in range(3):
        assert q.error(q.meta_gradient(maml, batch), expected) < 1e-5


@pytest.mark.parametrize("executor", ["eager", "captured"])
@pytest.mark.parametrize("method", METHODS)
def test_layers_that_run_again_are_products_then_too(method: str, executor: Any) -> None:
    model, batch = q.network(quantized, torch.float32), q.episodes(torch.float32)
    expected = q.by_hand(dense(model), batch)
    maml = q.learned(q.run_again(model), gradient=METHODS[method], executor=executor)
    if method == "mixed-mode":
        with pytest.raises(RuntimeError, match=r"saved tensor hooks"):
            maml(batch)
        return
    for _ in range(2):
        found = q.meta_gradient(maml, batch)
        assert q.error({n.replace(".layer", ""): g for n, g in found.items()}, expected) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_in_bfloat16_it_errs_at_most_twice_as_much_as_torch(method: str) -> None:
    model, batch = q.network(quantized, torch.bfloat16), q.episodes(torch.bfloat16)
    expected = q.by_hand(dense(model), batch)
    plain = q.error(q.by_hand(model, batch), expected)
    found = q.meta_gradient(q.learned(model, gradient=METHODS[method]), batch)
    assert q.error(found, expected) <= 2 * plain


def other(model: Any) -> Any:
    """Quantized weights of another network, of the same shapes."""
    torch.manual_seed(5)
    return quantized(nn.Sequential(nn.Linear(q.WIDTH, q.WIDTH)))[0].weight


@pytest.mark.parametrize("change", ["in place", "a part in place", "exchanged", "loaded"])
def test_a_recording_reads_weights_that_changed(change: str) -> None:
    model: Any = q.network(quantized, torch.float32)
    batch = q.episodes(torch.float32)
    maml = q.learned(model, executor="captured")
    before = q.meta_gradient(maml, batch)
    base = model[0].base
    with torch.no_grad():
        if change == "in place":
            base.weight.copy_(other(model))
        elif change == "a part in place":
            base.weight.scale.mul_(-2)
        elif change == "exchanged":
            base.weight = nn.Parameter(other(model), requires_grad=False)
        else:
            model.load_state_dict(model.state_dict() | {"0.base.weight": other(model)})
    expected = q.by_hand(dense(model), batch)
    assert q.error(before, expected) > 0.01
    assert q.error(q.meta_gradient(maml, batch), expected) < 1e-5


def test_evaluation_adapting_and_functions_of_a_task() -> None:
    model, batch = q.network(quantized, torch.float32), q.episodes(torch.float32)
    maml = q.learned(model)
    losses = maml.evaluate(batch).losses
    exact = q.learned(dense(model)).evaluate(batch.to(torch.float64)).losses
    torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1e-5)
    learner = maml.adapt_to(batch[:1].support.map(lambda x: x[0]))
    query = batch[:1].query.map(lambda x: x[0])
    torch.testing.assert_close(q.loss(learner(query.inputs), query.targets), losses[0])

    @maml.per_task
    def function(learner: Any, support: fm.Batch, query: fm.Batch) -> Tensor:
        learner.adapt(q.loss(learner(support.inputs), support.targets))
        return q.loss(learner(query.inputs), query.targets)

    one = fm.MAML(model, lr=q.LR, steps=1, loss=q.loss)
    expected = one(batch).losses
    torch.testing.assert_close(function(batch).losses, expected)


def test_clones_learn_through_the_librarys_own_layers() -> None:
    model, batch = q.network(quantized, torch.float32), q.episodes(torch.float32, tasks=1)
    expected = q.by_hand(dense(model), batch)
    maml = q.learned(model, allow_nograd=True)
    learner = maml.clone()
    support, query = (part.map(lambda x: x[0]) for part in (batch.support, batch.query))
    for _ in range(q.STEPS):
        learner.adapt(q.loss(learner(support.inputs), support.targets))
    q.loss(learner(query.inputs), query.targets).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert q.error(found, expected) < 1e-5  # type: ignore[arg-type]


def test_inputs_that_are_quantized_too_are_refused() -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    model = q.network(
        lambda m: quantized(m, Int8DynamicActivationInt8WeightConfig()), torch.float32
    )
    with pytest.raises(ValueError, match=r"0\.base\.weight is torchao's Int8Tensor .* inputs"):
        q.learned(model)
    later = q.network(quantized, torch.float32)
    maml = q.learned(later)
    later[0].base = model[0].base  # type: ignore[index, union-attr, assignment]
    with pytest.raises(ValueError, match=r"quantize weights only"):
        maml(q.episodes(torch.float32))


def test_weights_that_are_to_be_learned_are_refused() -> None:
    model = q.network(quantized, torch.float32).requires_grad_(True)
    with pytest.raises(ValueError, match=r"0\.base\.weight .* requires_grad_\(False\)"):
        q.learned(model)


def test_a_layer_that_is_none_of_linear_is_refused() -> None:
    from torchao.quantization import IntxWeightOnlyConfig, PerAxis

    model = nn.Sequential(nn.Embedding(8, q.WIDTH), nn.Flatten(), nn.Linear(q.WIDTH, 2))
    config = IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
    from torchao.quantization import quantize_

    quantize_(model, config, filter_fn=lambda m, n: isinstance(m, nn.Embedding))
    with pytest.raises(ValueError, match=r"0 is a Embedding .* Leave this layer out"):
        q.learned(model)


@pytest.mark.parametrize("executor", ["eager", "captured"])
def test_four_bits_in_eight(executor: Any) -> None:
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    model = q.network(lambda m: quantized(m, config), torch.float32)
    batch = q.episodes(torch.float32)
    expected = q.by_hand(dense(model), batch)
    maml = q.learned(model, executor=executor)
    assert q.error(q.meta_gradient(maml, batch), expected) < 1e-5


def test_under_autocast_it_computes_in_that_dtype() -> None:
    model, batch = q.network(quantized, torch.float32), q.episodes(torch.float32)
    expected = q.by_hand(dense(model), batch)
    with torch.autocast("cpu", torch.bfloat16):
        plain = q.by_hand(model, batch)
        found = q.meta_gradient(q.learned(model), batch)
    assert 1e-5 < q.error(found, expected) <= 2 * q.error(plain, expected)


def test_layers_with_a_forward_of_their_own_are_refused() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    by_class = quantized(nn.Sequential(Doubled(q.WIDTH, q.WIDTH), nn.Linear(q.WIDTH, 2)))
    by_class[1] = nn.Linear(q.WIDTH, 2)  # type: ignore[operator]
    by_instance: Any = q.network(quantized, torch.float32)
    by_instance[0].base.forward = lambda x: x
    for model in (by_class, by_instance):
        with pytest.raises(ValueError, match=r"with a forward\(\) of its own"):
            q.learned(model)


def test_weights_that_are_made_of_others_are_refused() -> None:
    """As those of older versions are."""
    model: Any = q.network(quantized, torch.float32)
    model[0].base.weight.scale = other(model)
    with pytest.raises(ValueError, match=r"0\.base\.weight .* made of other subclasses"):
        q.learned(model)


def test_what_does_not_adapt_is_made_dense_once_for_all_inner_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fastmaml.integrations.quantized.torchao import Subclass

    calls, made = [], Subclass.dense

    def counted(*given: Any) -> Tensor:
        calls.append(given)
        return made(*given)

    model, batch = q.network(quantized, torch.float32), q.episodes(torch.float32)
    model[0].requires_grad_(False)  # type: ignore[operator]
    model[2].requires_grad_(False)  # type: ignore[operator]
    maml = fm.MAML(model, lr=q.LR, steps=4, loss=q.loss, executor="eager")
    q.meta_gradient(maml, batch)
    monkeypatch.setattr(Subclass, "dense", counted)
    q.meta_gradient(maml, batch)
    assert len(calls) == 4  # two layers, on the support and on the query set
