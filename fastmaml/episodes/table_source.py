"""`Table`: meta-batches of a table's tasks, and `EachTask`: every task once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from fastmaml.episodes.batch import Batch, Episodes
from fastmaml.episodes.checks import check_positive
from fastmaml.episodes.sampler import draw
from fastmaml.episodes.source import EpisodeSource
from fastmaml.episodes.table_draws import Draw, buckets, drawn
from fastmaml.episodes.table_rows import TaskRows, check_own_classes
from fastmaml.episodes.table_scaling import Scaling
from fastmaml.episodes.table_sizes import Sizes, filled_up_to
from fastmaml.episodes.table_targets import Labels
from fastmaml.losses import IGNORED, counted, regression

Unequal = Literal["mask", "buckets"]


@final
class Table(EpisodeSource):
    """An infinite iterable of meta-batches of a table's tasks; made by `table`.

    Attributes:
        names: of the tasks, in order.
        kind: "regression", "classification" or "multi-label".
        features: how many numbers an input has.
        outputs: how many a model has to give: targets, or classes.
        classes: the names of classes, in the order of their numbers; empty where each task
            numbers its own, or there are none.
        scaling: what columns became numbers by.
        own_labels: whether each task numbers classes of its own.
        left_out: tasks with too few rows.
        dropped: rows with missing values that were left out of the whole table.

    Args:
        rows: of the split's tasks.
        scaling: what their columns became numbers by.
        sizes: how a task's rows are divided.
        tasks: tasks a meta-batch.
        unequal: what happens where tasks have different numbers of rows; see `table`.
        labels: whether classes mean the same in all tasks.
        outputs: how many numbers a model has to give of a row.
        seed: of the source's own generator.
        device: where episodes are made.
    """

    def __init__(
        self,
        rows: TaskRows,
        scaling: Scaling,
        sizes: Sizes,
        *,
        tasks: int,
        unequal: Unequal,
        labels: Labels,
        outputs: int,
        seed: int,
        device: torch.device | str,
    ) -> None:
        # Which rows are drawn is decided on the CPU, so that nothing waits for a device.
        super().__init__(seed, "cpu")
        self.device = torch.empty(0, device=device).device
        self.names, self.kind, self.features = rows.names, rows.kind, rows.features
        self.left_out, self.dropped, self.scaling = rows.left_out, rows.dropped, scaling
        self.classes = rows.classes if labels == "table" else ()
        self.tasks, self.sizes, self.outputs, self.unequal = tasks, sizes, outputs, unequal
        self._seed = seed
        self._strata = rows.own_classes() if rows.kind == "classification" else None
        self.own_labels = labels == "task" and self._strata is not None
        self._starts, self._counts = rows.starts, rows.sizes
        self._rows = rows.to(self.device)
        self._fills = unequal == "mask" and not sizes.alike
        self._buckets = buckets(rows.sizes, tasks) if unequal == "buckets" else []

    @property
    def loss(self) -> Callable[[Any, Any], Tensor]:
        """The loss of one task that these targets are for, as `MAML` takes it."""
        losses: dict[str, Callable[[Any, Any], Tensor]] = {
            "regression": regression,
            "classification": F.cross_entropy,
            "multi-label": counted(F.binary_cross_entropy_with_logits),
        }
        return losses[self.kind]

    @property
    def shares_draws(self) -> bool:
        """Whether a meta-batch draws a bucket for all of its tasks."""
        return len(self._buckets) > 1 and self.tasks > 1

    def sample(self) -> Episodes:
        """The next meta-batch, of tasks that differ from one another."""
        among = torch.arange(len(self.names))
        if self._buckets:
            shares = torch.tensor([float(len(x)) for x in self._buckets])
            among = self._buckets[int(torch.multinomial(shares, 1, generator=self.generator))]
        chosen = among[draw(torch.tensor(len(among)), self.tasks, self.generator)]
        return self.of_tasks(chosen, self.generator)

    def all(self, tasks: int | None = None) -> EachTask:
        """Every task once, in the same random order and with the same rows each time.

        Args:
            tasks: tasks a meta-batch, at most; None for as many as the source has.
        """
        return EachTask(self, self._seed, self.tasks if tasks is None else tasks)

    def of_tasks(self, chosen: Tensor, generator: torch.Generator) -> Episodes:
        """Episodes of these tasks.

        Args:
            chosen: int64 ``[tasks]``, numbers of tasks, on the CPU.
            generator: of which rows are drawn, on the CPU.

        Raises:
            ValueError: a task may have more classes of its own than its support set has rows.
        """
        counts, together = self._counts[chosen], self.unequal == "buckets"
        if together and self.own_labels:
            self._check_classes([chosen])
        rows = counts.min().expand_as(counts) if together else counts
        supports, queries = self.sizes.drawn(rows, generator, together)
        strata = None
        if self._strata is not None:
            numbers, own = self._strata
            strata = numbers, own[chosen]
        found = drawn(self._starts[chosen], counts, supports, queries, strata, generator)
        most = int(self._counts.max())
        fill = self.sizes.largest(most) if self._fills else (int(supports[0]), int(queries[0]))
        support = self._batch(found, 0, supports, fill[0])
        return Episodes(support, self._batch(found, 1, queries, fill[1]))

    def _batch(self, found: Draw, side: int, sizes: Tensor, most: int) -> Batch:
        """Support (0) or query set (1): filled up where tasks have fewer rows than others."""
        size = filled_up_to(int(sizes.max()), most) if self._fills else most
        index, counts = found.side(side, sizes, size)
        index = index.to(self.device, non_blocking=True)

        def taken(x: Tensor) -> Tensor:
            return x.index_select(0, index.flatten()).unflatten(0, index.shape)

        inputs = tree_map_only(Tensor, taken, self._rows.inputs)
        if self.kind == "classification":
            targets = taken(self._rows.targets)
            if self.own_labels:
                targets = found.labels(side, sizes, size).to(self.device)
            if self._fills:
                targets = torch.where(counts.to(self.device), targets, IGNORED)
            return Batch(inputs, targets)
        values = taken(self._rows.targets)
        if not self._fills:
            return Batch(inputs, values)
        return Batch(inputs, {"values": values, "counts": counts.to(self.device)})

    def check_own_classes(self, each: bool) -> None:
        """Check that no support set can lack classes, where each task numbers its own.

        Args:
            each: whether tasks have all of their rows, also with ``unequal="buckets"``, as those
                of `all` do.

        Raises:
            ValueError: one can.
        """
        self._check_classes([] if each else self._buckets)

    def _check_classes(self, groups: list[Tensor]) -> None:
        assert self._strata is not None
        check_own_classes(self.names, self._counts, self._strata[1], self.sizes, groups)

    def groups(self, order: Tensor, tasks: int) -> list[Tensor]:
        """The tasks of meta-batches that have each once: of equal sizes, if none is filled up.

        Args:
            order: int64, numbers of tasks.
            tasks: tasks a meta-batch, at most.
        """
        if self.unequal == "mask":
            return list(order.split(tasks))
        counts = self._counts[order]
        found = [order[counts == size].split(tasks) for size in counts.unique()]
        return [group for groups in found for group in groups]

    def state_dict(self) -> dict[str, Tensor]:
        """Where the stream is, the table's ``fingerprint``, and what was ``trained`` on.

        The latter two are digests, of the table's cells and of the names of the training tasks
        with the scaling.
        """
        told = {"fingerprint": self._rows.fingerprint, "trained": self._rows.trained}
        return {**super().state_dict(), **told}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises:
            ValueError: as `check_trained`, or as of `EpisodeSource`.
        """
        self.check_trained(state)
        super().load_state_dict(state)

    def check_trained(self, state: Mapping[str, Tensor]) -> None:
        """Check that a state is of the same table, training tasks and scaling.

        What is held out here was then held out there, too. `shots`, `queries` and what else says
        how rows are drawn may be others.

        Raises:
            ValueError: it is of others.
        """
        saved = state.get("fingerprint")
        if saved is None or not torch.equal(saved.cpu(), self._rows.fingerprint):
            raise ValueError(
                "the table has changed since the state was saved (rows, values or columns), so "
                "that other tasks would be held out and other numbers scaled: go on with the table "
                "of before, or train anew."
            )
        trained = state.get("trained")
        if trained is None or not torch.equal(trained.cpu(), self._rows.trained):
            raise ValueError(
                "the state is of other training tasks or another scaling, so that some tasks that "
                "were trained on may be held out now, or other numbers be meant: give "
                "validation_tasks=, test_tasks=, tasks_seed=, split_column=, categorical=, kind=, "
                "labels= and scale= as they were, or train anew."
            )

    def __repr__(self) -> str:
        low, high = int(self._counts.min()), int(self._counts.max())
        return (
            f"Table({self.kind}, {len(self.names)} tasks of {low} to {high} rows, "
            f"features={self.features}, outputs={self.outputs}, shots={self.sizes.shots}, "
            f"queries={self.sizes.queries!r}, tasks={self.tasks}, unequal={self.unequal!r}, "
            f"device='{self.device}')"
        )


@final
class EachTask:
    """A finite iterable of meta-batches in which every task is once; made by `Table.all`.

    The last meta-batch may be smaller. Iterating again gives the same.

    Attributes:
        total: the number of tasks.
        shares_draws: no: what is drawn is which rows of each task.

    Args:
        source: whose tasks they are.
        seed: of their order and of the rows that are drawn.
        tasks: tasks a meta-batch, at most.
    """

    shares_draws = False

    def __init__(self, source: Table, seed: int, tasks: int) -> None:
        check_positive(tasks=tasks)
        self.source, self.seed, self.tasks = source, seed, tasks
        self.total = len(source.names)

    def __iter__(self) -> Iterator[Episodes]:
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(self.total, generator=generator)
        for chosen in self.source.groups(order, self.tasks):
            yield self.source.of_tasks(chosen, generator)

    def __repr__(self) -> str:
        return f"EachTask({self.source!r})"
