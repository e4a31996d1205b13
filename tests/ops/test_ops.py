"""The op table on every backend: values, and all derivatives in all the ways PyTorch takes them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from op_checks import (
    BACKENDS,
    as_leaves,
    assert_equal,
    derivatives,
    dot,
    every_op,
    floats,
    forward_over_reverse,
    inputs_of,
    kernels_for,
    many,
    on_backends,
    on_rows,
    on_small_rows,
    weights,
)
from op_table import SMALL, Row
from raw_reference import raw_kernels
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fastmaml.ops import _load
from fastmaml.ops.task_linear import native_task_linear


@on_backends
@on_rows
def test_values_and_two_derivatives_are_those_of_the_definition(row: Row, backend: str) -> None:
    kernels = kernels_for(backend, row.op)
    tensors = inputs_of(row, kernels)
    found = derivatives(lambda *x: row.native(kernels, *x), tensors)
    assert_equal(found, derivatives(row.reference, tensors))


@pytest.mark.sampled(together=1)
@on_backends
@on_rows
def test_forward_over_reverse(row: Row, backend: str) -> None:
    kernels = kernels_for(backend, row.op)
    tensors = inputs_of(row, kernels)
    found = forward_over_reverse(lambda *x: row.native(kernels, *x), tensors)
    assert_equal(found, forward_over_reverse(row.reference, tensors))


@pytest.mark.sampled(at_most=3)
@every_op
@on_backends
@on_small_rows
def test_gradcheck(row: Row, backend: str) -> None:
    kernels = kernels_for(backend, row.op)
    leaves = as_leaves(inputs_of(row, kernels))

    def function(*x: Tensor) -> Any:
        return row.native(kernels, *x)

    # cuDNN, which float64 goes to on a GPU, may add in another order each time.
    again = 1e-12 if leaves[0].device.type == "cuda" else 0.0
    how = {"check_forward_ad": True, "fast_mode": False, "nondet_tol": again}
    assert torch.autograd.gradcheck(function, leaves, **how)
    assert torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True, nondet_tol=again)


def reverse_of(function: Any, own: list[int]) -> Any:
    """The gradient of a number made of the gradient of a number made of the outputs."""

    def number(*x: Tensor) -> Tensor:
        return sum((o.square().sum() for o in many(function(*x))), torch.zeros(()))

    def slope(*x: Tensor) -> Tensor:
        return sum((g.square().sum() for g in grad(number, tuple(own))(*x)), torch.zeros(()))

    return grad(slope, tuple(own))


def stacked(x: Tensor, size: int = 3) -> Tensor:
    """Different tensors for a mapped dimension."""
    return torch.stack([x * (1 - 0.3 * i) if x.is_floating_point() else x for i in range(size)])


@every_op
@on_backends
@pytest.mark.parametrize("one_task", [True, False])
@on_small_rows
def test_under_vmap(row: Row, backend: str, one_task: bool) -> None:
    """Of the value and of grad(grad); all inputs mapped, or the first, or the last alone."""
    kernels = kernels_for(backend, row.op)
    tensors = inputs_of(row, kernels)
    if one_task and "inner" not in row.op:
        tensors = [x[:1] for x in tensors]
    own = [i for i, x in enumerate(tensors) if x.is_floating_point()]

    def native(*x: Tensor) -> Any:
        return row.native(kernels, *x)

    for chosen in ({*own}, {own[0]}, {own[-1]}):
        dims = tuple(0 if i in chosen else None for i in range(len(tensors)))
        given = [stacked(x) if i in chosen else x for i, x in enumerate(tensors)]
        for function, reference in (
            (native, row.reference),
            (reverse_of(native, own), reverse_of(row.reference, own)),
        ):
            found = vmap(function, dims)(*given)
            one_by_one = [
                many(reference(*(x[i] if d == 0 else x for x, d in zip(given, dims, strict=True))))
                for i in range(3)
            ]
            expected = [torch.stack(parts) for parts in zip(*one_by_one, strict=True)]
            assert_equal(list(many(found)), expected)


@on_backends
@on_small_rows
def test_the_last_dimension_mapped(row: Row, backend: str) -> None:
    kernels = kernels_for(backend, row.op)
    tensors = inputs_of(row, kernels)
    last = [stacked(x).movedim(0, -1) for x in tensors]
    found = vmap(lambda *x: row.native(kernels, *x), in_dims=-1)(*last)
    one_by_one = [many(row.reference(*(x[..., i] for x in last))) for i in range(3)]
    assert_equal(list(many(found)), [torch.stack(p) for p in zip(*one_by_one, strict=True)])


@on_backends
@on_small_rows
def test_jvp_and_its_gradient(row: Row, backend: str) -> None:
    """torch.func.jvp, and reverse over forward."""
    kernels = kernels_for(backend, row.op)
    tensors = inputs_of(row, kernels)
    own = [i for i, x in enumerate(tensors) if x.is_floating_point()]
    directions = tuple(weights([tensors[i] for i in own], 2))

    def both(function: Any) -> list[Tensor]:
        def outputs(*chosen: Tensor) -> tuple[Tensor, ...]:
            given = list(tensors)
            for i, x in zip(own, chosen, strict=True):
                given[i] = x
            return many(function(*given))

        def number(*chosen: Tensor) -> Tensor:
            tangents = jvp(outputs, chosen, directions)[1]
            return dot(tangents, weights(tangents, 1))

        primals = tuple(tensors[i] for i in own)
        values, tangents = jvp(outputs, primals, directions)
        return [*values, *tangents, *grad(number, tuple(range(len(own))))(*primals)]

    assert_equal(both(lambda *x: row.native(kernels, *x)), both(row.reference))


@pytest.mark.parametrize("backend", BACKENDS[1:])
@on_rows
def test_float32_rounds_no_worse_than_twice_pytorch(row: Row, backend: str) -> None:
    kernels = kernels_for(backend, row.op, torch.float32)
    exact = derivatives(row.reference, inputs_of(row, kernels))
    tensors = inputs_of(row, kernels, torch.float32)
    # What rounding the inputs costs is no fault of either.
    exact = derivatives(
        row.reference, [x.double() if x.is_floating_point() else x for x in tensors]
    )
    found = derivatives(lambda *x: row.native(kernels, *x), tensors)
    theirs = derivatives(row.reference, tensors)
    for i, (x, y, z) in enumerate(zip(found, theirs, exact, strict=True)):
        if not z.numel() or z.isnan().any():
            continue
        # What is zero has no unit of its own; intermediate values are at most a few tens.
        unit = torch.finfo(torch.float32).eps * (z.abs().max() or 32)
        own, other = ((v.double() - z).square().mean().sqrt() for v in (x, y))
        assert own <= 2 * other + unit, (i, own, other)


def raw_nodes(function: Any, *tensors: Tensor) -> tuple[Counter[str], Counter[str]]:
    """The raw ops of a trace, and all others, by name."""
    graph = make_fx(function)(*tensors).graph
    graph.eliminate_dead_code()
    names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    mine = [n.split(".")[1] for n in names if n.startswith("fastmaml")]
    others = [n.split(".")[1] for n in names if n.startswith("aten")]
    return Counter(mine), Counter(others)


ARITHMETIC = {
    "add",
    "mul",
    "ne",
    "neg",
    "sum",
    "pow",
    "square",
    "ones_like",
    "detach",
    "zeros_like",
}
VIEWS = {"expand", "view", "unsqueeze", "squeeze", "select", "t", "transpose", "flatten", "alias"}
LARGEST = 12
"""Raw calls of any row in the trace of a gradient of a gradient."""


@pytest.mark.sampled(at_most=10)
@every_op
@on_backends
@on_small_rows
def test_a_trace_holds_raw_ops_and_little_else(row: Row, backend: str) -> None:
    kernels = kernels_for(backend, row.op)
    tensors = inputs_of(row, kernels)
    own = [i for i, x in enumerate(tensors) if x.is_floating_point()]

    def native(*x: Tensor) -> Any:
        return row.native(kernels, *x)

    if row.op.startswith("inner"):  # the inner step is taken for all tasks at once
        function: Any = native
    else:
        function, tensors = vmap(native), [x.unsqueeze(1) for x in tensors]

    def meta_gradient(*x: Tensor) -> Any:
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in x]
            mine = [leaves[i] for i in own]
            outputs = many(function(*leaves))
            value = sum(o.square().sum() for o in outputs)
            first = torch.autograd.grad(value, mine, create_graph=True)
            second = sum(g.square().sum() for g in first)
            return torch.autograd.grad(second, mine, materialize_grads=True)

    found, others = raw_nodes(meta_gradient, *tensors)
    members = set(_load.FAMILIES[row.op]) | set(_load.FAMILIES["task_act"])
    assert found
    assert set(found) <= members
    assert sum(found.values()) <= LARGEST, found
    assert set(others) <= ARITHMETIC | VIEWS, others


def test_an_mlp_is_traced_without_a_product_left() -> None:
    """Two layers to second order, under vmap with autograd around; counted by hand."""
    kernels = raw_kernels()
    x, w, v = (torch.randn(*s, dtype=torch.float64) for s in ((3, 5, 4), (3, 6, 4), (3, 2, 6)))

    def net(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        h = native_task_linear(kernels, x[None], w[None], None, 1)
        return native_task_linear(kernels, h, v[None])[0]

    def meta_gradient(x: Tensor, w: Tensor, v: Tensor) -> Any:
        with torch.enable_grad():
            w, v = w.detach().requires_grad_(), v.detach().requires_grad_()
            first = torch.autograd.grad(vmap(net)(x, w, v).sum(), (w, v), create_graph=True)
            return torch.autograd.grad(sum(g.square().sum() for g in first), (w, v))

    found, _ = raw_nodes(meta_gradient, x, w, v)
    assert found == {
        "task_linear": 2 + 1,  # the second layer's cotangent does not depend on w and v
        "task_linear_dgrad": 1 + 1,
        "task_linear_wgrad": 2 + 2,
        "task_act_bwd": 1 + 2,
    }


LINEAR = {"task_mse", "task_embedding"}
"""Their gradients are linear, and derived any number of times."""


@on_backends
@pytest.mark.parametrize(
    "row",
    [r for r in SMALL if r.case in ("small", "small-gelu", "small-tanh") and r.op not in LINEAR],
    ids=str,
)
def test_a_third_derivative_raises(row: Row, backend: str) -> None:
    kernels = kernels_for(backend, row.op)
    leaves = as_leaves(inputs_of(row, kernels))
    mine = floats(leaves)
    value = sum(o.sin().sum() for o in many(row.native(kernels, *leaves)))
    first = torch.autograd.grad(value, mine, create_graph=True)
    second = torch.autograd.grad(sum(g.sin().sum() for g in first), mine, create_graph=True)
    with pytest.raises(NotImplementedError, match=r'second derivative.*backend="reference"'):
        torch.autograd.grad(sum(g.sin().sum() for g in second), mine)


@on_small_rows
def test_the_definition_has_a_third_derivative(row: Row) -> None:
    """The way out that the error names."""
    leaves = as_leaves(list(row.inputs()))
    mine = floats(leaves)
    value = sum(o.sin().sum() for o in many(row.reference(*leaves)))
    for _ in range(3):
        gradients = torch.autograd.grad(value, mine, create_graph=True, allow_unused=True)
        value = sum(g.sin().sum() for g in gradients if g is not None)
    assert value.isfinite()
