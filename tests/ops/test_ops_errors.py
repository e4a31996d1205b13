"""Bad input to an op names the tensor, before anything runs; absent backends say why."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, zeros

from fastmaml import ops
from fastmaml import ops as o
from fastmaml.ops import _load

X, W, B = zeros(4, 3, 5), zeros(4, 2, 5), zeros(4, 2)
IMAGES, FILTERS = zeros(4, 3, 2, 6, 6), zeros(4, 5, 2, 3, 3)
LOGITS, LABELS = zeros(4, 3, 5), zeros(4, 3, dtype=torch.long)
P = [zeros(4, 2), zeros(4, 3)]
HEADS, KEY = zeros(4, 2, 3, 5, 6), zeros(4, dtype=torch.long)
TABLE, IDS = zeros(4, 7, 2), zeros(4, 3, dtype=torch.long)
META = zeros(4, 2, 5, device="meta")


def attend(q: Tensor, k: Tensor | None = None, v: Tensor | None = None, **how: Any) -> Tensor:
    return o.task_attention(q, q if k is None else k, q if v is None else v, **how)


BAD: list[tuple[Callable[..., Any], str]] = [
    (lambda h: o.task_linear(X[0], W, B, **h), r"task_linear: x has shape \[3, 5\]"),
    (lambda h: o.task_linear(X, W[..., :4], B, **h), r"task_linear: w has shape \[4, 2, 4\]"),
    (lambda h: o.task_linear(X, W, B[:, :1], **h), r"task_linear: b has shape \[4, 1\].*2\]"),
    (lambda h: o.task_linear(X, W[:3], **h), r"task_linear: w has 3 tasks, x has 4 tasks"),
    (lambda h: o.task_linear(X, W, B[:1], **h), "task_linear: b has 1 tasks, x has 4 tasks"),
    (lambda h: o.task_linear(X, W.double(), **h), r"w is torch.float64, x is torch.float32"),
    (lambda h: o.task_linear(X.long(), W, **h), r"x is torch.int64; it must be floating-point"),
    (lambda h: o.task_linear(X, META, **h), "task_linear: w is on meta, x on cpu"),
    (lambda h: o.task_linear(X, W, activation="mish", **h), "activation='mish'; choose from relu"),
    (lambda h: o.task_conv2d(IMAGES[0], FILTERS, **h), "task_conv2d: x has shape"),
    (lambda h: o.task_conv2d(IMAGES, FILTERS[:, :, :1], **h), "task_conv2d: w has shape"),
    (lambda h: o.task_conv2d(IMAGES, FILTERS, B, **h), r"task_conv2d: b has shape \[4, 2\]"),
    (lambda h: o.task_conv2d(IMAGES, FILTERS[:1], **h), "task_conv2d: w has 1 tasks"),
    (lambda h: o.task_conv2d(IMAGES, FILTERS, stride=0, **h), "stride=0; it must be an integer"),
    (lambda h: o.task_conv2d(IMAGES, FILTERS, padding=(1, -1), **h), r"padding=\(1, -1\)"),
    (lambda h: o.task_conv2d(IMAGES, FILTERS, dilation=(1, 1, 1), **h), "dilation="),
    (lambda h: o.task_conv2d(IMAGES, FILTERS, dilation=3, **h), "w covers 7 pixels of height"),
    (lambda h: o.task_conv2d(IMAGES[..., :2], FILTERS, **h), "w covers 3 pixels of width"),
    (lambda h: o.task_conv2d(IMAGES, FILTERS[..., :0], **h), "w covers 0 pixels of width"),
    (lambda h: o.task_act(zeros(()), "relu", **h), "task_act: x has no tasks dimension"),
    (lambda h: o.task_act(X, "swish", **h), "task_act: activation='swish'"),
    (lambda h: o.task_act(LABELS, "relu", **h), "task_act: x is torch.int64"),
    (lambda h: o.task_batch_norm(X[0], **h), "task_batch_norm: x has shape"),
    (lambda h: o.task_batch_norm(X, W[:, 0, 1:], **h), "task_batch_norm: w has shape"),
    (lambda h: o.task_batch_norm(X, None, zeros(4, 6), **h), "task_batch_norm: b has shape"),
    (lambda h: o.task_batch_norm(X, zeros(1, 5), **h), "task_batch_norm: w has 1 tasks"),
    (lambda h: o.task_batch_norm(X, pool=True, **h), "task_batch_norm: x has shape"),
    (lambda h: o.task_batch_norm(IMAGES[..., :1], pool=True, **h), "pool needs 2 x 2 pixels"),
    (lambda h: o.task_batch_norm(X, eps=-1.0, **h), "task_batch_norm: eps=-1.0"),
    (lambda h: o.task_layer_norm(IMAGES, **h), "task_layer_norm: x has shape"),
    (lambda h: o.task_layer_norm(X, zeros(4, 3), **h), "task_layer_norm: w has shape"),
    (lambda h: o.task_layer_norm(X, None, zeros(3, 5), **h), "task_layer_norm: b has 3 tasks"),
    (lambda h: o.task_layer_norm(X, eps=float("nan"), **h), "task_layer_norm: eps=nan"),
    (lambda h: o.task_cross_entropy(LOGITS[0], LABELS, **h), "task_cross_entropy: x has shape"),
    (lambda h: o.task_cross_entropy(LOGITS, LABELS.int(), **h), r"target is torch.int32.*long"),
    (lambda h: o.task_cross_entropy(LOGITS, LABELS[:, :2], **h), r"target has shape \[4, 2\]"),
    (lambda h: o.task_cross_entropy(LOGITS, LABELS[:3], **h), "target has 3 tasks"),
    (lambda h: o.task_cross_entropy(LOGITS, LABELS.to("meta"), **h), "target is on meta"),
    (lambda h: o.task_mse(X, X[:, :2], **h), "task_mse: target has shape"),
    (lambda h: o.task_mse(X, X[:2], **h), "task_mse: target has 2 tasks"),
    (lambda h: o.task_mse(zeros(()), zeros(()), **h), "task_mse: x has no tasks dimension"),
    (lambda h: attend(HEADS[0], **h), "task_attention: q has shape"),
    (lambda h: attend(HEADS, k=HEADS[..., :5], **h), r"task_attention: k has .*2, 3, keys, 6\]"),
    (lambda h: attend(HEADS, v=HEADS[..., :4, :], **h), "task_attention: v has shape"),
    (lambda h: attend(HEADS, k=HEADS[:3], **h), "task_attention: k has 3 tasks"),
    (lambda h: attend(HEADS, v=HEADS.double(), **h), "task_attention: v is torch.float64"),
    (lambda h: attend(HEADS.long(), **h), "task_attention: q is torch.int64"),
    (lambda h: attend(HEADS[..., :0], **h), "its last dimension is empty"),
    (lambda h: attend(HEADS, mask=X[0, 0] > 0, **h), "mask is torch.bool, q is torch.float32"),
    (lambda h: attend(HEADS, mask=X[0, :, :4], **h), r"mask has shape \[3, 4\].*3, 5, 5\]"),
    (lambda h: attend(HEADS, mask=META[0, 0], **h), "task_attention: mask is on meta"),
    (lambda h: attend(HEADS, dropout=-0.1, **h), "task_attention: dropout=-0.1"),
    (lambda h: attend(HEADS, dropout=0.1, **h), "dropout=0.1, and key is None"),
    (lambda h: attend(HEADS, dropout=0.1, key=KEY.int(), **h), "key is torch.int32"),
    (lambda h: attend(HEADS, dropout=0.1, key=KEY[:3], **h), "key has 3 tasks"),
    (lambda h: o.task_embedding(TABLE[0], IDS, **h), "task_embedding: w has shape"),
    (lambda h: o.task_embedding(TABLE, IDS.int(), **h), r"ids is torch.int32.*long"),
    (lambda h: o.task_embedding(TABLE, IDS[:3], **h), "ids has 3 tasks"),
    (lambda h: o.task_embedding(TABLE, IDS[0], **h), "ids has 3 tasks, w has 4"),
    (lambda h: o.task_embedding(TABLE, IDS, padding_idx=7, **h), "padding_idx=7; w has 7 rows"),
    (lambda h: o.task_embedding(TABLE.long(), IDS, **h), "task_embedding: w is torch.int64"),
    (lambda h: o.dropout_mask(KEY[0], (2,), 0.5, X, **h), r"dropout_mask: key has shape \[\]"),
    (lambda h: o.dropout_mask(X[:, 0, 0], (2,), 0.5, X, **h), "key is torch.float32"),
    (lambda h: o.dropout_mask(KEY, (2,), 1.5, X, **h), "dropout_mask: p=1.5"),
    (lambda h: o.dropout_mask(KEY, (2,), 0.5, LABELS, **h), "dropout_mask: like is torch.int64"),
    (lambda h: o.inner_update(P, P[:1], scale=1.0, **h), "g has 1 tensors, p has 2"),
    (lambda h: o.inner_update(P, P, P[:1], scale=1.0, **h), "rate has 1 tensors, p has 2"),
    (lambda h: o.inner_update(P, P[::-1], scale=1.0, **h), r"g\[0\] has shape \[4, 3\]"),
    (lambda h: o.inner_update([P[0], X[:3]], P, scale=1.0, **h), r"p\[1\] has shape \[3, 3, 5\]"),
    (lambda h: o.inner_update([zeros(())], [zeros(())], scale=1.0, **h), r"p\[0\] has shape \[\]"),
    (lambda h: o.inner_update(P, P, P, scale=1.0, **h), r"rate\[0\] .*must be \[2\] or \[\]"),
    (
        lambda h: o.inner_update(P, [P[0], P[1].double()], scale=1.0, **h),
        r"g\[1\] is torch.float64",
    ),
    (lambda h: o.inner_momentum(P, P, P[:1], scale=1.0, momentum=0.9, **h), "v has 1 tensors"),
    (lambda h: o.inner_momentum(P, P, P[::-1], scale=1.0, momentum=0.9, **h), r"v\[0\] has shape"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_bad_input_names_the_tensor(call: Any, message: str, backend: str) -> None:
    with pytest.raises(ValueError, match=message):
        call({"backend": backend})


def loaded(backend: str) -> None:
    if not _load.status()[backend].startswith("available"):
        pytest.skip(f"{backend}: {_load.status()[backend]}")


def test_a_dtype_that_a_backend_does_not_take() -> None:
    loaded("cpp")
    with pytest.raises(
        ValueError, match=r'x is torch.bfloat16, and backend=.cpp. takes .*"reference"'
    ):
        ops.task_act(X.bfloat16(), "relu", backend="cpp")


def test_a_device_that_a_backend_does_not_run_on() -> None:
    loaded("cpp")
    with pytest.raises(ValueError, match=r"x is on meta, and backend='cpp' runs on cpu"):
        ops.task_act(META, "relu", backend="cpp")


def test_an_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"backend='numpy': no such backend; choose from .*cpp"):
        ops.task_act(X, "relu", backend="numpy")


def absent(monkeypatch: pytest.MonkeyPatch, reason: str = "not built") -> None:
    monkeypatch.setattr(_load, "_found", lambda backend: reason)


def test_an_absent_backend_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch)
    with pytest.raises(ValueError, match=r"backend='cpp': not built"):
        ops.task_act(X, "relu", backend="cpp")


def test_an_op_that_a_backend_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    none = _load.Kernels("cpp", frozenset({"cpu"}), frozenset({torch.float32}), {})
    monkeypatch.setattr(_load, "_found", lambda backend: none)
    with pytest.raises(ValueError, match=r"task_act: backend='cpp' has no kernels for it"):
        ops.task_act(X, "relu", backend="cpp")
    assert "without dropout_mask, inner_momentum, inner_update, task_act" in ops.status()["cpp"]
    assert ops.families("cpp") == frozenset()


def test_status_has_every_backend() -> None:
    assert tuple(ops.status()) == ops.BACKENDS
    assert ops.families("reference") == frozenset(_load.FAMILIES)


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMAML_BACKEND", "reference")
    assert ops.default_backend("cuda") == "reference"


def test_the_environment_names_no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMAML_BACKEND", "numpy")
    with pytest.raises(ValueError, match=r"FASTMAML_BACKEND='numpy' cannot be used: .*choose from"):
        ops.default_backend("cpu")


def test_the_environment_names_an_absent_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch)
    monkeypatch.setenv("FASTMAML_BACKEND", "triton")
    with pytest.raises(ValueError, match=r"FASTMAML_BACKEND='triton' .*not built"):
        ops.default_backend("cuda")


def test_the_environment_names_another_devices_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded("cpp")
    monkeypatch.setenv("FASTMAML_BACKEND", "cpp")
    assert ops.default_backend("cpu") == "cpp"
    with pytest.raises(ValueError, match=r"'cpp' runs on cpu, and the tensors are on cuda"):
        ops.default_backend("cuda")


def test_falling_back_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("FASTMAML_BACKEND", raising=False)
    absent(monkeypatch)
    _load._tell.cache_clear()
    with caplog.at_level(logging.WARNING, logger="fastmaml"):
        assert [ops.default_backend("cpu") for _ in range(3)] == ["reference"] * 3
    assert [r.getMessage() for r in caplog.records] == [
        "fastmaml runs on plain PyTorch on cpu. cpp: not built"
    ]
    caplog.clear()
    assert ops.default_backend("meta") == "reference"  # no kernels were to be had
    assert not caplog.records
    _load._tell.cache_clear()


def test_cuda_prefers_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTMAML_BACKEND", raising=False)
    there = _load.Kernels("x", frozenset({"cuda"}), frozenset(), {})
    monkeypatch.setattr(_load, "_found", lambda backend: there)
    assert ops.default_backend("cuda:0") == "triton"
    monkeypatch.setattr(_load, "_found", lambda b: there if b == "cuda" else "no Triton")
    assert ops.default_backend("cuda:0") == "cuda"


def test_shapes_alone_are_read() -> None:
    """So that an op can be traced: nothing fails on tensors that hold no values."""
    x, w = zeros(4, 3, 5, device="meta"), zeros(4, 2, 5, device="meta")
    assert ops.task_linear(x, w, activation="tanh").shape == (4, 3, 2)
    labels: Tensor = LABELS.to("meta")
    assert ops.task_cross_entropy(x, labels).shape == (4,)
