"""Frozen layers of bitsandbytes: meta-gradients against the dense network's, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import quantized_layers as q
import torch
from torch import Tensor, nn

import fastmaml as fm
from fastmaml.integrations.quantized.host import find_quantized

bitsandbytes = pytest.importorskip("bitsandbytes", reason="no bitsandbytes")
METHODS = {
    "unrolled": fm.gradients.Unrolled(),
    "checkpointed": fm.gradients.Checkpointed(),
    "mixed-mode": fm.gradients.MixedMode(),
}
KINDS = ["nf4", "fp4", "nested", "int8"]


def layer(kind: str, own: nn.Linear, **more: Any) -> nn.Module:
    """One of bitsandbytes in place of a linear one, quantized."""
    library: Any = bitsandbytes.nn
    sizes, bias = (own.in_features, own.out_features), own.bias is not None
    weight = own.weight.detach().clone()
    if kind == "int8":
        found = library.Linear8bitLt(*sizes, bias, has_fp16_weights=False, threshold=6.0)
        found.weight = library.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        found = library.Linear4bit(*sizes, bias, **more)
        found.weight = library.Params4bit(
            weight,
            requires_grad=False,
            compress_statistics=kind == "nested",
            quant_type="fp4" if kind == "fp4" else "nf4",
        )
    if bias:
        found.bias = nn.Parameter(own.bias.detach().clone(), requires_grad=False)
    result: nn.Module = found.to("cpu")
    return result


def network(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    def quantize(model: nn.Module) -> nn.Module:
        return nn.Sequential(*(layer(kind, own) for own in model))  # type: ignore[arg-type]

    return q.network(quantize, dtype)


def weight_of(own: Any) -> Tensor:
    """By the library."""
    if isinstance(own, bitsandbytes.nn.Linear8bitLt):
        scales = own.weight.SCB if own.weight.SCB is not None else own.state.SCB
        return own.weight.data.double() * scales.double().unsqueeze(1) / 127
    found: Tensor = bitsandbytes.functional.dequantize_4bit(own.weight, own.weight.quant_state)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_run_again_are_products_then_too(kind: str) -> None:
    model, batch = network(kind), q.episodes(torch.float32)
    expected = q.by_hand(q.dense(model, weight_of), batch)
    maml = q.learned(q.run_again(model), gradient=METHODS["unrolled"], executor="eager")
    found = q.meta_gradient(maml, batch)
    assert q.error({n.replace(".layer", ""): g for n, g in found.items()}, expected) < 1e-5


@pytest.mark.parametrize("kind", ["nf4", "fp4", "nested"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_four_bits_stand_for_what_the_library_says(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    own: Any = layer(kind, nn.Linear(128, 9, dtype=dtype))
    host = find_quantized(own)
    assert host is not None
    weight = host.layers[0].weight
    assert torch.equal(weight.dense(weight.parts()), weight_of(own))


@pytest.mark.parametrize("executor", ["eager", "captured"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["nested", "int8"])
def test_the_meta_gradient_is_that_of_the_dense_network(
    kind: str, method: str, executor: Any
) -> None:
    model, batch = network(kind), q.episodes(torch.float32)
    exact = q.dense(model, weight_of)
    expected = q.by_hand(exact, batch)
    assert q.error(q.by_hand(exact, batch, first_order=True), expected) > 0.1
    maml = q.learned(model, gradient=METHODS[method], executor=executor)
    assert "3 of 3 at a time under vmap" in str(maml.explain(batch))
    for _ in range(3):
        assert q.error(q.meta_gradient(maml, batch), expected) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_it_errs_at_most_twice_as_much_as_the_library(kind: str) -> None:
    model, batch = network(kind, torch.bfloat16), q.episodes(torch.bfloat16)
    expected = q.by_hand(q.dense(model, weight_of), batch)
    plain = q.error(q.by_hand(model.train(), batch), expected)
    assert q.error(q.meta_gradient(q.learned(model), batch), expected) <= 2 * plain


@pytest.mark.parametrize("called", [False, True], ids=["new", "called before"])
@pytest.mark.parametrize("kind", ["nf4", "nested", "int8"])
def test_a_recording_reads_weights_that_changed(kind: str, called: bool) -> None:
    """A layer in 8 bits moves its scales to another place when it is called."""
    model: Any = network(kind)
    batch = q.episodes(torch.float32)
    if called:
        model(batch.support.inputs)
    maml = q.learned(model, executor="captured")
    before = q.meta_gradient(maml, batch)
    own = model[0].base
    if kind == "int8":
        scales = own.weight.SCB if own.weight.SCB is not None else own.state.SCB
        scales.mul_(-2)
    elif kind == "nf4":
        own.weight.quant_state.absmax = own.weight.quant_state.absmax * -2
    else:
        own.weight.quant_state.state2.absmax.mul_(-2)
    expected = q.by_hand(q.dense(model, weight_of), batch)
    assert q.error(before, expected) > 0.01
    assert q.error(q.meta_gradient(maml, batch), expected) < 1e-5
    torch.manual_seed(7)
    model[0].base = layer(kind, nn.Linear(q.WIDTH, q.WIDTH))
    expected = q.by_hand(q.dense(model, weight_of), batch)
    assert q.error(q.meta_gradient(maml, batch), expected) < 1e-5


def test_the_model_is_as_it_was_afterwards() -> None:
    model: Any = network("int8")
    q.meta_gradient(q.learned(model), q.episodes(torch.float32))
    assert "forward" not in model[0].base.__dict__
    assert model[0].base.weight.CB is not None  # the library's own forward was never called


def test_what_is_not_quantized_or_packed_is_refused() -> None:
    library: Any = bitsandbytes.nn
    with pytest.raises(ValueError, match=r"0 is .*Linear4bit.* not quantized yet"):
        q.learned(nn.Sequential(library.Linear4bit(64, 64), nn.Linear(64, 3)))
    eight = library.Linear8bitLt(64, 64, has_fp16_weights=False)
    with pytest.raises(ValueError, match=r"0 is .*Linear8bitLt.* not quantized yet"):
        q.learned(nn.Sequential(eight, nn.Linear(64, 3)))
    with pytest.raises(ValueError, match=r"has_fp16_weights=False, as transformers does"):
        q.learned(nn.Sequential(library.Linear8bitLt(64, 64), nn.Linear(64, 3)))
    with pytest.raises(ValueError, match=r"0 is bitsandbytes' Embedding8bit"):
        q.learned(nn.Sequential(library.Embedding8bit(64, 64), nn.Linear(64, 3)))
    packed: Any = nn.Sequential(layer("nf4", nn.Linear(64, 64)), nn.Linear(64, 3))
    packed[0].weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match=r"0 is .*Linear4bit.* model\.state_dict\(\)"):
        q.learned(packed)


def test_blocks_that_the_librarys_kernel_for_the_cpu_reads_wrongly_are_refused() -> None:
    own: Any = layer("nf4", nn.Linear(48, 64))
    with pytest.raises(ValueError, match=r"0 is .*Linear4bit with 48 inputs.* blocks of 64"):
        q.learned(nn.Sequential(own, nn.Linear(64, 3)))
