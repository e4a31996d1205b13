"""``fastmaml bench --plan``: what a meta-step of a language model would need."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from fastmaml.cli.errors import BadInputError, user_errors
from fastmaml.cli.telling import telling


@dataclass(frozen=True)
class BenchPlan:
    """Estimate the memory of a meta-step of a language model on a GPU, without running it."""

    model: Positional[str]
    """llama-3.2-1b, llama-3.2-3b, llama-3-8b, a folder with a config.json, or a hub's name."""
    lora: int = 8
    """Rank of the adapters, all else frozen; 0 where everything adapts."""
    lora_targets: tuple[str, ...] = ()
    """Ends of the names of the layers with adapters (none: peft's choice)."""
    tasks: int = 2
    """Tasks of the meta-batch."""
    steps: int = 5
    """Inner steps."""
    tokens: int = 512
    """Tokens of a row."""
    support: int = 4
    """Rows of a task's support set."""
    query: int = 4
    """Rows of its query set."""
    methods: tuple[str, ...] = ("unrolled", "checkpointed", "mixed-mode", "first-order")
    """Gradient methods, also truncated and reptile; mixed-mode:3 has 3 segments, and
    mixed-mode+offload keeps inner steps on the CPU."""
    memory: str = "80GiB"
    """Of the GPU, with its unit."""
    tasks_at_once: int | None = None
    """How many tasks run at a time (none: as many as fit)."""
    layers: Literal["auto", "kept", "checkpointed"] = "auto"
    """Whether the model's layers keep activations, or their inputs only."""
    dtype: Literal["bfloat16", "float32", "float64"] = "bfloat16"
    """Of the model's weights."""
    backend: Literal["kernels", "reference"] = "kernels"
    """fastmaml's kernels, or PyTorch's operations."""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """Also write the figures there, as JSON."""


def as_subcommand(arguments: Sequence[str]) -> Sequence[str]:
    """``bench --plan MODEL ...`` as ``bench plan MODEL ...``, wherever the flag stands."""
    rest = list(arguments)
    for i, word in enumerate(rest[1:], 1):
        if word == "--plan":
            model = rest[i + 1 : i + 2]
            return [rest[0], "plan", *model, *rest[1:i], *rest[i + 2 :]]
        if word.startswith("--plan="):
            return [rest[0], "plan", word.removeprefix("--plan="), *rest[1:i], *rest[i + 1 :]]
    return arguments


def run(command: BenchPlan) -> int:
    """Plan, print, and write; the exit code.

    Raises:
        BadInputError: a flag that cannot be obeyed.
    """
    import torch
    from rich.console import Console

    from fastmaml.cli.bench import method_of
    from fastmaml.integrations.transformers.adapters import Lora
    from fastmaml.measure.planning import plan_memory

    console = Console(highlight=False)
    if command.lora < 0:
        raise BadInputError(f"--lora {command.lora}: give a rank, or 0 where everything adapts.")
    if not command.lora and command.lora_targets:
        raise BadInputError(
            f"--lora 0 has everything adapt, without adapters, and --lora-targets "
            f"{' '.join(command.lora_targets)} names layers for adapters: leave one of them out."
        )
    first = (
        f"planning {command.model}: about 10 s for a gradient method and a way to run it, of "
        f"which {len(command.methods)} or more are looked at"
    )
    with telling(console, first) as tell, user_errors():
        targets = command.lora_targets or None
        plan = plan_memory(
            command.model,
            lora=Lora(command.lora, targets=targets) if command.lora else None,
            tasks=command.tasks,
            steps=command.steps,
            tokens=command.tokens,
            support=command.support,
            query=command.query,
            methods=[method_of(name) for name in command.methods],
            memory=command.memory,
            tasks_at_once=command.tasks_at_once,
            layers=command.layers,
            dtype=getattr(torch, command.dtype),
            backend=command.backend,
            progress=tell,
        )
        if command.out is not None:
            command.out.parent.mkdir(parents=True, exist_ok=True)
            command.out.write_text(json.dumps(plan.as_dict(), indent=1) + "\n")
    console.print(str(plan), markup=False, soft_wrap=True)
    return 0
