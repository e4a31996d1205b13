"""A frozen base that comes to a CUDA device weight by weight: `make gpu` runs these."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from frozen_bases import BASES, EXACT, Adapted, adapters, expected, gradients, maml, tied
from problems import relative
from torch import distributed, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml import frozen

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("method", EXACT)
def test_an_offloaded_base_gives_the_meta_gradient_of_the_cpu(method: str) -> None:
    make, data, _ = BASES["tied"]
    model = frozen.offload(make(), "cuda")
    assert model.words.kept.weight.is_pinned()
    learner = maml("tied", model, EXACT[method])
    learner(data().to("cuda")).loss.backward()
    assert relative(gradients(learner), expected("tied")) < 1e-9


@pytest.mark.parametrize("method", ["unrolled", "mixed-mode"])
def test_of_the_base_one_weight_at_a_time_is_on_the_device(method: str) -> None:
    """32 weights of 16 MiB, which the plain model keeps there, and a graph of it refers to."""
    width, depth = 2048, 32
    weight = 4 * width * width
    blocks = [Adapted(nn.Linear(width, width, bias=False), width, width) for _ in range(depth)]
    model = nn.Sequential(*blocks, nn.Linear(width, 3))
    for name, p in model.named_parameters():
        p.requires_grad_(".base." not in name)
    frozen.offload(model, "cuda")
    learner = fm.MAML(
        model, 1e-3, steps=2, loss=F.cross_entropy, gradient=EXACT[method], scope=adapters,
        executor="eager", backend="reference",
    )  # fmt: skip
    inputs = torch.randn(2, 6, width, device="cuda")
    batch = fm.Batch(inputs, torch.arange(3, device="cuda").repeat(2, 2))
    episodes = fm.Episodes(batch, batch)
    learner(episodes).loss.backward()
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    learner(episodes).loss.backward()
    assert torch.cuda.max_memory_allocated() - before < depth * weight / 4
    assert before < depth * weight / 4


def test_autocast() -> None:
    found = []
    for model in (tied().float().cuda(), frozen.offload(tied().float(), "cuda")):
        learner = maml("tied", model, EXACT["unrolled"])
        with torch.autocast("cuda", torch.bfloat16):
            out = learner(BASES["tied"][1]().to("cuda"))
        out.loss.backward()
        found.append(gradients(learner))
    assert relative(found[1], found[0]) < 0.1


def test_shares_are_gathered_by_nccl(tmp_path: Path) -> None:
    """One rank is all that one device has room for."""
    if not distributed.is_nccl_available():
        pytest.skip("this PyTorch has no NCCL")
    device = torch.device("cuda", torch.cuda.current_device())
    distributed.init_process_group(
        "nccl", f"file://{tmp_path}/store", rank=0, world_size=1, device_id=device
    )
    try:
        model = frozen.shard(tied(), "cuda")
        learner = maml("tied", model, EXACT["checkpointed"])
        learner(BASES["tied"][1]().to("cuda")).loss.backward()
        assert relative(gradients(learner), expected("tied")) < 1e-9
    finally:
        distributed.destroy_process_group()
