"""Embeddings: what the op table cannot say of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_checks import kernels_for
from torch import Tensor
from torch.func import jvp, vmap

from fastmaml import ops
from fastmaml.ops.task_embedding import native_task_embedding, reference_task_embedding

on_every_backend = pytest.mark.parametrize("backend", ["reference", "raw_reference", "cpp"])


def tables() -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(0)
    w = torch.randn(3, 7, 4, generator=made, dtype=torch.float64)
    return w, torch.randint(7, (3, 20), generator=made)


@on_every_backend
@pytest.mark.parametrize("padding_idx", [None, 2, -1])
def test_embeddings_are_pytorchs_own_function(backend: str, padding_idx: int | None) -> None:
    w, ids = tables()
    w.requires_grad_()
    if backend == "reference":
        y = reference_task_embedding(w, ids, padding_idx)
    else:
        y = native_task_embedding(kernels_for(backend, "task_embedding"), w, ids, padding_idx)
    each = zip(w, ids, strict=True)
    expected = torch.stack([F.embedding(i, a, padding_idx) for a, i in each])
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    weight = torch.randn_like(y)
    found, theirs = (torch.autograd.grad(x, w, weight)[0] for x in (y, expected))
    torch.testing.assert_close(found, theirs)
    assert padding_idx is None or not found[:, padding_idx].any()


@pytest.mark.parametrize("backend", ["raw_reference", "cpp"])
def test_a_padding_row_stays_a_constant_under_vmap_and_in_every_order(backend: str) -> None:
    kernels = kernels_for(backend, "task_embedding")
    w, ids = tables()

    def number(w: Tensor, ids: Tensor) -> Tensor:
        return native_task_embedding(kernels, w[None], ids[None], 2).pow(3).sum()

    first = torch.func.grad(number)
    for one in (first, lambda w, ids: torch.func.grad(lambda w: first(w, ids).sum())(w)):
        found = vmap(one)(w, ids)
        assert not found[:, 2].any()
        assert found[:, 0].all()
    _, along = jvp(lambda w: vmap(first)(w, ids), (w,), (torch.ones_like(w),))
    torch.testing.assert_close(along, found)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("row", [7, -1, 2**40])
def test_an_id_out_of_range_raises(backend: str, row: int) -> None:
    if backend == "cpp":
        kernels_for(backend, "task_embedding")
    w, ids = tables()
    ids[1, 3] = row
    with pytest.raises(RuntimeError, match=rf"task_embedding: ids\[1, 3\] is {row}|out of bounds"):
        ops.task_embedding(w, ids, backend=backend)
