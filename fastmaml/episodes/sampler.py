"""`EpisodeSampler`: few-shot classification episodes from any labelled data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from fastmaml.episodes.batch import Batch, Episodes, Tree
from fastmaml.episodes.checks import check_positive
from fastmaml.episodes.labelled import labelled
from fastmaml.episodes.source import EpisodeSource


class EpisodeSampler(EpisodeSource):
    """An infinite iterable of meta-batches of N-way K-shot tasks (Vinyals et al. 2016).

    For each task it draws `ways` classes without replacement and, of each, `shots` + `queries`
    examples without replacement, all uniformly. A task's classes are labelled 0 to ways - 1 in
    random order; its examples lie class by class. With inputs of shape ``[examples, ...]``:

        ``support.inputs [tasks, ways·shots, ...]``      ``support.targets [tasks, ways·shots]``
        ``query.inputs   [tasks, ways·queries, ...]``    ``query.targets   [tasks, ways·queries]``

    with int64 targets. All data is held on `device` and sampled there by index.

    Args:
        data: a tuple ``(inputs, labels)``: a tensor, or a tuple or dict of tensors, whose first
            dimension runs over the examples, and integer labels ``[examples]``; or a map-style
            dataset of ``(x, y)`` items, read once, whole; or a Hugging Face ``datasets.Dataset``
            with columns of numbers or arrays.
        ways: classes a task.
        shots: support examples a class.
        queries: query examples a class; None for as many as `shots`.
        tasks: tasks a meta-batch.
        seed: of the sampler's own generator.
        device: where the data is held and episodes are made; None for where the data is.
        transform: applied to the inputs of every support and query set, so that data can be held
            compactly (say, as uint8) and become floating-point per episode.
        inputs: of a ``datasets.Dataset``: a column's name (the model gets a tensor) or several (the
            model gets a dict); None for every column but the labels.
        labels: of a ``datasets.Dataset``: the column of labels; None for ``label`` or ``labels``.

    Raises:
        ValueError: a number that is not positive, more ways than classes, a class with fewer than
            shots + queries examples, or data that cannot be read as above.
    """

    def __init__(
        self,
        data: Any,
        *,
        ways: int,
        shots: int,
        queries: int | None = None,
        tasks: int,
        seed: int = 0,
        device: torch.device | str | None = None,
        transform: Callable[[Tree], Tree] | None = None,
        inputs: str | Sequence[str] | None = None,
        labels: str | None = None,
    ) -> None:
        queries = shots if queries is None else queries
        check_positive(ways=ways, shots=shots, queries=queries, tasks=tasks)
        examples, targets = labelled(data, inputs, labels)
        super().__init__(seed, tree_leaves(examples)[0].device if device is None else device)
        self.ways, self.shots, self.queries, self.tasks = ways, shots, queries, tasks
        self.transform = transform
        self._inputs = tree_map_only(Tensor, lambda x: x.to(self.device), examples)

        names, counts = targets.unique(return_counts=True)
        _check_classes(names, counts, ways, shots, queries)
        self.classes = len(names)
        # The examples of class c are _order[_starts[c] : _starts[c] + _counts[c]].
        self._order = targets.argsort(stable=True).to(self.device)
        self._counts = counts.to(self.device)
        self._starts = self._counts.cumsum(0) - self._counts

    def sample(self) -> Episodes:
        """The next meta-batch: ``[tasks, ways·shots, ...]`` and ``[tasks, ways·queries, ...]``."""
        total = torch.full((self.tasks,), self.classes, device=self.device)
        classes = draw(total, self.ways, self.generator)  # [tasks, ways]
        within = draw(self._counts[classes], self.shots + self.queries, self.generator)
        index = self._order[self._starts[classes].unsqueeze(-1) + within]
        support, query = index.split([self.shots, self.queries], dim=-1)
        return Episodes(self._batch(support), self._batch(query))

    def _batch(self, index: Tensor) -> Batch:
        """The examples at `index` [tasks, ways, examples], with their labels inside the task."""
        each = index.shape[-1]
        index = index.flatten(1)

        def rows(x: Tensor) -> Tensor:
            return x.index_select(0, index.flatten()).unflatten(0, index.shape)

        inputs = tree_map_only(Tensor, rows, self._inputs)
        if self.transform is not None:
            inputs = self.transform(inputs)
        label = torch.arange(self.ways, device=self.device).repeat_interleave(each)
        return Batch(inputs, label.repeat(self.tasks, 1))

    def __repr__(self) -> str:
        return (
            f"EpisodeSampler(ways={self.ways}, shots={self.shots}, queries={self.queries}, "
            f"tasks={self.tasks}, classes={self.classes}, examples={len(self._order)}, "
            f"device='{self.device}')"
        )


def draw(counts: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """For each entry n of `counts`, `k` different numbers from 0 to n - 1 in random order.

    Floyd's algorithm (Bentley and Floyd, 1987): the i-th number is drawn from 0 to n - k + i, and
    where it was drawn before, n - k + i itself is taken. It costs k random numbers however large n
    is, and every subset is equally likely; a shuffle makes every order equally likely too.

    Args:
        counts: int64 ``[...]``, each at least `k`.
        k: how many numbers.
        generator: on the device of `counts`.

    Returns:
        int64 ``[..., k]``.
    """
    shape, device = (*counts.shape, k), counts.device
    last = counts.unsqueeze(-1) - k + torch.arange(k, device=device)
    # The remainder of a 62-bit number is uniform to within n / 2**62.
    number = torch.randint(2**62, shape, generator=generator, device=device) % (last + 1)
    for i in range(1, k):
        taken = (number[..., :i] == number[..., i : i + 1]).any(-1)
        number[..., i] = torch.where(taken, last[..., i], number[..., i])
    order = torch.rand(shape, generator=generator, device=device).argsort(-1)
    return number.gather(-1, order)


def _check_classes(names: Tensor, counts: Tensor, ways: int, shots: int, queries: int) -> None:
    if ways > len(names):
        raise ValueError(
            f"ways={ways}, but the data has {len(names)} classes. "
            f"Choose ways={len(names)} or fewer, or give data with more classes."
        )
    few = [(int(n), int(c)) for n, c in zip(names, counts, strict=True) if c < shots + queries]
    if few:
        (name, count), others = few[0], len(few) - 1
        more = f" ({others} more classes are too small, too)" if others else ""
        raise ValueError(
            f"class {name} has {count} examples{more}, but an episode takes shots={shots} + "
            f"queries={queries} = {shots + queries} of a class. Choose smaller numbers, or leave "
            "out the small classes."
        )
