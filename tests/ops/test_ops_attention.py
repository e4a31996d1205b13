"""Attention: what the op table cannot say of it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attention_rows import projected
from op_checks import derivatives, kernels_for, on_backends
from places import ROOT, SUPPORT
from raw_reference import raw_kernels
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastmaml as fm
from fastmaml import ops
from fastmaml.ops import _load, coverage
from fastmaml.ops.task_attention import native_task_attention, reference_task_attention

LOWEST = torch.finfo(torch.float64).min


def qkv(
    t: int, b: int, h: int, n: int, s: int, d: int, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    return [projected(t, b, h, m, d, seed=i).to(dtype) for i, m in enumerate((n, s, s))]


def of(backend: str) -> Callable[..., Tensor]:
    if backend == "reference":
        return reference_task_attention
    return partial(native_task_attention, kernels_for(backend, "task_attention"))


on_every_backend = pytest.mark.parametrize("backend", ["reference", "raw_reference", "cpp"])


# ---- masks ----


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_definition_is_pytorchs_own_function(causal: bool, masked: bool) -> None:
    q, k, v = qkv(2, 3, 2, 5, 7, 4)
    mask = torch.randn(2, 3, 1, 5, 7).double() if masked else None
    if masked and causal:
        pytest.skip("torch takes one of them")
    for scale in (None, 0.3):
        o = ops.task_attention(q, k, v, mask, causal=causal, scale=scale)
        for i in range(2):
            added = None if mask is None else mask[i]
            expected = F.scaled_dot_product_attention(
                q[i], k[i], v[i], added, is_causal=causal, scale=scale
            )
            torch.testing.assert_close(o[i], expected)


@on_every_backend
def test_a_row_that_sees_no_key_is_zero_and_moves_nothing(backend: str) -> None:
    tensors = qkv(2, 2, 2, 3, 5, 4)
    mask = torch.zeros(2, 2, 1, 3, 5).double()
    mask[0, 1] = mask[1, :, :, 2] = -math.inf
    found = derivatives(lambda *x: of(backend)(*x, mask, None, False, 0.5, 0.0), tensors)
    assert all(x.isfinite().all() for x in found)
    o, gq = found[:2]
    for x in (o, gq):
        assert not x[0, 1].any()
        assert not x[1, :, :, 2].any()
        assert x[0, 0].all()
    if backend != "reference":
        kernels = kernels_for(backend, "task_attention")
        _, lse = kernels.task_attention(*tensors, mask.expand(2, 2, 2, 3, 5), None, False, 0.5, 0.0)
        assert (lse[0, 1] == -math.inf).all()
        assert lse[0, 0].isfinite().all()


@on_every_backend
@pytest.mark.parametrize("keys", [5, 600])
def test_rows_of_lowest_numbers_see_all_keys_alike(backend: str, keys: int) -> None:
    """As a padding mask of finfo.min has it where everything is padding; derivatives too."""
    tensors = qkv(1, 1, 2, 3, keys, 4)
    mask = torch.full((1, 1, 1, 1, keys), LOWEST, dtype=torch.float64)
    found = derivatives(lambda *x: of(backend)(*x, mask, None, False, 0.5, 0.0), tensors)
    torch.testing.assert_close(found[0], tensors[2].mean(3, keepdim=True).expand(1, 1, 2, 3, 4))
    with sdpa_kernel(SDPBackend.MATH):
        theirs = derivatives(
            lambda *x: F.scaled_dot_product_attention(*x, mask[0], scale=0.5), tensors
        )
    for x, y in zip(found, theirs, strict=True):
        torch.testing.assert_close(x, y)


@on_every_backend
def test_hidden_keys_are_as_if_absent(backend: str) -> None:
    q, k, v = qkv(1, 2, 2, 4, 9, 4)
    mask = torch.zeros(1, 1, 1, 1, 9).double()
    mask[..., 6:] = -math.inf
    few = derivatives(
        lambda *x: of(backend)(*x, None, None, False, 0.5, 0.0), [q, k[..., :6, :], v[..., :6, :]]
    )
    found = of(backend)(q, k, v, mask, None, False, 0.5, 0.0)
    torch.testing.assert_close(found, few[0])


@on_every_backend
def test_nan_spoils_its_own_rows_alone(backend: str) -> None:
    q, k, v = qkv(1, 2, 2, 4, 5, 4)
    q = q.clone()
    q[0, 1, 0, 2, 3] = math.nan
    o = of(backend)(q, k, v, None, None, False, 0.5, 0.0)
    assert o[0, 1, 0, 2].isnan().all()
    assert o.isnan().sum() == 4


def test_a_mask_that_would_need_a_gradient_is_refused() -> None:
    q, k, v = qkv(1, 1, 1, 2, 3, 4)
    mask = torch.zeros(1, 1, 1, 1, 3).double()
    with pytest.raises(ValueError, match=r"task_attention: mask needs a gradient.*detach"):
        ops.task_attention(q, k, v, mask.requires_grad_())
    mask = mask.detach()
    attend = partial(native_task_attention, raw_kernels())
    with pytest.raises(ValueError, match="task_attention: mask has a tangent"):
        jvp(lambda m: attend(q, k, v, m, None, False, 0.5, 0.0), (mask,), (mask,))
    masks = mask[None].clone().requires_grad_()  # inside vmap they do not say so
    o = vmap(lambda m: attend(q, k, v, m, None, False, 0.5, 0.0))(masks)
    with pytest.raises(ValueError, match="task_attention: mask needs a gradient"):
        o.sum().backward()


# ---- memory and threads ----


@pytest.mark.parametrize("backend", ["raw_reference", "cpp"])
def test_results_lie_as_projections_do(backend: str) -> None:
    kernels = kernels_for(backend, "task_attention")
    q, k, v = qkv(2, 3, 4, 5, 6, 8)
    how = (False, 0.5, 0.0)
    o, lse = kernels.task_attention(q, k, v, None, None, *how)
    gradients = kernels.task_attention_bwd(o, q, k, v, None, None, o, lse, *how)
    second = kernels.task_attention_bwd2(q, k, v, o, q, k, v, None, None, o, lse, *how, 0b1111)
    for x in (o, *gradients, *second):
        assert x.transpose(2, 3).flatten(3).data_ptr() == x.data_ptr()
    some = kernels.task_attention_bwd2(q, None, None, o, q, k, v, None, None, o, lse, *how, 0b0010)
    assert [x.numel() for x in some] == [0, q.numel(), 0, 0]
    torch.testing.assert_close(
        some[1],
        kernels.task_attention_bwd2(q, 0 * k, 0 * v, o, q, k, v, None, None, o, lse, *how, 0b1111)[
            1
        ],
    )


MEMORY = '''
import torch
from pathlib import Path
from attention_rows import projected
from fastmaml.ops import _load
k = _load.kernels("cpp")
def resident(what):
    """Bytes of this process: VmRSS is now, VmHWM the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith(what)).split()[1])
def run(n):
    x, mask = projected(1, 1, 1, n, 8, seed=0).float(), torch.zeros(1).expand(1, 1, 1, n, n)
    o, lse = k.task_attention(x, x, x, mask, None, True, 0.3, 0.0)
    k.task_attention_bwd(x, x, x, x, mask, None, o, lse, True, 0.3, 0.0)
    k.task_attention_bwd2(x, x, x, x, x, x, x, mask, None, o, lse, True, 0.3, 0.0, 15)
run(600)
before = resident("VmRSS")
run(6000)
print(resident("VmHWM") - before)
'''


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_no_matrix_of_rows_by_keys_is_stored() -> None:
    kernels_for("cpp", "task_attention")
    path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    matrix = 4 * 6000**2
    assert int(done.stdout) < matrix / 8


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(1, 1, 1, 700, 600, 16), (2, 3, 2, 130, 70, 8)])
@pytest.mark.parametrize("causal", [False, True])
def test_results_do_not_depend_on_the_number_of_threads(
    shape: Any, causal: bool, threads: Callable[[int], None]
) -> None:
    kernels = kernels_for("cpp", "task_attention", torch.float32)
    tensors = qkv(*shape, dtype=torch.float32)
    key = torch.arange(shape[0])

    def run(count: int) -> list[Tensor]:
        threads(count)
        return derivatives(
            lambda *x: native_task_attention(kernels, *x, None, key, causal, 0.3, 0.1), tensors
        )

    one = run(1)
    for count in (2, 3, 8):
        for x, y in zip(one, run(count), strict=True):
            assert torch.equal(x, y)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("isa", ["base", "v3"])
def test_every_instruction_set(isa: str) -> None:
    kernels_for("cpp", "task_attention")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/ops/test_ops.py"]
    which = "task_attention and cpp and (definition or twice)"
    done = subprocess.run(
        [*command, "-k", which], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "FASTMAML_ISA": isa, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if "this machine has base to" in done.stdout:
        pytest.skip(f"this machine has no {isa}")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout


# ---- dropout ----


@on_every_backend
def test_attention_multiplies_by_the_dropout_mask_bit_for_bit(backend: str) -> None:
    """Values that are one apart name the probabilities that are kept."""
    t, b, h, n, s = 2, 2, 3, 5, 600
    q, k = (torch.zeros(t, b, h, m, 4, dtype=torch.float64) for m in (n, s))
    v = torch.eye(s, dtype=torch.float64).expand(t, b, h, s, s)
    key = torch.tensor([9 << 20, 10 << 20])
    o = of(backend)(q, k, v, None, key, False, 0.5, 0.3)
    mask = ops.dropout_mask(key, (b, h, n, s), 0.3, q)
    torch.testing.assert_close(o * s, mask, rtol=1e-14, atol=0)


@on_backends
def test_dropout_under_vmap_is_each_tasks_own(backend: str) -> None:
    kernels = kernels_for(backend, "task_attention")
    tensors = qkv(3, 2, 2, 3, 4, 4)
    key = torch.arange(3) << 20
    found = vmap(
        lambda q, k, v, key: native_task_attention(
            kernels, q[None], k[None], v[None], None, key[None], True, 0.5, 0.4
        )[0]
    )(*tensors, key)
    expected = reference_task_attention(*tensors, None, key, True, 0.5, 0.4)
    torch.testing.assert_close(found, expected)


# ---- calls of a model that the op does not take as they are ----


class Reads(nn.Module):
    """Attention of one kind after a linear layer, whose queries are shared or computed."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.keys, self.out = kind, nn.Linear(5, 8), nn.Linear(24, 3)
        self.queries = nn.Parameter(torch.randn(1, 2, 3, 4))
        self.bias = nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        k = self.keys(x).unflatten(-1, (2, 4)).transpose(1, 2)
        q, v = self.queries, k
        if self.kind == "one head of keys":
            q, k, v = q.expand(len(x), -1, -1, -1), k[:, :1], v[:, :1]
        if self.kind == "three dimensions":
            q, k, v = q[0].repeat(len(x), 1, 1), k.flatten(0, 1), v.flatten(0, 1)
        mask = self.bias if self.kind == "a learnt bias" else None
        if self.kind == "a mask of a mask":
            mask = self.bias.detach().expand(1, len(x), 2, 3, 6)
            return self.out(F.scaled_dot_product_attention(q[None], k, v, mask)[0].flatten(1))
        return self.out(F.scaled_dot_product_attention(q, k, v, mask).reshape(len(x), -1))


KINDS = ["shared queries", "one head of keys", "three dimensions", "a learnt bias"]


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("gradient", [fm.gradients.Checkpointed(), fm.gradients.MixedMode()])
@pytest.mark.parametrize("kind", [*KINDS, "a mask of a mask"])
def test_one_call_that_is_not_covered_leaves_the_others_native(
    kind: str, gradient: fm.gradients.GradientMethod
) -> None:
    kernels_for("cpp", "task_attention")
    model, x = Reads(kind).double(), torch.randn(2, 4, 6, 5).double()
    part = fm.Batch(x, torch.arange(4).remainder(3).repeat(2, 1))
    found = []
    for backend in ("reference", "cpp"):
        maml = fm.MAML(model, lr=0.1, loss=F.cross_entropy, gradient=gradient, backend=backend)  # type: ignore[arg-type]
        assert maml.explain(fm.Episodes(part, part)).backend == backend
        maml(fm.Episodes(part, part)).loss.backward()
        found.append([p.grad for p in model.parameters()])
        model.zero_grad()
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_heads_too_wide_for_a_backend_are_not_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = dict.fromkeys(_load.FAMILIES["task_attention"], print)
    triton = _load.Kernels("triton", frozenset({"cpu"}), frozenset({torch.float32}), raw)
    monkeypatch.setattr(coverage, "kernels", lambda backend: triton)
    narrow, wide = torch.zeros(1, 1, 2, 128), torch.zeros(1, 1, 2, 129)
    assert ops.covers("task_attention", "triton", [narrow, narrow, narrow])
    assert not ops.covers("task_attention", "triton", [narrow, narrow, wide])
    assert ops.covers("task_attention", "cpp", [wide, wide, wide])


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_widest_heads_are_those_of_the_kernels() -> None:
    from fastmaml.kernels import attention_checks

    assert coverage.WIDEST["triton", "task_attention"] == attention_checks.WIDEST


# ---- the native checks ----


def test_native_attention_names_what_does_not_fit() -> None:
    kernels = kernels_for("cpp", "task_attention")
    q, k, v = qkv(2, 1, 2, 3, 4, 8)
    key, how = torch.zeros(2, dtype=torch.int64), (False, 0.5, 0.0)
    o, lse = kernels.task_attention(q, k, v, None, None, *how)
    for call, message in (
        (lambda: kernels.task_attention(q[0], k, v, None, None, *how), "q has shape"),
        (lambda: kernels.task_attention(q, k[..., :4], v, None, None, *how), "k has shape"),
        (lambda: kernels.task_attention(q, k, v[:, :, :1], None, None, *how), "v has shape"),
        (lambda: kernels.task_attention(q, k.float(), v, None, None, *how), "k has dtype Float"),
        (lambda: kernels.task_attention(q, k, v, lse, None, *how), "mask has shape"),
        (lambda: kernels.task_attention(q, k, v, None, None, False, 0.5, 0.1), "needs key"),
        (lambda: kernels.task_attention(q, k, v, None, key[:1], False, 0.5, 0.1), "key has shape"),
        (lambda: kernels.task_attention(q, k, v, None, key, False, 0.5, 1.5), "dropout is 1.5"),
        (lambda: kernels.task_attention_bwd(q, q, k, v, None, None, o, o, *how), "lse has shape"),
        (lambda: kernels.task_attention_bwd(k, q, k, v, None, None, o, lse, *how), "g has shape"),
        (
            lambda: kernels.task_attention_bwd2(
                q, q, None, o, q, k, v, None, None, o, lse, *how, 15
            ),
            "hk has shape",
        ),
        (lambda: kernels.task_embedding_grad(q[0, 0], key, 3), "ids has shape"),
        (lambda: kernels.dropout_mask(q, 3, 0.1, torch.float32), "key has shape"),
        (lambda: kernels.dropout_mask(key, 3, 0.1, torch.int64), "dtype is Long"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
