"""A pretrained BERT in two parts: layers that stay as they are, and those that learn.

What the frozen layers make of a text is the same at every meta-step, so it is computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastmaml as fm
from fastmaml.integrations.transformers import sequence_classifier


class Passed(nn.Module):
    """In the place of embeddings: hidden states that were computed before."""

    def forward(self, inputs_embeds: Tensor, **others: Any) -> Tensor:
        return inputs_embeds


class Upper(nn.Module):
    """The last layers, the mean over the tokens and a linear layer of `classes`.

    Args:
        model: the whole one, as `sequence_classifier` makes it with the mean; its parts are used.
        frozen: how many layers are left out.
    """

    def __init__(self, model: Any, frozen: int) -> None:
        super().__init__()
        self.body, self.classifier = model.body, model.classifier
        self.body.embeddings = Passed()
        self.body.encoder.layer = self.body.encoder.layer[frozen:]
        self.body.pooler = None

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits ``[examples, classes]`` from hidden states ``[examples, length, width]``."""
        output = self.body(inputs_embeds=hidden, attention_mask=attention_mask)
        there = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (output.last_hidden_state * there).sum(1) / there.sum(1).clamp(min=1)
        logits: Tensor = self.classifier(mean)
        return logits

    @torch.no_grad()
    def features(self, episodes: fm.Episodes) -> fm.Episodes:
        """Of what `Lower` made: what the last layer is given, for models of that layer alone."""

        def part(batch: fm.Batch) -> fm.Batch:
            shape = batch.inputs["attention_mask"].shape[:-1]
            flat = {key: x.flatten(0, 1) for key, x in batch.inputs.items()}
            own, self.classifier = self.classifier, nn.Identity()
            found = self(**flat).unflatten(0, shape)
            self.classifier = own
            return fm.Batch(found, batch.targets)

        return replaced(episodes, part)


class Lower:
    """Episodes of texts become episodes of what the first layers make of them, without gradients.

    Args:
        name: of the model.
        frozen: how many layers that is.
    """

    def __init__(self, name: str, frozen: int) -> None:
        model: Any = sequence_classifier(name, 2, pooling="mean", dropout=0.0).eval()
        self.body = model.body
        self.body.encoder.layer = self.body.encoder.layer[:frozen]
        self.body.pooler = None
        self.known: dict[bytes, Tensor] = {}

    def __call__(self, episodes: fm.Episodes, length: int) -> fm.Episodes:
        def part(batch: fm.Batch) -> fm.Batch:
            return fm.Batch(self.hidden(batch.inputs, length), batch.targets)

        return replaced(episodes, part)

    def hidden(self, inputs: dict[str, Tensor], length: int) -> dict[str, Tensor]:
        """``hidden`` and ``attention_mask`` of token numbers ``[..., texts, length]``."""
        shape = inputs["input_ids"].shape[:-1]
        flat = {key: x.flatten(0, -2) for key, x in inputs.items()}
        sizes = flat["attention_mask"].sum(1).tolist()
        keys = [
            b"".join(x[i, :n].numpy().tobytes() for x in flat.values()) for i, n in enumerate(sizes)
        ]
        self._learn(flat, keys, sizes)
        rows = [F.pad(self.known[key], (0, 0, 0, length - len(self.known[key]))) for key in keys]
        mask = torch.tensor(sizes).unsqueeze(-1) > torch.arange(length)
        return {
            "hidden": torch.stack(rows).unflatten(0, shape),
            "attention_mask": mask.long().unflatten(0, shape),
        }

    @torch.no_grad()
    def _learn(self, flat: dict[str, Tensor], keys: list[bytes], sizes: list[int]) -> None:
        new = [i for i, key in enumerate(keys) if key not in self.known]
        if new:
            found = self.body(**{key: x[new] for key, x in flat.items()}).last_hidden_state
            for row, i in zip(found, new, strict=True):
                self.known[keys[i]] = row[: sizes[i]].clone()


def replaced(episodes: fm.Episodes, part: Callable[[fm.Batch], fm.Batch]) -> fm.Episodes:
    """Other support and query sets in the place of these, of the same names."""
    support, query = part(episodes.support), part(episodes.query)
    names = getattr(episodes, "names", None)
    if names is None:
        return fm.Episodes(support, query)
    return fm.episodes.NamedEpisodes(support, query, names)
