"""DistributedDataParallel around a MAML: tasks split over processes give the same meta-gradient."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from ranks import leave
from torch import multiprocessing
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import fastmaml as fm

PROCESSES = 2


def maml_and_episodes() -> tuple[fm.MAML, fm.Episodes]:
    torch.manual_seed(0)
    maml = fm.MAML(fm.models.mlp(3, 4, (8,)).double(), 0.3, steps=2, loss=F.cross_entropy)
    labels = torch.arange(4).repeat(6, 2)
    sets = [fm.Batch(torch.randn(6, 8, 3).double(), labels) for _ in range(2)]
    return maml, fm.Episodes(*sets)


def run(rank: int, folder: str, static_graph: bool) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=PROCESSES
    )
    maml, episodes = maml_and_episodes()
    wrapped = DistributedDataParallel(maml, static_graph=static_graph)
    half = episodes.tasks // PROCESSES
    for _ in range(2):  # a static graph is learned in the first iteration
        maml.zero_grad()
        wrapped(episodes[rank * half : (rank + 1) * half]).loss.backward()
    torch.save([p.grad for p in maml.parameters()], f"{folder}/{rank}.pt")
    leave()


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("static_graph", [False, True])
def test_two_processes_equal_one(static_graph: bool) -> None:
    maml, episodes = maml_and_episodes()
    maml(episodes).loss.backward()
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(run, (folder, static_graph), nprocs=PROCESSES)
        for rank in range(PROCESSES):
            gradients = torch.load(Path(folder) / f"{rank}.pt")
            for own, p in zip(gradients, maml.parameters(), strict=True):
                torch.testing.assert_close(own, p.grad, rtol=1e-12, atol=1e-15)
