"""`EpisodeSampler`: few-shot classification episodes from any labelled data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from fastmaml.episodes.augment import Augment, augmentation
from fastmaml.episodes.batch import Batch, Episodes, Tree
from fastmaml.episodes.checks import check_positive
from fastmaml.episodes.imbalance import MetaDatasetShots, different
from fastmaml.episodes.labelled import labelled
from fastmaml.episodes.sizes import Number, check_classes, check_number, drawn
from fastmaml.episodes.source import EpisodeSource


class EpisodeSampler(EpisodeSource):
    """An infinite iterable of meta-batches of N-way K-shot tasks (Vinyals et al. 2016).

    For each task it draws `ways` classes without replacement and, of each, `shots` + `queries`
    examples without replacement, all uniformly. A task's classes are labelled 0 to ways - 1 in
    random order; its examples lie class by class. With inputs of shape ``[examples, ...]``:

        ``support.inputs [tasks, ways·shots, ...]``      ``support.targets [tasks, ways·shots]``
        ``query.inputs   [tasks, ways·queries, ...]``    ``query.targets   [tasks, ways·queries]``

    with int64 targets. All data is held on `device` and sampled there by index.

    Where `ways` or `shots` is a pair, each meta-batch draws its own number; its tasks are alike in
    size, so that nothing is padded. The model needs as many outputs as the largest number of ways;
    targets are below the number of the meta-batch. On a GPU, drawing a number waits for the device.
    To test on such, ``tasks=1`` gives the narrowest intervals: each episode draws its own numbers.

    Args:
        data: a tuple ``(inputs, labels)``: a tensor, or a tuple or dict of tensors, whose first
            dimension runs over the examples, and integer labels ``[examples]``; or a map-style
            dataset of ``(x, y)`` items, read once, whole; or a Hugging Face ``datasets.Dataset``
            with columns of numbers or arrays.
        ways: classes a task, or ``(5, 20)`` for a number from 5 to 20 at each meta-batch.
        shots: support examples a class, or a pair as of `ways`, or a `MetaDatasetShots` (also
            "meta-dataset"): another number for each class.
        queries: query examples a class; None for as many as `shots`, or as `MetaDatasetShots` says.
        tasks: tasks a meta-batch.
        seed: of the sampler's own generator.
        device: where the data is held and episodes are made; None for where the data is.
        transform: applied once to the inputs of every whole set ``[tasks, examples, ...]``, so that
            data can be held compactly (say, as uint8) and become floating-point per episode. What
            draws in it, draws once for all examples: that is what `augment` is for.
        augment: changes each example by draws of its own, before `transform`: names divided by
            commas of "flip", "crop", "jitter" and "rotate", for images uint8 ``[channels, height,
            width]``, or a function of one example, such as a transform of torchvision's v2. Draws
            come from the sampler's generator: the function finds the global generators of PyTorch,
            Python and numpy seeded from it, and they go on as before afterwards. Names run on all
            images at once; a function is called for each, which costs what it costs.
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
        ways: Number,
        shots: Number | MetaDatasetShots | Literal["meta-dataset"],
        queries: int | None = None,
        tasks: int,
        seed: int = 0,
        device: torch.device | str | None = None,
        transform: Callable[[Tree], Tree] | None = None,
        augment: Augment | None = None,
        inputs: str | Sequence[str] | None = None,
        labels: str | None = None,
    ) -> None:
        shots = MetaDatasetShots() if shots == "meta-dataset" else shots
        check_number("ways", ways)
        if not isinstance(shots, MetaDatasetShots):
            check_number("shots", shots)
            queries = shots if queries is None and isinstance(shots, int) else queries
        check_positive(tasks=tasks, **({} if queries is None else {"queries": queries}))
        self.augment = augmentation(augment)
        examples, targets = labelled(data, inputs, labels)
        super().__init__(seed, tree_leaves(examples)[0].device if device is None else device)
        self.ways, self.shots, self.queries, self.tasks = ways, shots, queries, tasks
        self.transform = transform
        self._inputs = tree_map_only(Tensor, lambda x: x.to(self.device), examples)

        names, counts = targets.unique(return_counts=True)
        check_classes(dict(zip(names.tolist(), counts.tolist(), strict=True)), ways, shots, queries)
        self.classes = len(names)
        # The examples of class c are _order[_starts[c] : _starts[c] + _counts[c]].
        self._order = targets.argsort(stable=True).to(self.device)
        self._counts = counts.to(self.device)
        self._starts = self._counts.cumsum(0) - self._counts

    @property
    def shares_draws(self) -> bool:
        """Whether a meta-batch draws numbers of ways or shots for all of its tasks."""
        return self.tasks > 1 and not (isinstance(self.ways, int) and isinstance(self.shots, int))

    def sample(self) -> Episodes:
        """The next meta-batch: ``[tasks, ways·shots, ...]`` and ``[tasks, ways·queries, ...]``."""
        ways = drawn(self.ways, self.generator)
        total = torch.full((self.tasks,), self.classes, device=self.device)
        classes = draw(total, ways, self.generator)  # [tasks, ways]
        if isinstance(self.shots, MetaDatasetShots):
            return self._unequal(classes, self.shots)
        shots = drawn(self.shots, self.generator)
        queries = shots if self.queries is None else self.queries
        within = draw(self._counts[classes], shots + queries, self.generator)
        index = self._order[self._starts[classes].unsqueeze(-1) + within]
        label = torch.arange(ways, device=self.device)
        support, query = (
            self._batch(part.flatten(1), label.repeat_interleave(each).repeat(self.tasks, 1))
            for part, each in zip(
                index.split([shots, queries], dim=-1), (shots, queries), strict=True
            )
        )
        return Episodes(support, query)

    def _unequal(self, classes: Tensor, shots: MetaDatasetShots) -> Episodes:
        """Of classes ``[tasks, ways]``, with another number of support examples for each."""
        order = self._counts[classes].argsort(dim=-1, descending=True, stable=True)
        classes = classes.gather(-1, order)  # those that share a number are of like size
        counts = self._counts[classes]
        each, queries = shots.numbers(counts.amin(0).tolist(), self.queries, self.generator)
        within = different(counts, queries + max(each), self.generator)
        index = self._order[
            self._starts[classes].unsqueeze(-1) + within.clamp(max=counts.unsqueeze(-1) - 1)
        ]
        label = torch.rand(classes.shape, generator=self.generator, device=self.device).argsort(-1)
        support = torch.cat([index[:, i, queries : queries + n] for i, n in enumerate(each)], 1)
        sizes = torch.tensor(each, device=self.device)
        return Episodes(
            self._batch(support, label.repeat_interleave(sizes, 1, output_size=sum(each))),
            self._batch(index[..., :queries].flatten(1), label.repeat_interleave(queries, 1)),
        )

    def _batch(self, index: Tensor, targets: Tensor) -> Batch:
        """The examples at `index` ``[tasks, examples]``, with their labels inside the task."""

        def rows(x: Tensor) -> Tensor:
            return x.index_select(0, index.flatten()).unflatten(0, index.shape)

        inputs = self._examples(tree_map_only(Tensor, rows, self._inputs))
        if self.augment is not None:
            inputs = self.augment(inputs, self.generator)
        return Batch(self._finished(inputs), targets)

    def _examples(self, inputs: Tree) -> Tree:
        """What is augmented, of rows of the data: themselves."""
        return inputs

    def _finished(self, inputs: Tree) -> Tree:
        """What the model gets."""
        return inputs if self.transform is None else self.transform(inputs)

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
