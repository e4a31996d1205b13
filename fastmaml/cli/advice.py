"""What helps before a run that will take long."""

from __future__ import annotations

from dataclasses import fields

from torch import nn

from fastmaml.cli.flags import QUICK
from fastmaml.training.config import LanguageConfig, RunConfig

LARGE = 50_000_000
"""Parameters from which on an iteration takes long on a CPU."""

SIZES = ("tasks", "support", "query", "ways", "shots", "queries", "inner_steps")


def on_cpu(config: RunConfig, maml: nn.Module) -> str | None:
    """How to make a run with a large language model on a CPU shorter; None for other runs.

    Args:
        config: of the run.
        maml: its learner.
    """
    if not isinstance(config, LanguageConfig) or config.iterations <= QUICK["iterations"]:
        return None
    count = sum(p.numel() for p in maml.parameters())
    if next(maml.parameters()).device.type != "cpu" or count < LARGE:
        return None
    there = {field.name for field in fields(config)}
    flags = [f"--{name.replace('_', '-')}" for name in SIZES if name in there]
    said = (
        f"{count / 1e6:.1f} M parameters on a CPU: --quick is a first look; fewer "
        f"{', '.join(flags)} and a smaller --max-length make an iteration shorter"
    )
    if config.executor != "eager":
        said += ", and --executor eager saves the recording for a handful of iterations"
    return f"{said}."
