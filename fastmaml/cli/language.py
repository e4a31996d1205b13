"""What ``fastmaml export`` and ``fastmaml adapt`` do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastmaml.cli.errors import user_errors
from fastmaml.cli.language_flags import Adapt, Export
from fastmaml.cli.runs import config_of, load_into, tested_in
from fastmaml.cli.target import replacing, require_free
from fastmaml.episodes.batch import Batch, Episodes
from fastmaml.maml import MAML
from fastmaml.training.config import LanguageConfig
from fastmaml.training.config.toml import assignments
from fastmaml.training.evaluation import evaluate
from fastmaml.training.metrics import Choice
from fastmaml.training.summary import format_metric

CHANGED = frozenset(
    {"prompt", "answer", "options", "header", "separator", "chat", "max_length", "rows"}
    | {"text", "label", "inner_lr", "inner_momentum", "cache", "executor", "backend"}
    | {"metrics"}
)
"""Settings that matter where a run's model adapts to other data."""


def run(command: Export | Adapt) -> int:
    """Run the command.

    Returns:
        The exit code.
    """
    return _export(command) if isinstance(command, Export) else _adapt(command)


def _export(command: Export) -> int:
    with user_errors():
        require_free(command.to, command.overwrite)
        recipe, maml, config = _loaded(command.checkpoint, "cpu", ())
        _require_another(command.to, config)
        words = recipe.tokenizer()
        with replacing(command.to) as folder:
            kind = maml.save_pretrained(folder, words)
    print(f"Written to {command.to}: the meta-learned {_described(kind)}.")
    return 0


def _adapt(command: Adapt) -> int:
    from fastmaml.integrations.transformers import save_pretrained

    with user_errors():
        _check(command)
        recipe, maml, config = _loaded(command.checkpoint, command.device, command.change)
        _require_another(command.to, config)
        steps = command.steps or config.eval_steps or maml.steps
        support, classes = recipe.new_task(command.data, command.limit)
        query, what = support, "the examples adapted to"
        if command.test_data is not None:
            query, _ = recipe.new_task(command.test_data, None, classes)
            what = "the test examples"
    device = next(maml.parameters()).device
    support, query = support.to(device), query.to(device)
    maml.eval()
    _show(maml, support, query, steps, recipe.metrics_of_one(), what)
    learner = recipe.finished(maml.adapt_to(support, steps), classes)
    with user_errors():
        words = recipe.tokenizer()
        with replacing(command.to) as folder:
            kind = save_pretrained(learner, folder, words)
    print(f"Written to {command.to}: the adapted {_described(kind)}.")
    return 0


def _check(command: Adapt) -> None:
    """Raise a ValueError for what cannot be done, before anything is loaded."""
    for name in ("steps", "limit"):
        value = getattr(command, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value}: give at least 1.")
    require_free(command.to, command.overwrite)
    for name in assignments(command.change):
        if name not in CHANGED:
            raise ValueError(
                f"--change {name}=...: that has no effect on adapting to --data. What has is "
                f"{', '.join(sorted(CHANGED))}."
            )


def _require_another(to: Path, config: LanguageConfig) -> None:
    """Raise a ValueError where the model that the run began with would be written over."""
    if to.exists() and to.resolve() == Path(config.model).resolve():
        raise ValueError(f"--to {to} is the model that the run was trained from: give another.")


def _show(maml: MAML, support: Batch, query: Batch, steps: int, metrics: Choice, what: str) -> None:
    """Print how well the query examples are answered after each inner step."""
    from rich.console import Console
    from rich.table import Table

    one = Episodes(*(batch.map(lambda x: x.unsqueeze(0)) for batch in (support, query)))
    found = evaluate(maml, iter([one]), 1, steps, metrics=metrics)
    scores = {found.metric: found, **found.scores}
    table = Table(title=f"{what}: {len(query.tensors()[0])}", min_width=48)
    for name in ("inner steps", *scores):
        table.add_column(name, justify="left" if name == "inner steps" else "right")
    for step in range(steps + 1):
        name = "0 (no adaptation)" if step == 0 else str(step)
        table.add_row(name, *(format_metric(m, x.means[step]) for m, x in scores.items()))
    Console().print(table)


def _described(kind: str) -> str:
    return {
        "model": "model, for transformers' from_pretrained (with --pooling mean, "
        "fastmaml's sequence_classifier)",
        "adapter": "adapter, for peft's from_pretrained on the model that it was put into",
    }[kind]


def _loaded(path: Path, device: str, change: tuple[str, ...]) -> tuple[Any, MAML, LanguageConfig]:
    """A run's recipe, its learner with what it has learned, and its configuration."""
    from fastmaml.training import checkpoint, recipes
    from fastmaml.training.recipes.build import recipe

    path = tested_in(path)
    saved = checkpoint.load(path)
    config = config_of(path, saved.config).updated({"device": device}, "--device")
    config = config.updated(assignments(change), "--change")
    if not isinstance(config, LanguageConfig):
        raise ValueError(
            f"{path} is of a run on {config.dataset}, whose model is none of transformers: this is "
            "for language models. Its weights are in that file, under names that begin with "
            "'maml.module.'."
        )
    if "inner_lr" in assignments(change) and config.rule in ("lslr", "meta-sgd", "alfa"):
        raise ValueError(f"--change inner_lr=...: the run learned its rates (rule={config.rule}).")
    maml = recipes.build_maml(config)
    loaded = saved.weights  # of quantized weights a fingerprint, which is checked
    named = {n: p for n, p in maml.named_parameters() if n in loaded and not p.requires_grad}
    frozen = {n: p.clone() for n, p in named.items()}
    load_into(maml, loaded, path)
    if other := [n for n, p in frozen.items() if not torch.equal(p, named[n])]:
        raise ValueError(
            f"model={config.model!r} is not the model that the run was trained with: its "
            f"{other[0]!r}, which was frozen, is another one. Adapters fit that model alone."
        )
    return recipe(config), maml, config
