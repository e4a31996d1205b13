"""What is measured of every episode, and the `Evaluation` of many of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fastmaml.episodes.batch import Episodes
from fastmaml.episodes.named import NamedEpisodes
from fastmaml.training.metrics import IGNORED, Answers, Choice, Kind, Loss, Metric
from fastmaml.training.metrics.choice import not_suited
from fastmaml.training.metrics.padding import without_padding
from fastmaml.training.summary import Evaluation, averaged, over_names

if TYPE_CHECKING:
    from fastmaml.maml import MAML, MetaOutput


@final
@dataclass(frozen=True)
class Measured:
    """The figures of one episode.

    Attributes:
        losses, accuracies: ``[steps + 1]``, float64; nan where there is no accuracy.
        chance: the accuracy of guessing, or nan.
        name: of the task, where it has one.
        kind: of the task; None where no metric was asked for.
        scores: by the name of a metric, a number for 0, 1, ..., steps inner steps.
        draw: episodes of the same one are no independent draws; None for one of its own.
    """

    losses: Tensor
    accuracies: Tensor
    chance: float
    name: str | None
    kind: Kind | None
    scores: Mapping[str, Sequence[float]]
    draw: int | None = None


def measure(maml: MAML, batch: Episodes, steps: int, choice: Choice) -> list[Measured]:
    """The figures of every episode of a meta-batch, in evaluation as `maml` is set.

    Args:
        maml: what adapts.
        batch: the meta-batch.
        steps: inner steps.
        choice: what else is measured than losses and accuracies.
    """
    outputs = maml.evaluate_each_step(batch, steps)
    losses = torch.stack([x.losses.detach().double().cpu() for x in outputs], dim=1)
    accuracies, found = torch.full_like(losses, math.nan), [x.accuracies for x in outputs]
    if found[0] is not None:
        accuracies = torch.stack([x.detach().double().cpu() for x in found if x is not None], dim=1)
    names = list(batch.names) if isinstance(batch, NamedEpisodes) else [None] * len(batch)
    measured = []
    for i, (name, chance) in enumerate(zip(names, _chances(batch), strict=True)):
        metrics = choice.of(name)
        answers = [_of_task(x, i, losses[i, k]) for k, x in enumerate(outputs) if metrics]
        kind = answers[0].kind if answers else None
        scores = _scores(metrics, answers)
        measured.append(Measured(losses[i], accuracies[i], chance, name, kind, scores))
    return measured


def _of_task(output: MetaOutput, task: int, loss: Tensor) -> Answers:
    def own(x: Tensor) -> Tensor:
        return x[task].detach()

    found, targets = tree_map_only(Tensor, own, (output.outputs, output.targets))
    return Answers(*without_padding(found, targets), loss.item())


def _scores(metrics: Sequence[Metric], answers: Sequence[Answers]) -> dict[str, list[float]]:
    """Of the metrics that are of this task, their values after each step."""
    found = {}
    for metric in metrics:
        if answers[0].kind in metric.kinds:
            values = [_value(metric, one) for one in answers]
            if None not in values:
                found[metric.name] = [float(x) for x in values if x is not None]
    return found


def _value(metric: Metric, answers: Answers) -> float | None:
    """Nan where the task diverged: answers that are no numbers may look right or wrong."""
    value = metric.value(answers)
    diverged = not math.isfinite(answers.loss) and not isinstance(metric, Loss)
    return math.nan if diverged and value is not None else value


def _chances(batch: Episodes) -> list[float]:
    """Of every task: one over the number of its classes, where targets are classes.

    Those of plain labels are the classes in any of its sets: its query set may lack some.
    """
    targets = batch.query.targets
    if isinstance(targets, Mapping) and "classes" in targets:
        found: list[float] = (1 / targets["classes"].flatten().double()).tolist()
        return found
    if not isinstance(targets, Tensor):
        return [math.nan] * len(batch)
    sets = [part.targets for part in (batch.support, *batch.later, batch.query)]
    if not all(isinstance(x, Tensor) and x.dtype == targets.dtype for x in sets):
        sets = [targets]
    every = torch.cat([x.flatten(1) for x in sets], 1)
    return [1 / max(own[own != IGNORED].unique().numel(), 1) for own in every]


def summarised(measured: Sequence[Measured], choice: Choice) -> Evaluation:
    """The means over all episodes, and over those of each name where there are several.

    Raises:
        ValueError: a metric of the choice is of none of the tasks that it is for.
    """
    _check_all_found(measured, choice)
    whole = _means(measured, choice.names)
    groups: dict[str, list[Measured]] = {}
    for one in measured:
        if one.name is not None:
            groups.setdefault(one.name, []).append(one)
    if len(groups) < 2:
        return whole
    by_name = {
        name: _means(group, [metric.name for metric in choice.of(name)])
        for name, group in groups.items()
    }
    alike = {name: one for name, one in by_name.items() if one.metric == whole.metric}
    scores = dict(whole.scores)
    for metric, score in scores.items():
        of_names = {n: x.scores[metric] for n, x in by_name.items() if metric in x.scores}
        scores[metric] = replace(score, over_names=over_names(of_names))
    return replace(whole, by_name=by_name, scores=scores, over_names=over_names(alike))


def _means(measured: Sequence[Measured], metrics: Sequence[str]) -> Evaluation:
    """The accuracy of the episodes that have one, or else the loss of all; and the scores.

    Args:
        measured: the episodes.
        metrics: the names of the scores, in order.
    """
    classified = [one for one in measured if not one.accuracies[0].isnan()]
    if classified:
        chance = torch.tensor([one.chance for one in classified], dtype=torch.float64).mean().item()
        table = torch.stack([one.accuracies for one in classified])
        main = averaged("accuracy", table, chance, [one.draw for one in classified])
    else:
        table, draws = torch.stack([x.losses for x in measured]), [x.draw for x in measured]
        main = averaged("loss", table, None, draws)
    scores = {}
    for name in metrics:
        scored = [one for one in measured if name in one.scores]
        if scored:
            table = torch.tensor([one.scores[name] for one in scored], dtype=torch.float64)
            guessed = main.chance if name == main.metric else None
            scores[name] = averaged(name, table, guessed, [one.draw for one in scored])
    return replace(main, scores=scores)


def _check_all_found(measured: Sequence[Measured], choice: Choice) -> None:
    groups: dict[str | None, list[Measured]] = {}
    for one in measured:
        groups.setdefault(None if choice.by_name is None else one.name, []).append(one)
    if choice.by_name is not None and not set(groups) & set(choice.by_name):
        said = ", ".join(name for name in groups if name is not None) or "without names"
        raise ValueError(
            f"metrics names the data sets {', '.join(choice.by_name)}, and the tasks are {said}: "
            "give metrics that all tasks have, or the names of these."
        )
    for name, group in groups.items():
        for metric in choice.of(name):
            if not any(metric.name in one.scores for one in group):
                raise ValueError(not_suited(metric, {one.kind for one in group if one.kind}))
