"""Every CUDA op, emulated on the CPU, against its PyTorch reference.

`test_cuda_sources` runs ``python run_cases.py LIBRARY [float32] [FAMILY ...]`` in a process of its
own: the library registers the CUDA bindings for CPU tensors, of these families or of all, and
sanitizers must be loaded before Python. Prints a digest of the float32 results, which must not
depend on the order in which threads run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from cases import ALL, F32, F64, Cases, images, randn, shared
from special_cases import SPECIAL
from torch import Tensor

from fastmaml.ops import _load
from fastmaml.ops.inner_momentum import native_inner_momentum, reference_inner_momentum
from fastmaml.ops.inner_update import native_inner_update, reference_inner_update
from fastmaml.ops.task_act import ACTIVATIONS, native_task_act, reference_task_act
from fastmaml.ops.task_batch_norm import native_task_batch_norm, reference_task_batch_norm
from fastmaml.ops.task_conv2d import ConvGeometry, native_task_conv2d, reference_task_conv2d
from fastmaml.ops.task_cross_entropy import native_task_cross_entropy, reference_task_cross_entropy
from fastmaml.ops.task_layer_norm import native_task_layer_norm, reference_task_layer_norm
from fastmaml.ops.task_linear import native_task_linear, reference_task_linear
from fastmaml.ops.task_mse import native_task_mse, reference_task_mse


def activations(cases: Cases) -> None:
    k = cases.kernels
    for code, name in enumerate(ACTIVATIONS, start=1):
        for x in (randn(3, 17), randn(2, 5, 8)):
            cases.compare(
                f"act {name}",
                lambda x, code=code: native_task_act(k, x, code),
                lambda x, name=name: reference_task_act(x, name),
                [x],
            )
    gelu = (
        lambda x: native_task_act(k, x, 3),
        lambda x: reference_task_act(x, "gelu"),
    )
    cases.compare("act of a shared tensor", *gelu, [shared(3, randn(7, 8))])
    cases.compare("act of a transposed tensor", *gelu, [randn(3, 9, 4).mT])
    cases.compare("act of an odd view", *gelu, [randn(130)[1:].view(3, 43)])
    cases.compare("act of nothing", *gelu, [randn(0, 4)])
    cases.compare("act of many", *gelu, [randn(2, 2100)], [F32])


def batch_norms(cases: Cases) -> None:
    k = cases.kernels
    shapes = [(2, 3, 5, 5, 7), (3, 2, 8, 4, 4), (2, 4, 33, 1, 1)]
    for shape in shapes:
        for relu, pool in ((False, False), (True, False), (True, True), (False, True)):
            if pool and shape[-1] == 1:
                continue
            cases.compare(
                f"batch_norm {shape} relu={relu} pool={pool}",
                lambda x, w, b, r=relu, p=pool: native_task_batch_norm(k, x, w, b, 1e-3, r, p),
                lambda x, w, b, r=relu, p=pool: reference_task_batch_norm(x, w, b, 1e-3, r, p),
                [images(*shape) + 3, randn(shape[0], shape[2]), randn(shape[0], shape[2])],
                ALL if relu else (F64, F32),
            )
    fused = (
        lambda *t: native_task_batch_norm(k, *t, relu=True, pool=True),
        lambda *t: reference_task_batch_norm(*t, relu=True, pool=True),
    )
    cases.compare("batch_norm in splits", *fused, [images(1, 5, 8, 30, 31)], [F32])
    cases.compare("batch_norm in splits, one by one", *fused, [images(1, 5, 3, 30, 31)], [F64])
    cases.compare("batch_norm without weights, rows first", *fused, [randn(2, 3, 4, 6, 5)])
    weights = [shared(3, randn(8)), shared(3, randn(8))]
    cases.compare("batch_norm, all shared", *fused, [shared(3, images(1, 2, 8, 4, 4)[0]), *weights])
    cases.compare("batch_norm of no tasks", *fused, [images(0, 2, 3, 4, 4)])
    far = images(1, 4, 4, 8, 8) + 1000
    cases.compare("batch_norm far from zero", *fused, [far], [F64])


def layer_norms(cases: Cases) -> None:
    k = cases.kernels
    op = (
        lambda *t: native_task_layer_norm(k, *t),
        lambda *t: reference_task_layer_norm(*t),
    )
    for tasks, rows, channels in ((2, 3, 17), (3, 5, 40), (1, 9, 300)):
        x, w, b = randn(tasks, rows, channels) - 2, randn(tasks, channels), randn(tasks, channels)
        cases.compare(f"layer_norm {tasks, rows, channels}", *op, [x, w, b])
    cases.compare("layer_norm without weights", *op, [randn(2, 4, 24)])
    cases.compare(
        "layer_norm, weights shared", *op, [randn(4, 3, 16), *(shared(4, randn(16)) for _ in "wb")]
    )
    cases.compare("layer_norm in splits", *op, [randn(1, 1100, 8), randn(1, 8), randn(1, 8)], [F32])
    cases.compare("layer_norm of no rows", *op, [randn(2, 0, 8), randn(2, 8), randn(2, 8)], [F32])


def cross_entropies(cases: Cases) -> None:
    k = cases.kernels
    for tasks, rows, classes in ((3, 7, 5), (2, 300, 3), (2, 3, 70)):
        target = torch.randint(classes, (tasks, rows))
        target[0, 1] = -100
        cases.compare(
            f"cross_entropy {tasks, rows, classes}",
            lambda x, t=target: native_task_cross_entropy(k, x, t),
            lambda x, t=target: reference_task_cross_entropy(x, t),
            [3 * randn(tasks, rows, classes)],
        )


def squared_errors(cases: Cases) -> None:
    k = cases.kernels
    op = (lambda x, y: native_task_mse(k, x, y), reference_task_mse)
    cases.compare("mse", *op, [randn(3, 5, 7), randn(3, 5, 7)])
    cases.compare("mse in slices", *op, [randn(2, 9000), randn(2, 9000)], [F32])
    cases.compare("mse, target shared", *op, [randn(3, 4, 8), shared(3, randn(4, 8))])
    cases.compare("mse of no tasks", *op, [randn(0, 4), randn(0, 4)], [F32])


def linears(cases: Cases) -> None:
    k = cases.kernels
    for code, name in enumerate((None, *ACTIVATIONS)):
        cases.compare(
            f"linear {name}",
            lambda *t, code=code: native_task_linear(k, *t, act=code),
            lambda *t, name=name: reference_task_linear(*t, activation=name),
            [randn(3, 5, 7), randn(3, 9 + code % 3 * 7, 7), randn(3, 9 + code % 3 * 7)],
            (F64, F32),
        )
    relu = (
        lambda *t: native_task_linear(k, *t, act=1),
        lambda *t: reference_task_linear(*t, activation="relu"),
    )
    cases.compare(
        "linear, shared", *relu, [randn(3, 5, 8), shared(3, randn(16, 8)), shared(3, randn(16))]
    )
    cases.compare(
        "linear, many rows", *relu, [randn(1, 300, 3), randn(1, 40, 3), randn(1, 40)], [F32]
    )
    cases.compare("linear of nothing", *relu, [randn(2, 0, 3), randn(2, 4, 3), randn(2, 4)], [F32])


def convolutions(cases: Cases) -> None:
    k = cases.kernels
    problems = [
        ((2, 3, 3, 6, 7), (4, 3, 3), (1, 1), (1, 1), (1, 1)),
        ((2, 2, 8, 5, 5), (8, 3, 3), (2, 1), (1, 0), (1, 1)),
        ((2, 2, 4, 9, 8), (3, 3, 2), (2, 2), (2, 1), (2, 3)),
        ((3, 2, 5, 4, 4), (6, 1, 1), (1, 1), (0, 0), (1, 1)),
        ((2, 1, 1, 3, 3), (1, 5, 5), (1, 1), (2, 2), (1, 1)),
    ]
    for shape, (outputs, *kernel), stride, padding, dilation in problems:
        geometry = ConvGeometry(stride, padding, dilation, shape[-2:], tuple(kernel))
        op = (
            lambda x, w, b, g=geometry: native_task_conv2d(k, x, w, b, g),
            lambda x, w, b, g=geometry: reference_task_conv2d(x, w, b, *g.steps),
        )
        x, w = images(*shape), randn(shape[0], outputs, shape[2], *kernel)
        cases.compare(f"conv2d {shape} {kernel}", *op, [x, w, randn(shape[0], outputs)], (F64, F32))
        alike = [x.contiguous(), shared(shape[0], w[0]), shared(shape[0], randn(outputs))]
        cases.compare(f"conv2d {shape} {kernel}, shared", *op, alike, (F64,))


def updates(cases: Cases) -> None:
    k = cases.kernels
    shapes = [(3, 5, 4), (3, 1100), (3, 2, 3, 3, 3), (3,), (3, 0), (3, 2050)]
    p, g, v = ([randn(*s) for s in shapes] for _ in range(3))
    p[1] = shared(3, randn(1100))
    p[2], g[2] = (
        randn(3, 3, 3, 3, 2).permute(0, 4, 3, 1, 2) for _ in range(2)
    )  # as convolutions leave it
    rate = [randn(*s[1:]) if i % 2 else randn() for i, s in enumerate(shapes)]
    n = len(shapes)
    for rates in ([], rate):
        cases.compare(
            f"inner_update, {len(rates)} rates",
            lambda *t: native_inner_update(k, t[:n], t[n : 2 * n], t[2 * n :], -0.3),
            lambda *t: reference_inner_update(t[:n], t[n : 2 * n], t[2 * n :], -0.3),
            [*p, *g, *rates],
        )
        for nesterov in (False, True):
            args = -0.3, 0.9, nesterov

            def native(*t: Tensor, args: tuple = args) -> Sequence[Tensor]:
                lists = t[:n], t[n : 2 * n], t[2 * n : 3 * n], t[3 * n :]
                p, v = native_inner_momentum(k, *lists, *args)
                return p + v

            def reference(*t: Tensor, args: tuple = args) -> Sequence[Tensor]:
                lists = t[:n], t[n : 2 * n], t[2 * n : 3 * n], t[3 * n :]
                p, v = reference_inner_momentum(*lists, *args)
                return p + v

            cases.compare(
                f"inner_momentum, {len(rates)} rates", native, reference, [*p, *g, *v, *rates]
            )
    many = [randn(2, 3).float() for _ in range(70)]  # more than fit one launch
    for a, b in zip(k.inner_update(many, many, [], 2.0), many, strict=True):
        cases.same("a long list", a, 3 * b.double(), 1e-6)
    whole = randn(2, 8192).float()  # chunks of full vectors
    out = k.inner_momentum([whole], [whole], [whole], [whole[0].contiguous()], 1.0, 0.5, False)
    cases.same("full chunks", out[0][0], (whole + whole[0] * 1.5 * whole).double(), 1e-6)
    cases.same(
        "full chunks", k.inner_update([whole], [whole], [], 1.0)[0], (2 * whole).double(), 1e-6
    )


GROUPS = {
    "task_act": activations,
    "task_batch_norm": batch_norms,
    "task_layer_norm": layer_norms,
    "task_cross_entropy": cross_entropies,
    "task_mse": squared_errors,
    "task_linear": linears,
    "task_conv2d": convolutions,
    "inner_update": updates,
}
"""The cases of a family."""

ELSEWHERE = {"task_attention", "task_embedding", "dropout_mask"}
"""Families that run on CUDA devices by Triton or PyTorch."""


def main(library: str, *only: str) -> None:
    torch.ops.load_library(library)
    ops = _load.registered("fastmaml", "CPU")
    families = [word for word in only if word in GROUPS]
    wanted = families or [op for op in _load.FAMILIES if op not in ELSEWHERE]
    missing = {op for family in wanted for op in _load.FAMILIES[family]} - set(ops)
    assert not missing, f"no CUDA kernels for {missing}"
    dtypes = (F32,) if "float32" in only else ALL
    cases = Cases(_load.Kernels("cuda", frozenset({"cpu"}), frozenset(dtypes), ops), dtypes)
    torch.manual_seed(0)
    for family in families or GROUPS:
        GROUPS[family](cases)
    digest = cases.digest.hexdigest()
    for special in () if only else SPECIAL:
        special(cases)
    print(f"{cases.count} comparisons, digest {digest}")


if __name__ == "__main__":
    main(*sys.argv[1:])
