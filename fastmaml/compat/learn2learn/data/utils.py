"""Data held as tensors, tasks split into support and query, and iterators without an end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from fastmaml.compat.learn2learn.data.meta_dataset import rows


class InfiniteIterator:
    """Begins again whenever its iterable ends.

    Args:
        dataloader: an iterable that can be begun again.

    Raises:
        ValueError: from ``next``, if the iterable is empty.
    """

    def __init__(self, dataloader: Iterable[Any]) -> None:
        self.dataloader = dataloader
        self.iterator = iter(dataloader)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self.iterator)
        except StopIteration:
            self.iterator = iter(self.dataloader)
        for item in self.iterator:
            return item
        raise ValueError("the iterable is empty: an InfiniteIterator would never return.")


def partition_task(
    data: Tensor, labels: Tensor, shots: int = 1, ways: int | None = None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Support and query of a task: of every class the first `shots` examples, and the others.

    Args:
        data: ``[examples, ...]``.
        labels: ``[examples]``, as many examples of each.
        shots: support examples a class.
        ways: how many classes there are; None looks at the labels. Give it inside of a function for
            ``per_task``, where that look would keep tasks from being batched. That each class then
            has as many examples is taken for granted.

    Returns:
        ``(data, labels)`` of the support, ``[classes * shots, ...]``, and of the query, both class
        by class in the order of the labels.

    Raises:
        ValueError: classes of different sizes, or fewer than `shots` examples of each.
    """
    if len(data) != len(labels):
        raise ValueError(f"there are {len(data)} examples, but {len(labels)} labels.")
    if ways is None:
        counts = labels.unique(return_counts=True)[1].tolist()
    elif ways < 1 or len(labels) % ways:
        raise ValueError(f"{len(labels)} examples are no multiple of ways={ways} classes.")
    else:
        counts = [len(labels) // ways] * ways
    if len(set(counts)) != 1 or counts[0] < shots:
        raise ValueError(
            f"the classes of the task have {counts} examples: each needs the same number, and at "
            f"least shots={shots}."
        )
    order = labels.argsort(stable=True).view(len(counts), counts[0])
    support, query = order[:, :shots].flatten(), order[:, shots:].flatten()

    def chosen(rows: Tensor) -> tuple[Tensor, Tensor]:
        return data[rows.to(data.device)], labels[rows]

    return chosen(support), chosen(query)


def download_file(source: str, destination: str, size: int | None = None) -> None:
    """Nothing is downloaded, as there is no checksum to verify: the file has to be there.

    Args:
        source: its address.
        destination: where it has to be.
        size: not used.

    Raises:
        FileNotFoundError: it is not there.
    """
    if not Path(destination).expanduser().exists():
        raise FileNotFoundError(
            f"there is no {destination}, and nothing is downloaded, as there is no checksum to "
            f"verify. Fetch {source} and put it there."
        )


def download_file_from_google_drive(id: str, destination: str) -> None:
    """As `download_file`, of a file of Google Drive.

    Args:
        id: its name there.
        destination: where it has to be.

    Raises:
        FileNotFoundError: it is not there.
    """
    download_file(f"https://drive.google.com/uc?id={id}", destination)


class OnDeviceDataset(TensorDataset):
    """A whole data set as two tensors, on a device.

    On the CPU of a machine with CUDA the tensors are pinned.

    Args:
        dataset: with items ``(x, label)``: tensors of one shape and numbers.
        device: where the tensors lie; None for where they are.
        transform: applied to x whenever an item is read.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        device: torch.device | str | None = None,
        transform: Callable[[Tensor], Any] | None = None,
    ) -> None:
        items = [dataset[i] for i in range(len(dataset))]  # type: ignore[arg-type]  # map-style
        data = torch.stack([x for x, _ in items])
        labels = torch.as_tensor([int(y) for _, y in items])
        if device is not None:
            data, labels = data.to(device), labels.to(device)
        if data.device.type == "cpu" and torch.cuda.is_available():
            data, labels = data.pin_memory(), labels.pin_memory()
        super().__init__(data, labels)
        self.transform = transform
        path = getattr(dataset, "_bookkeeping_path", None)
        if path is not None:
            self._bookkeeping_path = path

    def tensors_at(self, indices: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Inputs and labels of these items in one read, where there is no transform."""
        if type(self) is not OnDeviceDataset or self.transform is not None:
            return None
        return rows(self.tensors, indices)

    def labels_by_index(self) -> dict[int, int] | None:
        """The labels of all items, without transforming one."""
        if type(self) is not OnDeviceDataset:
            return None
        return dict(enumerate(self.tensors[1].tolist()))

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        x, y = super().__getitem__(index)
        return x if self.transform is None else self.transform(x), y
