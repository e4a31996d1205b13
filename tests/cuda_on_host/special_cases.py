"""What no comparison with a reference shows: extremes, masks, layouts, bad labels, refusals."""

from __future__ import annotations

import re

import pytest
import torch
from cases import F64, Cases, images, randn
from torch.nn import functional as F


def normalised_images(cases: Cases) -> None:
    k = cases.kernels
    far = images(1, 4, 4, 8, 8) + 1000
    y, mean, rstd, _ = k.task_batch_norm(far.float(), None, None, 1e-5, False, False)
    variance = far.float().double().var((1, 3, 4), unbiased=False)
    cases.same("1/std far from zero", rstd, (variance + 1e-5).rsqrt(), 1e-3)
    assert y.std() < 1.1
    assert (mean - 1000).abs().max() < 1
    mean, rstd = mean.double(), rstd.double()
    masked = k.task_batch_norm_bwd(far, far, None, mean, rstd, mean, False, False, 0b100)
    assert [m.numel() for m in masked] == [0, 0, 4]
    nan = images(1, 1, 4, 4, 4)
    nan[0, 0, 1, 2, 2] = float("nan")
    y, _, _, index = k.task_batch_norm(nan, None, None, 1e-5, True, True)
    assert y[0, 0, 1].isnan().all()
    assert not y[0, 0, 0].isnan().any()
    assert index.max() <= 4


def labels(cases: Cases) -> None:
    k = cases.kernels
    x, target = randn(3, 4, 5), torch.zeros(3, 4, dtype=torch.int64)
    target[1, 2], target[2] = 5, -100
    losses, lse = k.task_cross_entropy(x, target, -100)
    g, h = torch.ones(3, dtype=F64), randn(3, 4, 5)
    gx = k.task_cross_entropy_bwd(g, x, target, lse, -100)
    gg, second = k.task_cross_entropy_bwd2(h, g, x, target, lse, -100, 0b11)
    for result in (losses, gx, second):
        finite = result.reshape(3, -1).isfinite().all(1)
        assert finite.tolist()[:2] == [True, False], "a label out of range spoils its task alone"
    assert losses[2].isnan()
    assert not any(x[2].any() for x in (gx, second, gg)), "a task of ignored targets has none"
    big = torch.tensor([[[1e4, -1e4, 0.0], [float("-inf"), 0.0, 1.0]]], dtype=F64)
    expected = torch.stack([F.cross_entropy(big[0], torch.tensor([1, 1]))])
    assert torch.allclose(k.task_cross_entropy(big, torch.tensor([[1, 1]]), -100)[0], expected)


def layouts(cases: Cases) -> None:
    k = cases.kernels
    gw, _ = k.task_conv2d_wgrad(
        images(2, 3, 4, 6, 6), images(2, 3, 5, 6, 6), (1, 1), (1, 1), (1, 1), (3, 3), False
    )
    assert gw.permute(0, 3, 4, 2, 1).is_contiguous(), "weight gradients come in the kernels' order"


def rate_gradients(cases: Cases) -> None:
    k = cases.kernels
    h = [randn(2, 5000), randn(0, 3), randn(2, 0)]
    total, of_none, empty = k.inner_rate_grad(h, h, [True, False, True], 2.0)
    cases.same("a scalar rate", total, 2 * (h[0] * h[0]).sum(), 1e-11)
    assert of_none.tolist() == [0, 0, 0]
    assert empty == 0


def refusals(cases: Cases) -> None:
    k = cases.kernels
    x = randn(2, 3, 4)
    for argument, call in {
        "task_linear: w has shape": lambda: k.task_linear(x, randn(3, 5, 4), None, 0),
        "task_linear: w has dtype Float": lambda: k.task_linear(x, randn(2, 5, 4).float(), None, 0),
        "task_linear: act is 9": lambda: k.task_linear(x, x, None, 9),
        "task_act: x has dtype Half": lambda: k.task_act(x.half(), 1),
        "task_layer_norm: b has shape": lambda: k.task_layer_norm(x, None, randn(2, 3), 1e-5),
        "task_batch_norm: x has shape": lambda: k.task_batch_norm(x, None, None, 1e-5, True, False),
        "target has dtype Double": lambda: k.task_cross_entropy(x, randn(2, 3), 0),
        "task_mse: target has shape": lambda: k.task_mse(x, x[:1]),
        "inner_update: g has 1 tensors": lambda: k.inner_update([x, x], [x], [], 1.0),
        "inner_update: rate has shape": lambda: k.inner_update([x], [x], [randn(3)], 1.0),
        "inner_update: rate has shape [1, 4": lambda: k.inner_update([x], [x], [randn(4, 3)], 1.0),
        "does not fit x": lambda: k.task_conv2d(
            images(1, 1, 1, 2, 2), randn(1, 1, 1, 3, 3), None, (1, 1), (0, 0), (1, 1)
        ),
    }.items():
        with pytest.raises(RuntimeError, match=re.escape(argument)):
            call()


SPECIAL = (normalised_images, labels, layouts, rate_gradients, refusals)
