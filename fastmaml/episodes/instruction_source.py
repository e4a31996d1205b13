"""`Instructions`: the source of episodes that `instructions` makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fastmaml.episodes.answers import AnswerTokens
from fastmaml.episodes.batch import Batch
from fastmaml.episodes.checks import check_choice, check_positive
from fastmaml.episodes.named import NamedEpisodes
from fastmaml.episodes.pools import NOTHING, SAMPLING, Sampling, choose, pick
from fastmaml.episodes.prompts import Example
from fastmaml.episodes.source import EpisodeSource
from fastmaml.losses import IGNORED


@final
class Instructions(EpisodeSource):
    """An infinite iterable of meta-batches of prompts and answers; `instructions` makes it.

    Everything is drawn on the CPU, so episodes are the same on every device.

    Args:
        examples: what support sets are drawn from, and query sets if there is no `query_examples`.
        query_examples: what query sets are drawn from.
        tokens: the texts of all of these in order, one for each option of an example with options.
        support, query, tasks: examples a support set and a query set, and tasks a meta-batch.
        choose: whether query sets hold every option.
        decoder_start: the token that a decoder begins with, of a model with an encoder.
        sampling: see `instructions`.
        seed: of the source's own generator.
        device: where the texts are held and episodes are handed out; None for the CPU.

    Raises:
        ValueError: a number that is not positive, or a task with too few examples.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        query_examples: Sequence[Example] | None,
        tokens: AnswerTokens,
        *,
        support: int,
        query: int,
        tasks: int,
        choose: bool = False,
        decoder_start: int | None = None,
        sampling: Sampling = "uniform",
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        check_positive(support=support, query=query, tasks=tasks)
        check_choice("sampling", sampling, SAMPLING)
        super().__init__(seed, "cpu")
        self.support, self.query, self.tasks = support, query, tasks
        self.choose, self.decoder_start, self.sampling = choose, decoder_start, sampling
        self._tokens = tokens.to(device)
        everything = [*examples, *(query_examples or ())]
        self._texts = _Texts.of(everything)
        own = _by_task(examples, 0)
        other = None if query_examples is None else _by_task(query_examples, len(examples))
        self.names = tuple(sorted(own))
        self._pools = [_Pool(own[n], None if other is None else other.get(n)) for n in self.names]
        for name, pool in zip(self.names, self._pools, strict=True):
            pool.check(name, support, query, other is not None)
        self._sizes = torch.tensor([len(p.support) for p in self._pools], dtype=torch.float64)

    @property
    def cut(self) -> int:
        """How many texts were longer than `max_length`, and have been cut."""
        return self._tokens.cut

    def sample(self) -> NamedEpisodes:
        """The next meta-batch, with the name of each task."""
        chosen = choose(self._sizes, self.tasks, self.sampling, self.generator).tolist()
        drawn = [self._pools[i].draw(self.support, self.query, self.generator) for i in chosen]
        support, query = (torch.stack(rows) for rows in zip(*drawn, strict=True))
        own, asked = self._texts.right(support), self._texts.right(query)
        options = self._texts.options(query) if self.choose else asked
        sizes = self._tokens.longest(own, options)
        answered = self._tokens.batch(options, sizes, self.decoder_start)
        if self.choose:
            right = self._texts.number[query].to(answered.targets.device)
            there = self._texts.there(query).to(right.device).unsqueeze(-1)
            labels = torch.where(there, answered.targets, IGNORED)
            answered = Batch(answered.inputs, {"labels": labels, "right": right})
        adapted_to = self._tokens.batch(own, sizes, self.decoder_start)
        return NamedEpisodes(adapted_to, answered, tuple(self.names[i] for i in chosen))

    def __repr__(self) -> str:
        return (
            f"Instructions({len(self.names)} tasks: {', '.join(self.names[:4])}"
            f"{', ...' if len(self.names) > 4 else ''}; support={self.support}, "
            f"query={self.query}, tasks={self.tasks}, sampling={self.sampling!r}, "
            f"{self.cut} of {len(self._tokens)} texts cut)"
        )


@dataclass(frozen=True)
class _Texts:
    """Which texts belong to each example.

    Attributes:
        first: int64 ``[examples]``, the first one.
        number: which of its options is right.
        count: how many options there are, at least one.
    """

    first: Tensor
    number: Tensor
    count: Tensor

    @staticmethod
    def of(examples: Sequence[Example]) -> _Texts:
        count = torch.tensor([max(len(x.options), 1) for x in examples])
        number = [x.options.index(x.answer) if x.options else 0 for x in examples]
        return _Texts(count.cumsum(0) - count, torch.tensor(number), count)

    def right(self, examples: Tensor) -> Tensor:
        """The text with the right answer, ``[tasks, examples]``."""
        return self.first[examples] + self.number[examples]

    def options(self, examples: Tensor) -> Tensor:
        """Every option, ``[tasks, examples·options]``; where there are fewer, the last again."""
        count = self.count[examples].unsqueeze(-1)
        place = torch.arange(int(count.max())).minimum(count - 1)
        return (self.first[examples].unsqueeze(-1) + place).flatten(1)

    def there(self, examples: Tensor) -> Tensor:
        """Which of these are options, and not the last one again."""
        count = self.count[examples].unsqueeze(-1)
        return (torch.arange(int(count.max())) < count).flatten(1)


@dataclass(frozen=True)
class _Pool:
    """The examples of a task, by number; `query` is None where those of `support` serve as well."""

    support: Tensor
    query: Tensor | None

    def draw(self, support: int, query: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Those of a support set and a query set, which share none."""
        own = pick([self.support], support, NOTHING, generator)
        if self.query is not None:
            return own, pick([self.query], query, NOTHING, generator)
        return own, pick([self.support], query, own, generator)

    def check(self, name: str, support: int, query: int, apart: bool) -> None:
        """Raise a ValueError unless there are examples enough."""
        asked = 0 if self.query is None else len(self.query)
        need = support if apart else support + query
        if len(self.support) < need or (apart and asked < query):
            had = f"{len(self.support)} examples"
            had += f" and {asked} for query sets" if apart else ""
            raise ValueError(
                f"task {name!r} has {had}, and an episode takes support={support} and "
                f"query={query}. Choose smaller numbers, or name small tasks in leave_out=."
            )


def _by_task(examples: Sequence[Example], first: int) -> dict[str, Tensor]:
    found: dict[str, list[int]] = {}
    for number, example in enumerate(examples, first):
        found.setdefault(example.task, []).append(number)
    return {name: torch.tensor(numbers) for name, numbers in found.items()}
