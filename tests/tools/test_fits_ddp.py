"""DistributedDataParallel, Join and accelerate in two processes: the gradients of one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fits import STEPS, TASKS, assert_exact, by_hand, classifier, episodes, gradients, make
from places import ROOT
from ranks import leave
from torch import Tensor, multiprocessing, nn
from torch.distributed.algorithms.join import Join
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

import fastmaml as fm
from fastmaml.rules import MetaSGD

PROCESSES = 2

pytestmark = pytest.mark.slow


def mine(rank: int, tasks: int = TASKS // PROCESSES) -> Any:
    """The tasks of a rank, where the first one has so many."""
    return episodes()[:tasks] if rank == 0 else episodes()[tasks:]


def unused(rank: int, find: bool) -> list[Tensor | None]:
    maml = make(classifier(unused=True))
    wrapped = DistributedDataParallel(maml, find_unused_parameters=find)
    for _ in range(2):  # the second time finds out whether the first was finished
        maml.zero_grad()
        wrapped(mine(rank)).loss.backward()
    return [p.grad for p in maml.parameters()]


def uneven(rank: int) -> Tensor:
    maml, part = make(), mine(rank, tasks=4)
    wrapped = DistributedDataParallel(maml)  # it must live until backward()
    (wrapped(part).loss * part.tasks * PROCESSES / TASKS).backward()
    return gradients(maml)


def accumulated(rank: int) -> Tensor:
    maml, part = make(), mine(rank)
    wrapped = DistributedDataParallel(maml)
    with wrapped.no_sync():
        (wrapped(part[:2]).loss * 2 / 3).backward()
    (wrapped(part[2:]).loss * 1 / 3).backward()
    return gradients(maml)


def loss_of_ones_own(rank: int) -> Tensor:
    maml, part = make(), mine(rank)
    wrapped = DistributedDataParallel(maml)
    (wrapped(part).losses.square().sum() * PROCESSES).backward()
    return gradients(maml)


def learned_rates(rank: int) -> Tensor:
    maml = make(lr=None, rule=MetaSGD(0.3))
    wrapped = DistributedDataParallel(maml)
    wrapped(mine(rank)).loss.backward()
    return gradients(maml)


def clipped(rank: int) -> tuple[Tensor, Tensor]:
    maml = make()
    wrapped = DistributedDataParallel(maml)
    wrapped(mine(rank)).loss.backward()
    norm = clip_grad_norm_(wrapped.parameters(), 0.01)
    return norm, gradients(maml)


class Step(nn.Module):
    """DistributedDataParallel sees what its own call computes, so the whole step goes in."""

    def __init__(self, verbs: bool) -> None:
        super().__init__()
        self.maml, self.verbs = make(), verbs
        self.batched = self.maml.per_task(self.task)

    def task(self, learner: Any, support: fm.Batch, query: fm.Batch) -> Tensor:
        for _ in range(STEPS):
            learner.adapt(F.cross_entropy(learner(support.inputs), support.targets))
        return F.cross_entropy(learner(query.inputs), query.targets)

    def forward(self, data: fm.Episodes) -> Tensor:
        if not self.verbs:
            return self.batched(data).loss
        tasks = [(one.support.map(_first), one.query.map(_first)) for one in data]
        return torch.stack([self.task(self.maml.clone(), *sets) for sets in tasks]).mean()


def _first(x: Tensor) -> Tensor:
    return x[0]


def stepped(rank: int, verbs: bool) -> Tensor:
    wrapped = DistributedDataParallel(Step(verbs))
    wrapped(mine(rank)).backward()
    return gradients(wrapped)


def joined(rank: int) -> list[Tensor]:
    """Two batches on the first rank, one on the second."""
    maml, data = make(), episodes()
    wrapped = DistributedDataParallel(maml)
    optimizer = torch.optim.SGD(maml.parameters(), 0.5)
    with Join([wrapped], divide_by_initial_world_size=False):
        for part in (data[:2], data[4:]) if rank == 0 else (data[2:4],):
            optimizer.zero_grad()
            wrapped(part).loss.backward()
            optimizer.step()
    return [p.detach() for p in maml.parameters()]


def names(rank: int) -> list[str]:
    return list(DistributedDataParallel(make()).state_dict())


def accelerated(rank: int) -> tuple[int, Tensor, Tensor, list[str]] | None:
    try:
        from accelerate import Accelerator
    except ImportError:
        return None
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    maml = make()
    wrapped, optimizer = accelerator.prepare(maml, torch.optim.SGD(maml.parameters(), 0.5))
    part = mine(rank, tasks=4)[:2]
    for half in (part[:1], part[1:]):
        with accelerator.accumulate(wrapped):
            accelerator.backward(wrapped(half).loss)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(wrapped.parameters(), 1e6)
                found = gradients(maml)
            optimizer.step()
    kept = list(accelerator.unwrap_model(wrapped).state_dict())
    return accelerator.num_processes, norm, found, kept


CASES: dict[str, Callable[[int], Any]] = {
    "unused, found": lambda rank: unused(rank, True),
    "unused, not sought": lambda rank: unused(rank, False),
    "uneven": uneven,
    "accumulated": accumulated,
    "loss of one's own": loss_of_ones_own,
    "learned rates": learned_rates,
    "clipped": clipped,
    "joined": joined,
    "clone and adapt": lambda rank: stepped(rank, verbs=True),
    "per task": lambda rank: stepped(rank, verbs=False),
    "names": names,
    "accelerated": accelerated,
}


def run(rank: int, folder: str, port: int) -> None:
    """Every case in turn, as a start of two processes takes longer than all of them."""
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank),
        "RANK": str(rank), "WORLD_SIZE": str(PROCESSES), "LOCAL_WORLD_SIZE": str(PROCESSES),
    }  # fmt: skip
    torch.distributed.init_process_group("gloo")
    found = {name: case(rank) for name, case in CASES.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(run, (str(folder), port), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


Found = list[dict[str, Any]]


@pytest.mark.parametrize("case", ["uneven", "accumulated", "clone and adapt", "per task"])
def test_tasks_split_over_ranks_and_calls(found: Found, case: str) -> None:
    for rank in found:
        assert_exact(rank[case], by_hand())


def test_unused_parameters(found: Found) -> None:
    for rank in found:
        for case in ("unused, found", "unused, not sought"):
            used = torch.cat([g.flatten() for g in rank[case][:4]])
            assert_exact(used, by_hand())
        assert rank["unused, found"][4:] == [None, None]
        assert all(not g.any() for g in rank["unused, not sought"][4:])


def test_a_loss_of_ones_own(found: Found) -> None:
    maml = make()
    maml(episodes()).losses.square().sum().backward()
    for rank in found:
        assert_exact(rank["loss of one's own"], gradients(maml))


def test_learned_rates_are_averaged_too(found: Found) -> None:
    maml = make(lr=None, rule=MetaSGD(0.3))
    maml(episodes()).loss.backward()
    for rank in found:
        assert rank["learned rates"].numel() == 2 * by_hand().numel()
        assert_exact(rank["learned rates"], gradients(maml))


def test_clipping_sees_the_norm_of_the_average(found: Found) -> None:
    whole = by_hand()
    for rank in found:
        norm, gradient = rank["clipped"]
        torch.testing.assert_close(norm, whole.norm(), rtol=1e-12, atol=0)
        assert_exact(gradient, whole * 0.01 / (whole.norm() + 1e-6))


def test_join_goes_on_with_the_ranks_that_have_batches(found: Found) -> None:
    maml, data = make(), episodes()
    optimizer = torch.optim.SGD(maml.parameters(), 0.5)
    for part in (data[:4], data[4:]):
        optimizer.zero_grad()
        maml(part).loss.backward()
        optimizer.step()
    for rank in found:
        for own, p in zip(rank["joined"], maml.parameters(), strict=True):
            torch.testing.assert_close(own, p.detach(), rtol=1e-12, atol=1e-15)


def test_names_of_parameters(found: Found) -> None:
    assert found[0]["names"] == [f"module.{name}" for name in make().state_dict()]


def test_accelerate_in_two_processes(found: Found) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    expected = by_hand(data=episodes()[[0, 1, 4, 5]])
    for rank in found:
        processes, norm, gradient, kept = rank["accelerated"]
        assert processes == PROCESSES
        assert_exact(gradient, expected)
        torch.testing.assert_close(norm, expected.norm(), rtol=1e-12, atol=0)
        assert kept == list(make().state_dict())


def test_torchrun_launches_the_example() -> None:
    """Two processes end where one does."""

    def last_line(processes: int) -> list[str]:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        result = subprocess.run(
            [sys.executable, *launch, "examples/distributed.py", "--iterations", "3"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        lines = result.stdout.strip().splitlines()
        assert len(lines) == 2, result.stdout  # one rank speaks
        assert f"{processes} processes" in lines[0]
        return lines[1].split()

    one, two = last_line(1), last_line(2)
    assert one[:-1] == two[:-1]
    assert float(one[-1]) == pytest.approx(float(two[-1]), rel=1e-4)
