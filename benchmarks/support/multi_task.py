"""The control: plain training on several data sets together, each with a last layer of its own."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

import fastmaml as fm


def multi_task(
    model: Any, batches: Iterable[fm.episodes.NamedEpisodes], classes: dict[str, int],
    iterations: int, lr: float, warm_up: int = 20, clip: float = 1.0,
) -> dict[str, Any]:  # fmt: skip
    """Train all but the model's classifier in place, with no inner loop; how long it took.

    Args:
        model: whose last layer is called ``classifier``; it is left as it is.
        batches: of which the support sets are learned from, a loss a task, as the meta-learners'.
        classes: of every data set, by name.
        iterations: of AdamW, with a linear warm-up, then a cosine to zero, as the meta-learners'.
        lr: at the top of that.
    """
    own, width = model.classifier, model.classifier.in_features
    heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in classes.items()})
    body = [p for n, p in model.named_parameters() if p.requires_grad and "classifier" not in n]
    groups = [{"params": body}, {"params": list(heads.parameters()), "lr": max(lr, 1e-3)}]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=0.0)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warm_up, 1.0, warm_up)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(iterations - warm_up, 1))
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [warm_up])
    model.train()
    model.classifier = nn.Identity()
    start = time.process_time()
    for episodes in itertools.islice(batches, iterations):
        for i, name in enumerate(episodes.names):
            batch = episodes.support.map(lambda x, task=i: x[task])
            labels = batch.targets["labels"]
            logits = heads[name](fm.losses.logits_of(model(**batch.inputs)))
            loss = nn.functional.cross_entropy(logits, labels) / len(episodes)
            loss.backward()
        nn.utils.clip_grad_norm_(body, clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.classifier = own
    return {"training_cpu_seconds": round(time.process_time() - start, 1)}
