"""Meta-gradients on the device, by every executor and backend, against the CPU's."""

from __future__ import annotations

import random
from typing import Any

from benchmarks.gpu_parts.answer import Answer
from benchmarks.gpu_parts.pool import Check, checked, processes


def main(answer: Answer) -> None:
    """First every problem on every path, with rules and methods in turn; then the other cases."""
    from like_the_cpu import RULES_THERE, paths
    from problems import EXACT, PROBLEMS

    ways = [(rule, method) for method in EXACT for rule in RULES_THERE]
    cells = [(p.name, *path) for path in paths(answer.device) for p in PROBLEMS]
    first = [(*cell, *ways[i % len(ways)]) for i, cell in enumerate(cells)]
    single = [(*cell, "sgd", "unrolled", "float32") for cell in cells]
    every = [(*cell, *way) for cell in cells for way in ways]
    rest = [one for one in every if one not in set(first)]
    random.Random(0).shuffle(rest)
    chosen: list[tuple[str, ...]] = [*single, *first, *rest]
    if answer.quick:  # every path, with the smallest problem and with another
        chosen = [*single[:: len(PROBLEMS)], *first[1 :: len(PROBLEMS) + 1]]
    names = ["/".join(one) for one in chosen]
    checked(answer, "benchmarks.gpu_parts.exactness", names, processes(answer))


def checks(device: str) -> Check:
    """What a process of the pool calls for each name."""
    import torch
    from like_the_cpu import assert_like_the_cpu
    from problems import PROBLEMS

    problems = {problem.name: problem for problem in PROBLEMS}

    def check(name: str) -> dict[str, Any]:
        problem, executor, backend, rule, method, *rest = name.split("/")
        dtype = getattr(torch, rest[0] if rest else "float64")
        assert_like_the_cpu(problems[problem], rule, method, (executor, backend), device, dtype)
        return {}

    return check
