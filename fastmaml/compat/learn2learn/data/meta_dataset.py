"""`MetaDataset`: a data set that knows which examples each class has."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from fastmaml._files import write_whole
from fastmaml.compat.learn2learn.data.runs import Runs

Index = Mapping[Any, Any]


class MetaDataset(Dataset[Any]):
    """A classification data set with the examples of every class.

    Attributes:
        dataset: what was given.
        labels_to_indices: lists of the indices of the examples, by label.
        indices_to_labels: labels by index.
        labels: all labels, in the order of their first example.

    If `dataset` has an attribute ``_bookkeeping_path``, the three are read from that file, or
    written to it if it does not exist. It is a pickle, so it must be your own. A data set that
    knows its labels says so by a method ``labels_by_index()``: a mapping, or None.

    Args:
        dataset: map-style, with items ``(x, label, ...)`` whose labels are hashable or tensors of
            one number. It is read once, whole, unless the labels are given.
        labels_to_indices: as the attribute, if known.
        indices_to_labels: as the attribute, if known.

    Raises:
        TypeError: `dataset` is no `torch.utils.data.Dataset`.
        ValueError: a label of several numbers, or a file of another data set.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        labels_to_indices: Index | None = None,
        indices_to_labels: Index | None = None,
    ) -> None:
        if not isinstance(dataset, Dataset):
            raise TypeError(
                f"MetaDataset takes a torch.utils.data.Dataset, not a {type(dataset).__name__}; "
                "put tensors into a torch.utils.data.TensorDataset."
            )
        self.dataset: Any = dataset
        path = getattr(dataset, "_bookkeeping_path", None)
        if path is None:
            self.create_bookkeeping(labels_to_indices, indices_to_labels)
        else:
            self.load_bookkeeping(path)

    def __getitem__(self, item: int) -> Any:
        return self.dataset[item]

    def __len__(self) -> int:
        return len(self.dataset)

    def create_bookkeeping(
        self, labels_to_indices: Index | None = None, indices_to_labels: Index | None = None
    ) -> None:
        """Set the attributes from what is known, or by reading every example."""
        if labels_to_indices is not None:
            indices_to_labels = {i: y for y, same in labels_to_indices.items() for i in same}
            self._keep(indices_to_labels, labels_to_indices)
        elif indices_to_labels is not None:
            self._keep(indices_to_labels)
        else:
            self._keep(_labels(self.dataset))

    def load_bookkeeping(self, path: str | Path) -> None:
        """Set the attributes from the file `path`, or create and write it.

        Raises:
            ValueError: the file is of another data set.
        """
        if not Path(path).exists():
            self.create_bookkeeping()
            self.serialize_bookkeeping(path)
            return
        kept = pickle.loads(Path(path).read_bytes())
        if len(kept["indices_to_labels"]) != len(self):
            raise ValueError(
                f"{path} is about {len(kept['indices_to_labels'])} examples, but the data set has "
                f"{len(self)}. Delete it, and it is made again."
            )
        self._keep(kept["indices_to_labels"], kept["labels_to_indices"])

    def serialize_bookkeeping(self, path: str | Path) -> None:
        """Write the attributes to the file `path`."""
        kept = {
            "labels_to_indices": self.labels_to_indices,
            "indices_to_labels": self.indices_to_labels,
            "labels": self.labels,
        }
        write_whole(Path(path), pickle.dumps(kept, protocol=pickle.HIGHEST_PROTOCOL))

    def tensors_at(self, indices: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Inputs and labels of these items in one read, where the data are two tensors."""
        return gather(self.dataset, indices) if type(self) is MetaDataset else None

    def _keep(self, indices_to_labels: Index, labels_to_indices: Index | None = None) -> None:
        if isinstance(indices_to_labels, Runs):  # more examples than a dict should hold
            self.indices_to_labels: Index = indices_to_labels
            labels_to_indices = indices_to_labels.by_label
        else:
            self.indices_to_labels = dict(indices_to_labels)
        if labels_to_indices is None:
            labels_to_indices = {}
            for i, label in indices_to_labels.items():
                labels_to_indices.setdefault(label, []).append(i)
        self.labels_to_indices = dict(labels_to_indices)
        self.labels = list(self.labels_to_indices)


class UnionMetaDataset(MetaDataset):
    """Several data sets one after another; every label of each is a class of its own.

    Labels are numbered from 0, by data set and in each by its own ``labels``.

    Args:
        datasets: what `MetaDataset` takes, or such.
    """

    def __init__(self, datasets: Sequence[Dataset[Any]]) -> None:
        self.datasets = [d if isinstance(d, MetaDataset) else MetaDataset(d) for d in datasets]
        labels: dict[int, int] = {}
        classes = examples = 0
        for dataset in self.datasets:
            number = {label: classes + i for i, label in enumerate(dataset.labels)}
            for i, label in dataset.indices_to_labels.items():
                labels[examples + i] = number[label]
            examples, classes = examples + len(dataset), classes + len(number)
        self._keep(labels)

    def __getitem__(self, item: int) -> list[Any]:
        offset = item
        for dataset in self.datasets:
            if 0 <= offset < len(dataset):
                x, _, *more = dataset[offset]
                return [x, self.indices_to_labels[item], *more]
            offset -= len(dataset)
        raise IndexError(f"item {item} of a union of {len(self)} examples.")

    def __len__(self) -> int:
        return len(self.indices_to_labels)


class FilteredMetaDataset(MetaDataset):
    """The examples of some classes, which keep their labels.

    Args:
        dataset: what `MetaDataset` takes, or such.
        labels: of the classes that are kept.

    Raises:
        ValueError: a label that the data set does not have.
    """

    def __init__(self, dataset: Dataset[Any], labels: Sequence[Any]) -> None:
        self.dataset = dataset if isinstance(dataset, MetaDataset) else MetaDataset(dataset)
        missing = [label for label in labels if label not in self.dataset.labels_to_indices]
        if missing:
            raise ValueError(f"the data set has no examples of the labels {missing[:5]}.")
        pairs = [(i, label) for label in labels for i in self.dataset.labels_to_indices[label]]
        self.to_true_indices = [i for i, _ in pairs]
        self._keep({new: label for new, (_, label) in enumerate(pairs)})

    def __getitem__(self, item: int) -> Any:
        return self.dataset[self.to_true_indices[item]]

    def __len__(self) -> int:
        return len(self.indices_to_labels)

    def tensors_at(self, indices: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Inputs and labels of these items in one read, where the data are two tensors."""
        if type(self) is not FilteredMetaDataset:
            return None
        true = self.to_true_indices
        found: tuple[Tensor, Tensor] | None = self.dataset.tensors_at([true[i] for i in indices])
        return found


def gather(dataset: Any, indices: Sequence[int]) -> tuple[Tensor, Tensor] | None:
    """The items ``(x, label)`` in one read, where the data set has a way; else None.

    A `TensorDataset` has; others say so by a method ``tensors_at(indices)``.
    """
    if type(dataset) is not TensorDataset:
        read = getattr(dataset, "tensors_at", None)
        found: tuple[Tensor, Tensor] | None = None if read is None else read(indices)
        return found
    return rows(dataset.tensors, indices)


def rows(tensors: Sequence[Tensor], indices: Sequence[int]) -> tuple[Tensor, Tensor] | None:
    """The rows of inputs and labels; None where there are not just these two."""
    if len(tensors) != 2 or tensors[0].device != tensors[1].device:
        return None
    x, y = tensors
    index = torch.tensor(indices, device=x.device)
    return x.index_select(0, index), y.index_select(0, index)


def _labels(dataset: Any) -> Index:
    if type(dataset) is TensorDataset and len(dataset.tensors) > 1:
        column = dataset.tensors[1]
        if column.dim() == 1:
            return dict(enumerate(column.tolist()))
    tell = getattr(dataset, "labels_by_index", None)
    known: Index | None = None if tell is None else tell()
    if isinstance(known, Runs):
        return known
    read = ((i, dataset[i][1]) for i in range(len(dataset))) if known is None else known.items()
    return {i: _label(label, i) for i, label in read}


def _label(label: Any, i: int) -> Any:
    if getattr(label, "numel", lambda: 1)() != 1:
        raise ValueError(
            f"the label of example {i} has shape {list(label.shape)}: tasks are drawn by class, so "
            "every label has to be one number."
        )
    return label.item() if hasattr(label, "item") else label
