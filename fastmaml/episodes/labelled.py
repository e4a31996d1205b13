"""`labelled`: any labelled data as one tree of input tensors and one tensor of labels."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from fastmaml.episodes.batch import Tree


def labelled(
    data: Any, inputs: str | Sequence[str] | None = None, labels: str | None = None
) -> tuple[Tree, Tensor]:
    """The inputs, a tree of tensors ``[examples, ...]``, and the labels, int64 ``[examples]``.

    Args:
        data: as `EpisodeSampler` takes it.
        inputs: the columns of inputs, where `data` has named columns.
        labels: the column of labels, where `data` has named columns.

    Raises:
        ValueError: the data is of no kind known here, or its sizes or types do not fit.
    """
    if hasattr(data, "column_names"):
        return _checked(*_from_columns(data, inputs, labels))
    if inputs is not None or labels is not None:
        raise ValueError(
            f"inputs={inputs!r} and labels={labels!r} choose columns of a datasets.Dataset, but "
            f"the data is a {type(data).__name__} without named columns. Leave them out."
        )
    if isinstance(data, tuple):
        if len(data) != 2:
            raise ValueError(f"data is a tuple of {len(data)}; give the pair (inputs, labels).")
        return _checked(*data)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return _checked(*_from_items(data))
    raise ValueError(
        f"data is a {type(data).__name__}; give a tuple (inputs, labels) of tensors, a map-style "
        "dataset (with a length and an index) of (x, y) items, or a datasets.Dataset."
    )


def _from_items(data: Any) -> tuple[Tree, Tensor]:
    """A map-style dataset, read whole and stacked."""
    rows, labels, structure = [], [], None
    for i in range(len(data)):
        item = data[i]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise ValueError(
                f"item {i} of the dataset is no (x, y): it is a {type(item).__name__}."
            )
        leaves, spec = tree_flatten(item[0])
        structure = spec if structure is None else structure
        if spec != structure:
            raise ValueError(f"the inputs of items 0 and {i} of the dataset differ in structure.")
        rows.append([_tensor(f"the input of item {i}", x) for x in leaves])
        labels.append(_label(i, item[1]))
    if structure is None:
        raise ValueError("the dataset is empty: it has no items to make episodes of.")
    columns = [_stack(column) for column in zip(*rows, strict=True)]
    return tree_unflatten(columns, structure), torch.tensor(labels)


def _from_columns(
    data: Any, inputs: str | Sequence[str] | None, labels: str | None
) -> tuple[Tree, Tensor]:
    """A datasets.Dataset: known by its methods, so that it need not be installed."""
    columns = data.column_names
    if isinstance(columns, dict) or not hasattr(data, "__getitem__"):
        raise ValueError(
            f"data is a {type(data).__name__}; give one datasets.Dataset (a split of a "
            "DatasetDict, such as data['train']), not a dictionary of them and not a stream."
        )
    if labels is None:
        labels = next((name for name in ("label", "labels") if name in columns), None)
    if inputs is None:
        inputs = [name for name in columns if name != labels]
        inputs = inputs[0] if len(inputs) == 1 else inputs
    wanted = [inputs] if isinstance(inputs, str) else list(inputs)
    if labels not in columns or not wanted or not set(wanted) <= set(columns):
        raise ValueError(
            f"cannot take labels={labels!r} and inputs={inputs!r} from the dataset's columns "
            f"{list(columns)}. Name the columns with EpisodeSampler(data, inputs=..., labels=...)."
        )
    values = data.select_columns([*wanted, labels]).with_format("torch")[:]
    for name in (*wanted, labels):
        if not isinstance(values[name], Tensor):
            raise ValueError(
                f"column {name!r} is not a column of numbers or of arrays of one shape. Choose "
                "other columns with inputs= and labels=, or map it to numbers first."
            )
    chosen = values[inputs] if isinstance(inputs, str) else {name: values[name] for name in wanted}
    return chosen, values[labels]


def _checked(inputs: Tree, labels: Any) -> tuple[Tree, Tensor]:
    """Inputs and labels whose types and sizes fit."""
    inputs = tree_map(lambda x: _tensor("inputs", x), inputs)
    labels = _tensor("labels", labels)
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels is a {labels.dtype} tensor of shape {list(labels.shape)}; it has to be one "
            "integer an example, of shape [examples]."
        )
    leaves = tree_leaves(inputs)
    if not leaves:
        raise ValueError(f"inputs holds no tensor (it is an empty {type(inputs).__name__}).")
    for x in leaves:
        if x.ndim == 0 or len(x) != len(labels):
            raise ValueError(
                f"inputs has shape {list(x.shape)}, but there are {len(labels)} labels; the first "
                "dimension of both runs over the examples."
            )
    return inputs, labels.long()


def _tensor(name: str, x: Any) -> Tensor:
    try:
        return torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} holds a {type(x).__name__}, which is not made of numbers: {error}. "
            "Give tensors, or a dataset whose transform makes them."
        ) from error


def _label(i: int, y: Any) -> int:
    try:
        return operator.index(y)
    except TypeError as error:
        raise ValueError(
            f"the label of item {i} of the dataset is {y!r}, not an integer."
        ) from error


def _stack(column: Sequence[Tensor]) -> Tensor:
    shapes = sorted({tuple(x.shape) for x in column})
    if len(shapes) > 1:
        raise ValueError(
            f"the inputs of the dataset differ in shape: {shapes[0]} and {shapes[1]}. "
            "Resize or pad them to one shape."
        )
    return torch.stack(list(column))
