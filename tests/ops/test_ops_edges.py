"""Ties, nan, ignored labels, what is not computed, what is not copied; the public functions."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_checks import derivatives, kernels_for, on_backends
from raw_reference import raw_kernels
from torch import Tensor
from torch.func import vmap

from fastmaml import ops
from fastmaml.ops import _load
from fastmaml.ops._load import Kernels
from fastmaml.ops.task_batch_norm import native_task_batch_norm, reference_task_batch_norm
from fastmaml.ops.task_cross_entropy import native_task_cross_entropy, reference_task_cross_entropy
from fastmaml.ops.task_linear import native_task_linear
from fastmaml.ops.task_mse import native_task_mse, reference_task_mse


def spied() -> tuple[Kernels, list[tuple[str, tuple[Any, ...]]]]:
    """Kernels, and the calls that they get."""
    calls: list[tuple[str, tuple[Any, ...]]] = []
    plain = raw_kernels()

    def spy(name: str) -> Any:
        def call(*args: Any) -> Any:
            calls.append((name, args))
            return plain.raw_ops[name](*args)

        return call

    return dataclasses.replace(plain, raw_ops={n: spy(n) for n in plain.raw_ops}), calls


def device_of(kernels: Kernels) -> str:
    return "cpu" if "cpu" in kernels.devices else "cuda"


@on_backends
@pytest.mark.parametrize("relu", [False, True])
def test_the_first_of_equal_maxima_gets_the_gradient(backend: str, relu: bool) -> None:
    kernels = kernels_for(backend, "task_batch_norm")
    made = torch.Generator().manual_seed(0)
    x = torch.randint(-1, 2, (2, 3, 4, 6, 6), generator=made).double().to(device_of(kernels))
    found = derivatives(
        lambda x: native_task_batch_norm(kernels, x, None, None, 1e-5, relu, True), [x]
    )
    expected = derivatives(
        lambda x: reference_task_batch_norm(x, None, None, 1e-5, relu, True), [x]
    )
    torch.testing.assert_close(found, expected)


@on_backends
def test_relu_passes_nothing_at_zero(backend: str) -> None:
    kernels = kernels_for(backend, "task_batch_norm")
    x = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64, device=device_of(kernels))
    zero = torch.zeros(2, 4, dtype=torch.float64, device=x.device, requires_grad=True)
    y = native_task_batch_norm(kernels, x, zero, zero, 1e-5, True, False)
    (g,) = torch.autograd.grad(y.sum(), zero)
    assert not y.any()
    assert not g.any()


@on_backends
@pytest.mark.parametrize("pool", [False, True])
def test_nan_is_not_hidden(backend: str, pool: bool) -> None:
    kernels = kernels_for(backend, "task_batch_norm")
    x = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    x[1, 2, 0, 3, 2] = float("nan")
    y = native_task_batch_norm(kernels, x.to(device_of(kernels)), None, None, 1e-5, True, pool)
    assert y[1, :, 0].isnan().all()
    assert not y[0].isnan().any()
    assert not y[:, :, 1].isnan().any()


@on_backends
def test_a_task_without_labels_is_nan_and_has_no_gradient(backend: str) -> None:
    kernels = kernels_for(backend, "task_cross_entropy")
    x = torch.randn(2, 3, 4, dtype=torch.float64, device=device_of(kernels), requires_grad=True)
    target = torch.tensor([[1, -1, 3], [-1, -1, -1]], device=x.device)
    for losses in (
        native_task_cross_entropy(kernels, x, target, -1),
        reference_task_cross_entropy(x, target, -1),
    ):
        expected = F.cross_entropy(x[0], target[0], ignore_index=-1)
        torch.testing.assert_close(losses[0], expected)
        assert losses[1].isnan()
        (g,) = torch.autograd.grad(losses[0] + losses[1], x)
        assert not g[1].any()
        assert not g[0, 1].any()


@on_backends
def test_the_loss_of_no_examples_is_nan(backend: str) -> None:
    kernels = kernels_for(backend, "task_cross_entropy")
    x = torch.empty(2, 0, 4, dtype=torch.float64, device=device_of(kernels), requires_grad=True)
    labels = torch.empty(2, 0, dtype=torch.long, device=x.device)
    for losses in (
        native_task_cross_entropy(kernels, x, labels),
        native_task_mse(kernels, x, x.detach()),
        reference_task_cross_entropy(x, labels),
        reference_task_mse(x, x.detach()),
    ):
        assert losses.isnan().all()
        assert torch.autograd.grad(losses.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("backend", ["raw_reference", "cpp", "reference"])
@pytest.mark.parametrize("label", [4, -1, -101, 2**40])
def test_a_label_out_of_range_raises(backend: str, label: int) -> None:
    x, target = torch.randn(2, 3, 4), torch.tensor([[1, 2, 3], [0, label, 1]])
    if backend == "reference":
        function = reference_task_cross_entropy
    else:
        kernels = kernels_for(backend, "task_cross_entropy", torch.float32)
        function = partial(native_task_cross_entropy, kernels)
    with pytest.raises(RuntimeError, match=r"task_cross_entropy: target|out of bounds"):
        function(x, target)


def test_huge_logits_are_finite() -> None:
    x = torch.tensor([[[1e4, -1e4, 0.0]]])
    assert ops.task_cross_entropy(x, torch.tensor([[0]])).item() == 0


def test_what_needs_no_gradient_is_not_computed() -> None:
    kernels, calls = spied()
    x, w, b = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5)
    native_task_linear(kernels, x, w.requires_grad_(), b).sum().backward()
    assert [name for name, _ in calls] == ["task_linear", "task_linear_wgrad"]
    assert calls[-1][1][2] is False  # nor the sum for b
    calls.clear()
    native_task_linear(kernels, x, w.detach(), b.requires_grad_()).sum().backward()
    assert [name for name, _ in calls] == ["task_linear"]
    calls.clear()
    image = torch.randn(2, 3, 4, 2, 2)
    v = torch.randn(2, 4, requires_grad=True)
    native_task_batch_norm(kernels, image, v, None).sum().backward()
    assert calls[-1][0] == "task_batch_norm_bwd"
    assert calls[-1][1][-1] == 0b10


def test_shared_weights_are_not_copied_under_vmap() -> None:
    kernels, calls = spied()
    x, w = torch.randn(6, 5, 4), torch.randn(3, 4)
    vmap(lambda x: native_task_linear(kernels, x[None], w[None])[0])(x)
    _, (folded, weights, _, _) = calls[-1]
    assert (folded.shape, folded.data_ptr()) == ((6, 5, 4), x.data_ptr())
    assert (weights.shape, weights.stride(0)) == ((6, 3, 4), 0)
    assert weights.data_ptr() == w.data_ptr()
    vmap(lambda x, w: native_task_linear(kernels, x[None], w[None])[0])(x, w.expand(6, 3, 4))
    assert calls[-1][1][1].stride(0) == 0


def test_nested_vmap() -> None:
    kernels = raw_kernels()
    x, w = (torch.randn(*s, dtype=torch.float64) for s in ((2, 3, 5, 4), (2, 6, 4)))

    def one(x: Tensor, w: Tensor) -> Tensor:
        return native_task_linear(kernels, x[None], w[None], None, 2)[0]

    found = vmap(vmap(one, (0, None)))(x, w)
    torch.testing.assert_close(found, torch.tanh(x @ w.mT[:, None]))


CALLS = {
    "task_linear": lambda o, r: o(r(2, 3, 4), r(2, 5, 4), r(2, 5), activation="gelu"),
    "task_conv2d": lambda o, r: o(r(2, 3, 4, 5, 5), r(2, 6, 4, 3, 3), r(2, 6), padding=1),
    "task_act": lambda o, r: o(r(2, 3), "silu"),
    "task_batch_norm": lambda o, r: o(r(2, 5, 3), r(2, 3), r(2, 3), relu=True),
    "task_layer_norm": lambda o, r: o(r(2, 5, 3), r(2, 3)),
    "task_cross_entropy": lambda o, r: o(r(2, 3, 4), torch.ones(2, 3, dtype=torch.long)),
    "task_mse": lambda o, r: o(r(2, 3), r(2, 3)),
    "task_attention": lambda o, r: o(*r(3, 2, 1, 2, 5, 4), r(2, 1, 1, 1, 5), causal=True),
    "task_embedding": lambda o, r: o(r(2, 3, 4), torch.ones(2, 3, dtype=torch.long)),
    "dropout_mask": lambda o, r: o(torch.arange(2), (3, 4), 0.5, r(1)),
    "inner_update": lambda o, r: o([r(2, 3)], [r(2, 3)], [r(3)], scale=-1.0),
    "inner_momentum": lambda o, r: o([r(2, 3)], [r(2, 3)], [r(2, 3)], scale=-1.0, momentum=0.9),
}


def public(op: str, backend: str) -> Any:
    made = torch.Generator().manual_seed(0)
    function = partial(getattr(ops, op), backend=backend)
    return CALLS[op](function, lambda *shape: torch.randn(*shape, generator=made))


def test_every_op_is_called() -> None:
    assert CALLS.keys() == _load.FAMILIES.keys()
    assert set(_load.FAMILIES) <= set(ops.__all__)


@pytest.mark.parametrize("op", CALLS)
def test_public_functions_agree(op: str) -> None:
    kernels_for("cpp", op)
    torch.testing.assert_close(public(op, "cpp"), public(op, "reference"))


def test_definitions_are_pytorchs_own_functions() -> None:
    x, w, b = torch.randn(2, 7, 4, 6, 6), torch.randn(2, 5, 4, 3, 3), torch.randn(2, 5)
    y = ops.task_conv2d(x, w, b, stride=(2, 1), padding=(1, 0))
    expected = [F.conv2d(*t, stride=(2, 1), padding=(1, 0)) for t in zip(x, w, b, strict=True)]
    torch.testing.assert_close(y, torch.stack(expected))
    v, c = torch.randn(2, 4), torch.randn(2, 4)
    y = ops.task_batch_norm(x, v, c, relu=True, pool=True)
    each = zip(x, v, c, strict=True)
    normed = [F.batch_norm(a, None, None, p, q, training=True) for a, p, q in each]
    torch.testing.assert_close(y, torch.stack([F.max_pool2d(F.relu(n), 2) for n in normed]))
    x = torch.randn(2, 7, 4)
    y = ops.task_layer_norm(x, v, c)
    each = zip(x, v, c, strict=True)
    torch.testing.assert_close(y, torch.stack([F.layer_norm(a, (4,), p, q) for a, p, q in each]))
    labels = torch.randint(4, (2, 7))
    y = ops.task_cross_entropy(x, labels)
    each = zip(x, labels, strict=True)
    torch.testing.assert_close(y, torch.stack([F.cross_entropy(a, t) for a, t in each]))
    y = ops.task_mse(x, x.exp())
    torch.testing.assert_close(y, torch.stack([F.mse_loss(a, a.exp()) for a in x]))


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_torch_optims(nesterov: bool) -> None:
    start, gradients = torch.randn(3), torch.randn(4, 3)
    theirs = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, nesterov=nesterov)
    p, v = [start[None]], [torch.zeros(1, 3)]
    for g in gradients:
        p, v = ops.inner_momentum(p, [g[None]], v, scale=-0.1, momentum=0.9, nesterov=nesterov)
        theirs.grad = g.clone()
        optimizer.step()
    torch.testing.assert_close(p[0][0], theirs.detach())


def test_no_parameters() -> None:
    assert ops.inner_update([], [], scale=1.0) == []
    assert ops.inner_momentum([], [], [], scale=1.0, momentum=0.9) == ([], [])
