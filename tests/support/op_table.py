"""The op table: a row an op and configuration, on inputs of every awkward kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from attention_rows import attention_rows, embedding_rows
from op_row import Row, randn, scattered, shared
from torch import Tensor

from fastmaml.ops import _load
from fastmaml.ops.inner_momentum import native_inner_momentum, reference_inner_momentum
from fastmaml.ops.inner_update import native_inner_update, reference_inner_update
from fastmaml.ops.task_act import ACTIVATIONS, act_code, native_task_act, reference_task_act
from fastmaml.ops.task_batch_norm import native_task_batch_norm, reference_task_batch_norm
from fastmaml.ops.task_conv2d import ConvGeometry, native_task_conv2d, reference_task_conv2d
from fastmaml.ops.task_cross_entropy import native_task_cross_entropy, reference_task_cross_entropy
from fastmaml.ops.task_layer_norm import native_task_layer_norm, reference_task_layer_norm
from fastmaml.ops.task_linear import native_task_linear, reference_task_linear
from fastmaml.ops.task_mse import native_task_mse, reference_task_mse


def linear_rows() -> Iterator[Row]:
    def make(case: str, t: int, n: int, i: int, o: int, act: str | None, **how: Any) -> Row:
        def inputs() -> tuple[Tensor, ...]:
            x, w, b = randn(t, n, i), randn(t, o, i, seed=1) / max(i, 1) ** 0.5, randn(t, o, seed=2)
            x = scattered(x) if how.get("scattered") else x
            w, b = (shared(w, t), shared(b, t)) if how.get("shared") else (w, b)
            w = scattered(w) if how.get("scattered") else w
            return (x, w) if how.get("no_bias") else (x, w, b)

        return Row(
            "task_linear",
            case,
            lambda k, x, w, b=None: native_task_linear(k, x, w, b, act_code("", act)),
            lambda x, w, b=None: reference_task_linear(x, w, b, act),
            inputs,
            small=how.get("small", False),
        )

    for act in (None, *ACTIVATIONS):
        yield make(f"small-{act}", 2, 3, 4, 3, act, small=True)
    yield make("small-no_bias", 2, 3, 4, 3, None, no_bias=True, small=True)
    for t, n, i, o in (
        (1, 1, 1, 1),
        (3, 17, 97, 1),
        (2, 1, 3, 97),
        (1, 97, 17, 17),
        (5, 25, 64, 40),
    ):
        yield make(f"{t}x{n}x{i}x{o}", t, n, i, o, "relu")
    yield make("gelu-odd", 3, 17, 97, 17, "gelu")
    for t, n, i, o in ((0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)):
        yield make(f"empty-{t}x{n}x{i}x{o}", t, n, i, o, None)
    yield make("shared", 3, 5, 7, 9, "tanh", shared=True)
    yield make("scattered", 3, 5, 7, 9, None, scattered=True)
    yield make("scattered-no_bias", 3, 5, 7, 9, "silu", scattered=True, no_bias=True)


def conv_rows() -> Iterator[Row]:
    def make(case: str, x: tuple[int, ...], w: tuple[int, ...], step=(1, 1, 1), **how: Any) -> Row:
        def inputs() -> tuple[Tensor, ...]:
            a, b = randn(*x), randn(x[0], w[0], seed=2)
            v = randn(x[0], w[0], x[2], *w[1:], seed=1) / max(x[2] * w[1] * w[2], 1) ** 0.5
            if how.get("channels_last"):
                a = a.transpose(2, 4).contiguous().transpose(2, 4)
                v = v.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2)
            a, v = (scattered(a), scattered(v)) if how.get("scattered") else (a, v)
            v, b = (shared(v, x[0]), shared(b, x[0])) if how.get("shared") else (v, b)
            return (a, v) if how.get("no_bias") else (a, v, b)

        pairs = [s if isinstance(s, tuple) else (s, s) for s in step]
        geometry = ConvGeometry(*pairs, size=x[3:], kernel=w[1:])
        return Row(
            "task_conv2d",
            case,
            lambda k, a, v, b=None: native_task_conv2d(k, a, v, b, geometry),
            lambda a, v, b=None: reference_task_conv2d(a, v, b, *pairs),
            inputs,
            small=how.get("small", False),
        )

    yield make("small-3x3", (2, 2, 2, 4, 3), (3, 3, 3), (1, 1, 1), small=True)
    yield make("small-no_bias", (2, 1, 2, 4, 5), (2, 2, 3), (2, 1, 1), no_bias=True, small=True)
    yield make("small-1x1", (2, 2, 3, 2, 2), (2, 1, 1), small=True)
    yield make("3x3", (3, 5, 17, 9, 7), (19, 3, 3), (1, 1, 1))
    yield make("3x3-channels_last", (2, 5, 32, 9, 7), (64, 3, 3), (1, 1, 1), channels_last=True)
    yield make("3x3-shared", (3, 2, 1, 14, 14), (8, 3, 3), (1, 1, 1), shared=True)
    yield make("1x1", (3, 2, 97, 3, 3), (17, 1, 1), no_bias=True)
    yield make("strided", (2, 3, 3, 11, 9), (5, 3, 3), (2, 1, 1))
    yield make("uneven", (2, 2, 3, 11, 9), (5, 3, 2), ((2, 1), (0, 2), (1, 3)))
    yield make("5x5-dilated", (2, 2, 3, 11, 12), (4, 5, 5), (1, 4, 2))
    yield make("whole", (2, 3, 3, 5, 5), (4, 5, 5))
    yield make("one", (1, 1, 1, 1, 1), (1, 1, 1))
    yield make("padded", (1, 1, 1, 1, 1), (1, 3, 3), (1, 1, 1))
    yield make("1x1-padded", (2, 3, 3, 4, 5), (4, 1, 1), (1, 1, 1))
    yield make("1x1-strided", (2, 3, 3, 4, 5), (4, 1, 1), (2, 0, 1))
    yield make("scattered", (2, 3, 5, 6, 5), (4, 3, 3), (1, 1, 1), scattered=True)
    yield make("empty-tasks", (0, 3, 3, 4, 5), (4, 3, 3), (1, 1, 1))
    yield make("empty-examples", (2, 0, 3, 4, 5), (4, 3, 3), (1, 1, 1))


def act_rows() -> Iterator[Row]:
    def make(case: str, act: str, inputs: Callable[[], Tensor], small: bool = False) -> Row:
        return Row(
            "task_act",
            case,
            lambda k, x: native_task_act(k, x, act_code("", act)),
            lambda x: reference_task_act(x, act),
            lambda: (inputs(),),
            small,
        )

    for act in ACTIVATIONS:
        yield make(f"small-{act}", act, lambda: randn(2, 3), small=True)
        yield make(f"{act}-odd", act, lambda: 3 * randn(3, 17, 97))
    yield make("rank-1", "gelu", lambda: randn(5))
    yield make("empty", "tanh", lambda: randn(2, 0, 3))
    yield make("shared", "silu", lambda: shared(randn(1, 17), 3))
    yield make("scattered", "sigmoid", lambda: scattered(randn(3, 5, 7)))


def batch_norm_rows() -> Iterator[Row]:
    def make(case: str, shape: tuple[int, ...], relu=False, pool=False, **how: Any) -> Row:
        def inputs() -> tuple[Tensor, ...]:
            x, w = 2 * randn(*shape) + 1, randn(shape[0], shape[2], seed=1)
            b = randn(shape[0], shape[2], seed=2)
            x = scattered(x) if how.get("scattered") else x
            if how.get("channels_last"):
                x = x.transpose(2, 4).contiguous().transpose(2, 4)
            w, b = (shared(w, shape[0]), shared(b, shape[0])) if how.get("shared") else (w, b)
            return (x,) if how.get("plain") else (x, w, b)

        return Row(
            "task_batch_norm",
            case,
            lambda k, x, w=None, b=None: native_task_batch_norm(k, x, w, b, 1e-3, relu, pool),
            lambda x, w=None, b=None: reference_task_batch_norm(x, w, b, 1e-3, relu, pool),
            inputs,
            small=how.get("small", False),
        )

    yield make("small", (2, 2, 2, 2, 3), small=True)
    yield make("small-plain", (2, 3, 2, 1, 2), plain=True, small=True)
    yield make("small-relu", (2, 2, 2, 2, 2), relu=True, small=True)
    yield make("small-pool", (2, 2, 2, 3, 2), pool=True, small=True)
    yield make("small-relu-pool", (2, 2, 2, 2, 5), relu=True, pool=True, small=True)
    for relu, pool in ((False, False), (True, False), (False, True), (True, True)):
        what = "-".join(name for name, on in (("relu", relu), ("pool", pool)) if on) or "norm"
        yield make(f"{what}-odd", (3, 5, 17, 7, 9), relu, pool)
        yield make(f"{what}-plain", (2, 3, 16, 4, 4), relu, pool, plain=True)
        yield (
            make(f"{what}-rows", (2, 17, 97, 1, 1), relu)
            if not pool
            else make(f"{what}-channels_last", (2, 5, 64, 6, 7), relu, pool, channels_last=True)
        )
    yield make("shared", (3, 4, 8, 4, 4), True, True, shared=True)
    yield make("scattered", (3, 4, 5, 4, 4), True, True, scattered=True)
    yield make("empty-tasks", (0, 3, 5, 2, 2), True, True)
    yield make("empty-examples", (2, 0, 5, 2, 2), True)
    yield make("one-channel", (1, 3, 1, 6, 6), True)


def layer_norm_rows() -> Iterator[Row]:
    def make(case: str, shape: tuple[int, ...], **how: Any) -> Row:
        def inputs() -> tuple[Tensor, ...]:
            t, _, d = shape
            x, w, b = 2 * randn(*shape) + 1, randn(t, d, seed=1), randn(t, d, seed=2)
            x = scattered(x) if how.get("scattered") else x
            w, b = (shared(w, t), shared(b, t)) if how.get("shared") else (w, b)
            return (x,) if how.get("plain") else (x, w, b)

        return Row(
            "task_layer_norm",
            case,
            lambda k, x, w=None, b=None: native_task_layer_norm(k, x, w, b, 1e-3),
            lambda x, w=None, b=None: reference_task_layer_norm(x, w, b, 1e-3),
            inputs,
            small=how.get("small", False),
        )

    yield make("small", (2, 3, 4), small=True)
    yield make("small-plain", (2, 2, 3), plain=True, small=True)
    for shape in ((3, 17, 97), (1, 1, 1), (2, 1, 128), (1, 33, 768)):
        yield make("x".join(map(str, shape)), shape)
    yield make("shared", (3, 5, 17), shared=True)
    yield make("scattered", (3, 5, 17), scattered=True)
    yield make("empty-tasks", (0, 3, 5))
    yield make("empty-rows", (2, 0, 5))


def loss_rows() -> Iterator[Row]:
    def entropy(case: str, t: int, n: int, c: int, some: bool = False, **how: Any) -> Row:
        def inputs() -> tuple[Tensor, ...]:
            target = torch.randint(c, (t, n), generator=torch.Generator().manual_seed(1))
            if some:
                target[:, ::2] = -100
            x = 3 * randn(t, n, c)
            return (shared(x, t) if how.get("shared") else x), target

        return Row(
            "task_cross_entropy",
            case,
            native_task_cross_entropy,
            reference_task_cross_entropy,
            inputs,
            small=how.get("small", False),
        )

    yield entropy("small", 2, 3, 4, small=True)
    yield entropy("small-ignored", 2, 3, 3, some=True, small=True)
    for t, n, c in ((1, 1, 1), (3, 17, 97), (5, 25, 5), (2, 1, 1000)):
        yield entropy(f"{t}x{n}x{c}", t, n, c)
    yield entropy("shared", 3, 5, 7, shared=True)
    yield entropy("empty-tasks", 0, 5, 7)

    def squares(case: str, *shape: int, small: bool = False, **how: Any) -> Row:
        def inputs() -> tuple[Tensor, ...]:
            x, y = randn(*shape), randn(*shape, seed=1)
            x = scattered(x) if how.get("scattered") else x
            return x, (shared(y, shape[0]) if how.get("shared") else y)

        return Row("task_mse", case, native_task_mse, reference_task_mse, inputs, small)

    yield squares("small", 2, 3, 2, small=True)
    yield squares("odd", 3, 17, 97)
    yield squares("rank-1", 5)
    yield squares("one", 1, 1, 1)
    yield squares("shared", 3, 5, 1, shared=True)
    yield squares("scattered", 3, 5, 7, 2, scattered=True)
    yield squares("empty-tasks", 0, 5, 7)


SHAPES = ((3, 4), (5,), (), (2, 0), (1, 17, 2))


def inner_rows() -> Iterator[Row]:
    """The lists are laid end to end: p, g, (v,) and the rates."""

    def make(op: str, case: str, rates: str, shapes=SHAPES, small=False, **how: Any) -> Row:
        lists = 3 if op == "inner_momentum" else 2
        numbers = {k: v for k, v in how.items() if k not in ("shared", "tasks")}
        tasks = how.get("tasks", 3)

        def inputs() -> tuple[Tensor, ...]:
            tensors = [randn(tasks, *s, seed=i) for i in range(lists) for s in shapes]
            if how.get("shared"):
                tensors[: len(shapes)] = [shared(x, tasks) for x in tensors[: len(shapes)]]
            scalar = {"none": [], "full": [False], "scalar": [True], "mixed": [True, False]}[rates]
            which = [scalar[i % len(scalar)] for i in range(len(shapes))] if scalar else []
            given = zip(shapes, which, strict=False)
            own = [randn(*(() if one else s), seed=9) for s, one in given]
            return (*tensors, *own)

        def split(tensors: Any) -> list[list[Tensor]]:
            n = len(shapes)
            return [list(tensors[i * n : (i + 1) * n]) for i in range(lists + 1)]

        def flat(result: Any) -> tuple[Tensor, ...]:
            return (*result[0], *result[1]) if isinstance(result, tuple) else tuple(result)

        native = native_inner_momentum if lists == 3 else native_inner_update
        reference = reference_inner_momentum if lists == 3 else reference_inner_update
        return Row(
            op,
            case,
            lambda k, *x: flat(native(k, *split(x), **numbers)),
            lambda *x: flat(reference(*split(x), **numbers)),
            inputs,
            small,
        )

    few = ((2, 2), ())
    for rates in ("none", "full", "scalar", "mixed"):
        yield make("inner_update", f"small-{rates}", rates, few, small=True, scale=-0.3, tasks=2)
        yield make("inner_update", rates, rates, scale=-1.0)
    yield make("inner_update", "shared", "mixed", scale=-0.3, shared=True)
    yield make("inner_update", "one-task", "full", scale=-0.3, tasks=1)
    yield make("inner_update", "empty-tasks", "mixed", scale=-0.3, tasks=0)
    for nesterov in (False, True):
        how = {"scale": -0.3, "momentum": 0.9, "nesterov": nesterov}
        name = "nesterov" if nesterov else "plain"
        yield make("inner_momentum", f"small-{name}", "none", few, small=True, tasks=2, **how)
        yield make("inner_momentum", f"small-{name}-mixed", "mixed", few, True, tasks=2, **how)
        yield make("inner_momentum", f"{name}-mixed", "mixed", shared=True, **how)


ROWS = [
    *linear_rows(),
    *conv_rows(),
    *act_rows(),
    *batch_norm_rows(),
    *layer_norm_rows(),
    *loss_rows(),
    *inner_rows(),
    *attention_rows(),
    *embedding_rows(),
]
SMALL = [row for row in ROWS if row.small]

CONSTANT = {"dropout_mask"}
"""Ops without derivatives: tested on their own."""

assert {row.op for row in ROWS} == set(_load.FAMILIES) - CONSTANT, "every op has rows"
