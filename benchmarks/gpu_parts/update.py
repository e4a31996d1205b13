"""What part of a copy's bandwidth does one step of all parameters of all tasks reach?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_parts.answer import Answer
from benchmarks.gpu_parts.timing import in_turns
from fastmaml import ops

CLOSE = 1e-6

# Parameters' shapes, and how many tasks: conv4 on Omniglot, with more tasks than caches hold, and
# MiniLM's six layers.
CONV4 = [(64, 1, 3, 3), *[(64, 64, 3, 3)] * 3, *[(64,)] * 12, (5, 64), (5,)]
LAYER = [*[(384, 384)] * 4, (1536, 384), (384, 1536), *[(384,)] * 9, (1536,)]
CASES = {
    "conv4, 256 tasks": (256, CONV4),
    "MiniLM's layers, 4 tasks": (4, LAYER * 6),
}
QUICK = {"conv4, 2 tasks": (2, CONV4)}


def main(answer: Answer) -> None:
    """From parameters that tasks share, as in the first step, and from their own."""
    torch.manual_seed(0)
    for name, (tasks, shapes) in (QUICK if answer.small else CASES).items():
        for shared in (True, False):
            what = f"{name}, {'shared' if shared else 'own'} parameters"
            if answer.begins(what):
                with answer.guarding(what):
                    measured(answer, name, tasks, shapes, shared)


def measured(
    answer: Answer, name: str, tasks: int, shapes: list[tuple[int, ...]], shared: bool
) -> None:
    """A row."""
    device = answer.device
    given = [torch.randn(1 if shared else tasks, *s, device=device) for s in shapes]
    p = [x.expand(tasks, *x.shape[1:]) for x in given]
    g = [torch.randn(tasks, *s, device=device) for s in shapes]
    backends = ["cuda"] if device == "cuda" else ["cpp"]
    flat = torch.cat([x.flatten() for x in g])
    into = torch.empty_like(flat)

    def update(backend: str) -> Callable[[], list[Tensor]]:
        return lambda: list(ops.inner_update(p, g, scale=-0.1, backend=backend))

    runs: dict[str, Callable[[], Any]] = {b: update(b) for b in ("reference", *backends)}
    expected = [x.double() - 0.1 * y.double() for x, y in zip(p, g, strict=True)]
    for backend, run in runs.items():
        error = max(
            float((x.double() - y).abs().max()) for x, y in zip(run(), expected, strict=True)
        )
        if not error <= CLOSE:
            answer.fail(f"{name}: inner_update on {backend} is off by {error:.1e}")
            return
    runs["copy"] = lambda: into.copy_(flat)
    times = in_turns(runs, device, 3 if answer.small else 30)
    moved = {n: (sum(x.nbytes for x in given) + 2 * flat.nbytes) for n in runs}
    moved["copy"] = 2 * flat.nbytes
    rates = {n: round(moved[n] / times[n]["median"] / 1e3, 4) for n in runs}
    share = rates[backends[0]] / rates["copy"]
    kind = "shared" if shared else "own"
    answer.row(
        case=name, parameters=kind, megabytes=round(flat.nbytes / 1e6, 2), microseconds=times,
        gbytes_per_s=rates, of_the_copy=round(share, 3),
    )  # fmt: skip
    answer.say(
        f"{name}, {kind}: {rates[backends[0]]:.4g} GB/s, {share:.0%} of a copy's "
        f"{rates['copy']:.4g}; reference {rates['reference']:.4g}"
    )
