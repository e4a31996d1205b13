"""`Ranks`: the processes that train one run together, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch import Tensor, distributed, nn

from fastmaml.engine.base.errors import NonFiniteLoss
from fastmaml.engine.base.seeds import task_seeds
from fastmaml.episodes.batch import Episodes

Part = TypeVar("Part")


class OtherProcessError(ValueError):
    """What went wrong in another process, which says so itself."""


@final
@dataclass(frozen=True)
class Ranks:
    """Which of several processes this is, and what they tell each other.

    Every process draws whole meta-batches from the same seeds and computes a slice of their tasks,
    so that all have the same random state, parameters and optimizer, those of a single process.

    Attributes:
        rank: of this process, from 0.
        world: how many there are.
        device: of the model; what is told travels over it.
    """

    rank: int = 0
    world: int = 1
    device: torch.device | str = "cpu"

    @classmethod
    def here(cls, device: torch.device) -> Ranks:
        """Those of `torch.distributed`'s default group; without one, this process alone."""
        if not distributed.is_available() or not distributed.is_initialized():
            return cls(device=device)
        return cls(distributed.get_rank(), distributed.get_world_size(), device)

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.world > 1

    def require_divisible(self, tasks: int) -> None:
        """Raise ValueError where so many tasks cannot be divided evenly."""
        if tasks % self.world:
            below = tasks - tasks % self.world
            fits = f"tasks={below} or " if below else ""
            raise ValueError(
                f"tasks={tasks} of a meta-batch cannot be divided among {self.world} processes: "
                f"give {fits}tasks={below + self.world}, or start another number of processes."
            )

    @contextmanager
    def part(self, episodes: Episodes) -> Iterator[Episodes]:
        """This process's tasks; inside, they draw as they would among all tasks of one process."""
        self.require_divisible(episodes.tasks)
        count = episodes.tasks // self.world
        start = self.rank * count
        cpu = torch.device("cpu")
        if start:
            task_seeds(start, cpu)
        yield episodes[start : start + count] if self.several else episodes
        if rest := episodes.tasks - start - count:
            task_seeds(rest, cpu)

    def divided(self, episodes: Episodes, of: Callable[[Episodes], list[Part]]) -> list[Part]:
        """What `of` gives for all tasks; each process computes its own where they can be divided.

        Args:
            episodes: the meta-batch.
            of: gives a list with an entry for each task, and draws nothing.
        """
        if not self.several or episodes.tasks % self.world:
            return of(episodes)
        count = episodes.tasks // self.world
        with self.together():
            own = of(episodes[self.rank * count : (self.rank + 1) * count])
        return [one for part in self.gathered(own) for one in part]

    def share(self, module: nn.Module) -> None:
        """Give all processes the first one's parameters and buffers.

        Raises:
            ValueError: this process has a part of a parameter alone.
        """
        if not self.several:
            return
        from torch.distributed.tensor import DTensor

        for name, p in module.named_parameters():
            if p.requires_grad and isinstance(p, DTensor):
                raise ValueError(
                    f"{name} is divided among processes (fully_shard), and trainers add up whole "
                    "gradients: write the outer loop yourself, or use fastmaml.frozen.shard for a "
                    "frozen base."
                )
        trained = [p.detach() for p in module.parameters() if p.requires_grad]
        for x in (*trained, *module.buffers()):
            distributed.broadcast(x, 0)

    def highest(self, *values: int) -> list[int]:
        """The largest of each value among all processes."""
        if not self.several:
            return list(values)
        told = torch.tensor(values, dtype=torch.int64, device=self.device)
        distributed.all_reduce(told, distributed.ReduceOp.MAX)
        return [int(x) for x in told.tolist()]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Make each tensor the sum over all processes, in place."""
        if not self.several:
            return
        kinds: dict[Any, list[Tensor]] = {(x.dtype, x.device): [] for x in tensors}
        for x in tensors:
            kinds[x.dtype, x.device].append(x)
        for alike in kinds.values():
            flat = torch.cat([x.flatten() for x in alike])
            distributed.all_reduce(flat)
            for x, total in zip(alike, flat.split([x.numel() for x in alike]), strict=True):
                x.copy_(total.view_as(x))

    def gathered(self, own: Part) -> list[Part]:
        """What every process has, in order."""
        if not self.several:
            return [own]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, own)
        return found

    def of_first(self, own: Part) -> Part:
        """What the first process has."""
        return self.gathered(own)[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """An error inside, in whichever process, is raised in all, so that none waits for ever.

        Raises:
            NonFiniteLoss, OtherProcessError, RuntimeError: as it was raised in another process.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as found:
            if not self.several:
                raise
            error = found
        if not self.several or not self.highest(error is not None)[0]:
            return
        told = self.gathered(None if error is None else _told(error))
        if error is not None:
            raise error
        raise _elsewhere(told)


def _told(error: Exception) -> tuple[str, str]:
    if isinstance(error, NonFiniteLoss):
        return "loss", str(error)
    if isinstance(error, ValueError | OSError | ImportError):
        return "input", str(error)
    return "other", f"{type(error).__name__}: {error}"


def _elsewhere(told: Sequence[tuple[str, str] | None]) -> Exception:
    """The first error that another process told of."""
    rank, (kind, message) = next((i, one) for i, one in enumerate(told) if one is not None)
    message = f"in process {rank}: {message}"
    if kind == "loss":
        return NonFiniteLoss(message, None, [])
    return OtherProcessError(message) if kind == "input" else RuntimeError(message)


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ


def writes() -> bool:
    """Whether this process is the one that prints, which is known before it joins the others."""
    return not launched() or os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(cuda: bool) -> Iterator[None]:
    """Inside, this process is one of those that torchrun started, if it did.

    Args:
        cuda: whether models are on GPUs: this process then has that of its local rank.
    """
    if not launched():
        yield
        return
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()
