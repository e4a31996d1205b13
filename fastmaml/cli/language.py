"""What ``fastmaml export`` and ``fastmaml adapt`` do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastmaml.cli.errors import user_errors
from fastmaml.cli.language_flags import Adapt, Export
from fastmaml.cli.runs import checkpoint_in, config_of, load_into
from fastmaml.episodes.batch import Batch, Episodes
from fastmaml.maml import MAML
from fastmaml.training.config import LanguageConfig
from fastmaml.training.config.toml import assignments


def run(command: Export | Adapt) -> int:
    """Run the command.

    Returns:
        The exit code.
    """
    return _export(command) if isinstance(command, Export) else _adapt(command)


def _export(command: Export) -> int:
    with user_errors():
        recipe, maml, _ = _loaded(command.checkpoint, "cpu", ())
        kind = maml.save_pretrained(command.to, recipe.tokenizer())
    print(f"Written to {command.to}: the meta-learned {_described(kind)}.")
    return 0


def _adapt(command: Adapt) -> int:
    from fastmaml.integrations.transformers import save_pretrained

    with user_errors():
        recipe, maml, config = _loaded(command.checkpoint, command.device, command.change)
        if command.steps is not None and command.steps < 1:
            raise ValueError(f"--steps={command.steps}: give at least 1.")
        steps = command.steps or config.eval_steps or maml.steps
        support, classes = recipe.new_task(command.data, command.limit)
        query, what = support, "the examples adapted to"
        if command.test_data is not None:
            query, _ = recipe.new_task(command.test_data, None, classes)
            what = "the test examples"
    device = next(maml.parameters()).device
    support, query = support.to(device), query.to(device)
    maml.eval()
    _show(maml, support, query, steps, what)
    learner = recipe.finished(maml.adapt_to(support, steps), classes)
    with user_errors():
        kind = save_pretrained(learner, command.to, recipe.tokenizer())
    print(f"Written to {command.to}: the adapted {_described(kind)}.")
    return 0


def _show(maml: MAML, support: Batch, query: Batch, steps: int, what: str) -> None:
    """Print how well the query examples are answered after each inner step."""
    from rich.console import Console
    from rich.table import Table

    one = Episodes(*(batch.map(lambda x: x.unsqueeze(0)) for batch in (support, query)))
    table = Table(title=f"{what}: {len(query.tensors()[0])}", min_width=48)
    table.add_column("inner steps")
    for column in ("loss", "accuracy"):
        table.add_column(column, justify="right")
    for step, out in enumerate(maml.evaluate_each_step(one, steps)):
        name = "0 (no adaptation)" if step == 0 else str(step)
        right = out.accuracy
        table.add_row(name, f"{out.loss:.3g}", "" if right is None else f"{right:.1%}")
    Console().print(table)


def _described(kind: str) -> str:
    return {
        "model": "model, for transformers' from_pretrained",
        "adapter": "adapter, for peft's from_pretrained on the model that it was put into",
    }[kind]


def _loaded(path: Path, device: str, change: tuple[str, ...]) -> tuple[Any, MAML, LanguageConfig]:
    """A run's recipe, its learner with what it has learned, and its configuration."""
    from fastmaml.training import checkpoint, recipes
    from fastmaml.training.recipes.build import recipe

    path = checkpoint_in(path)
    saved = checkpoint.load(path)
    config = config_of(path, saved.config).updated({"device": device}, "--device")
    config = config.updated(assignments(change), "--change")
    if not isinstance(config, LanguageConfig):
        raise ValueError(
            f"{path} is of a run on {config.dataset}, whose model is none of transformers: this is "
            "for language models. Its weights are in that file, under names that begin with "
            "'maml.module.'."
        )
    maml = recipes.build_maml(config)
    load_into(maml, saved.state["maml"], path)
    return recipe(config), maml, config
