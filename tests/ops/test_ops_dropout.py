"""Dropout masks: the same bits on every backend, and one raw call for all tasks."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from op_checks import kernels_for
from raw_reference import raw_kernels
from torch import Tensor
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fastmaml.ops.dropout_mask import native_dropout_mask, reference_dropout_mask

on_every_backend = pytest.mark.parametrize("backend", ["reference", "raw_reference", "cpp"])


def bits(x: int) -> int:
    """The hash in Python's own integers."""
    low = 2**32 - 1
    x = (x ^ (x >> 32)) & low
    x = (x ^ (x >> 16)) * 0x7FEB352D & low
    x = (x ^ (x >> 15)) * 0x846CA68B & low
    return x ^ (x >> 16)


@on_every_backend
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1 - 2**-40, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dropout_masks_have_the_same_bits_everywhere(
    backend: str, p: float, dtype: torch.dtype
) -> None:
    keys = [0, 5 << 20, 2**52 - 1, -(2**40) - 3]
    key, shape = torch.tensor(keys), (3, 1, 67)
    if backend == "reference":
        found = reference_dropout_mask(key, shape, p, dtype)
    else:
        kernels = kernels_for(backend, "dropout_mask", dtype)
        found = native_dropout_mask(kernels, key, shape, p, dtype)
    assert found.dtype == dtype
    scale = 0.0 if p == 1 else 1 / (1 - p)
    for i, j in itertools.product(range(4), range(201)):
        kept = bits(j * 0x9E3779B1 + bits(keys[i])) >= int(p * 2**32)
        assert found[i].flatten()[j] == torch.tensor(kept * scale, dtype=dtype)


def test_long_dropout_masks_are_continued() -> None:
    """Beyond what one thread fills at a time, and where index times stride leaves 32 bits."""
    kernels = kernels_for("cpp", "dropout_mask", torch.float32)
    key = torch.tensor([3 << 20, 7 << 20])
    found = native_dropout_mask(kernels, key, (50_001,), 0.3, torch.float32)
    assert torch.equal(found, reference_dropout_mask(key, (50_001,), 0.3, torch.float32))
    assert abs(found.mean() - 1) < 0.01


def test_a_dropout_mask_is_one_raw_call_under_vmap() -> None:
    kernels = raw_kernels()
    key = torch.arange(4) << 20

    def mapped(key: Tensor) -> Tensor:
        one = partial(native_dropout_mask, kernels, shape=(2, 3), p=0.5, dtype=torch.float64)
        return vmap(lambda k: one(k[None])[0])(key)

    assert torch.equal(mapped(key), reference_dropout_mask(key, (2, 3), 0.5, torch.float64))
    nodes = [n for n in make_fx(mapped)(key).graph.nodes if "fastmaml" in str(n.target)]
    assert len(nodes) == 1
    assert nodes[0].args[1:] == (6, 0.5, torch.float64)
