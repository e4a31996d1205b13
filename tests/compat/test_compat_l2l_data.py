"""learn2learn's data sets by class, task sets and their transforms."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fastmaml.compat.learn2learn as l2l
from fastmaml.compat.learn2learn.data import transforms as T

CLASSES, EACH = 8, 6


def tensors() -> TensorDataset:
    """Example i holds the number i; its class is 10 · (i mod 8)."""
    x = torch.arange(CLASSES * EACH).float()
    return TensorDataset(x.view(-1, 1), 10 * (x.long() % CLASSES))


class Items(Dataset):
    """The same, one by one, with labels of any kind."""

    def __init__(self, label: Any = int) -> None:
        self.label = label

    def __len__(self) -> int:
        return CLASSES * EACH

    def __getitem__(self, i: int) -> tuple[Tensor, Any]:
        if i >= len(self):
            raise IndexError
        return torch.tensor([float(i)]), self.label(10 * (i % CLASSES))


def steps(data: l2l.data.MetaDataset, ways: int = 3, samples: int = 4) -> list[Any]:
    return [
        T.FusedNWaysKShots(data, n=ways, k=samples),
        T.LoadData(data),
        T.RemapLabels(data),
        T.ConsecutiveLabels(data),
    ]


def check(x: Tensor, y: Tensor, ways: int = 3, samples: int = 4) -> None:
    """A task: as many examples of each class, class by class, none twice, one name a class."""
    assert x.shape == (ways * samples, 1)
    assert y.dtype == torch.int64
    number = x[:, 0].long()
    assert len(set(number.tolist())) == ways * samples
    classes = (number % CLASSES).view(ways, samples)
    assert (classes == classes[:, :1]).all()
    assert classes[:, 0].tolist() == sorted(set(classes.flatten().tolist()))
    names = y.view(ways, samples)
    assert (names == names[:, :1]).all()
    assert sorted(names[:, 0].tolist()) == list(range(ways))


@pytest.mark.parametrize(
    "data",
    [tensors(), Items(), Items(torch.tensor), Items(str)],
    ids=["tensors", "integers", "scalars", "names"],
)
def test_bookkeeping(data: Any) -> None:
    meta = l2l.data.MetaDataset(data)
    assert len(meta) == CLASSES * EACH
    assert len(meta.labels) == CLASSES
    first = meta.labels[0]
    assert meta.labels_to_indices[first] == list(range(0, CLASSES * EACH, CLASSES))
    assert meta.indices_to_labels[CLASSES] == first
    assert meta[5][0] == 5


def test_labels_that_are_known_are_not_read() -> None:
    class Unread(Items):
        def __getitem__(self, i: int) -> Any:
            raise AssertionError

    known = {"a": [0, 2], "b": [1]}
    one = l2l.data.MetaDataset(Unread(), labels_to_indices=known)
    other = l2l.data.MetaDataset(Unread(), indices_to_labels={0: "a", 1: "b", 2: "a"})
    for meta in (one, other):
        assert meta.labels_to_indices == known
        assert meta.indices_to_labels == {0: "a", 1: "b", 2: "a"}
        assert meta.labels == ["a", "b"]


def test_bookkeeping_is_kept_in_a_file(tmp_path: Path) -> None:
    data: Any = Items()
    data._bookkeeping_path = str(tmp_path / "kept.pkl")
    first = l2l.data.MetaDataset(data)
    data.label = None  # reading the labels again would fail
    assert l2l.data.MetaDataset(data).labels_to_indices == first.labels_to_indices
    small: Any = TensorDataset(torch.zeros(2, 1), torch.zeros(2))
    small._bookkeeping_path = data._bookkeeping_path
    with pytest.raises(ValueError, match="48 examples, but the data set has 2"):
        l2l.data.MetaDataset(small)


def test_data_that_cannot_be_sorted_by_class() -> None:
    with pytest.raises(TypeError, match="not a list"):
        l2l.data.MetaDataset([(1, 2)])
    with pytest.raises(ValueError, match=r"label of example 0 has shape \[2\]"):
        l2l.data.MetaDataset(TensorDataset(torch.zeros(3, 1), torch.zeros(3, 2)))


def test_unions_and_filters() -> None:
    union = l2l.data.UnionMetaDataset([tensors(), l2l.data.MetaDataset(Items())])
    assert len(union) == 2 * CLASSES * EACH
    assert union.labels == list(range(2 * CLASSES))
    x, y = union[CLASSES * EACH + 9]
    assert (x.item(), y) == (9, CLASSES + 1)
    with pytest.raises(IndexError, match="item 10000"):
        union[10_000]
    kept = l2l.data.FilteredMetaDataset(tensors(), [30, 10])
    assert (len(kept), kept.labels) == (2 * EACH, [30, 10])
    assert {int(kept[i][0]) % CLASSES for i in range(len(kept))} == {1, 3}
    assert kept[0][1] == 30
    with pytest.raises(ValueError, match=r"no examples of the labels \[5\]"):
        l2l.data.FilteredMetaDataset(tensors(), [10, 5])
    task = l2l.data.Taskset(union, steps(union, 2 * CLASSES, 2)).sample()
    assert len(task[0]) == 4 * CLASSES


@pytest.mark.parametrize(
    "data", [tensors(), Items(), Items(torch.tensor)], ids=["tensors", "integers", "scalars"]
)
def test_tasks(data: Any) -> None:
    random.seed(0)
    meta = l2l.data.MetaDataset(data)
    taskset = l2l.data.Taskset(meta, steps(meta))
    assert len(taskset) == 1
    seen = Counter()
    for _ in range(40):
        x, y = taskset.sample()
        check(x, y)
        seen.update((x[:, 0].long() % CLASSES).tolist())
    assert len(seen) == CLASSES
    assert len({tuple(taskset.sample()[0].flatten().tolist()) for _ in range(10)}) > 5


@pytest.mark.parametrize("kind", [tensors, Items], ids=["tensors", "items"])
def test_tasks_read_at_once_and_one_by_one_are_the_same(kind: Any) -> None:
    meta = l2l.data.MetaDataset(kind())
    kept = l2l.data.FilteredMetaDataset(meta, [0, 10, 20, 30])
    for data in (meta, kept):
        tasks = []
        for collate in (None, lambda items: torch.utils.data.default_collate(items)):
            random.seed(1)
            taskset = l2l.data.Taskset(data, steps(data), task_collate=collate)
            tasks.append([taskset.sample() for _ in range(20)])
        for a, b in zip(*tasks, strict=True):
            assert type(a) is type(b) is list
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1])


def test_random_seed_fixes_the_tasks() -> None:
    meta = l2l.data.MetaDataset(tensors())
    ways_and_shots = [T.NWays(meta, 3), T.KShots(meta, 4), *steps(meta)[1:]]
    drawn = []
    for transforms in (steps(meta), ways_and_shots):
        random.seed(3)
        taskset = l2l.data.Taskset(meta, transforms)
        drawn.append(torch.stack([taskset.sample()[0] for _ in range(5)]))
    assert torch.equal(*drawn)


def test_finitely_many_tasks_are_kept() -> None:
    random.seed(0)
    meta = l2l.data.MetaDataset(tensors())
    taskset = l2l.data.Taskset(meta, steps(meta), num_tasks=4)
    assert len(taskset) == 4
    first = [taskset[i] for i in range(4)]
    assert sorted(taskset.sampled_descriptions) == [0, 1, 2, 3]
    again = list(taskset)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    sampled = taskset.sample()[0]
    assert any(torch.equal(sampled, x) for x, _ in first)
    with pytest.raises(IndexError, match="task 4 of 4"):
        taskset[4]
    endless = iter(l2l.data.Taskset(meta, steps(meta)))
    for _ in range(6):
        check(*next(endless))
    for number in (0, -2):
        with pytest.raises(ValueError, match=f"num_tasks={number}"):
            l2l.data.Taskset(meta, steps(meta), num_tasks=number)
    with pytest.raises(NotImplementedError, match="UnionMetaDataset"):
        taskset + taskset


def test_each_transform() -> None:
    random.seed(0)
    meta = l2l.data.MetaDataset(tensors())
    label = meta.indices_to_labels

    def labels(description: Any) -> list[int]:
        return [label[d.index] for d in description]

    everything = T.LoadData(meta)(None)
    assert [d.index for d in everything] == list(range(CLASSES * EACH))
    kept = T.FilterLabels(meta, [10, 70])(None)
    assert set(labels(kept)) == {10, 70}
    assert [d.index for d in kept] == sorted(d.index for d in kept)
    of_two = T.NWays(meta, 2)(T.FilterLabels(meta, [10, 20, 70])(None))
    assert len(of_two) == 2 * EACH
    assert set(labels(of_two)) < {10, 20, 70}
    assert len(set(labels(T.NWays(meta, 3)(None)))) == 3
    three = T.KShots(meta, 3)(None)
    assert Counter(labels(three)) == dict.fromkeys(meta.labels, 3)
    assert len({d.index for d in three}) == 3 * CLASSES
    many = T.KShots(meta, 50, replacement=True)(T.FilterLabels(meta, [0])(None))
    assert len(many) == 50
    assert len({id(d) for d in many}) == 50
    assert 2 <= len({d.index for d in many}) <= EACH
    fused = T.FusedNWaysKShots(meta, 2, 9, replacement=True, filter_labels=[0, 10, 20])
    assert Counter(labels(fused(None))).most_common()[0][1] == 9
    assert set(labels(fused(T.LoadData(meta)(None)))) < {0, 10, 20}
    ordered = labels(T.ConsecutiveLabels(meta)(None))
    assert ordered == sorted(ordered)
    plain = T.RemapLabels(meta, shuffle=False)(T.LoadData(meta)(kept))
    names = [d.transforms[-1]((None, label[d.index]))[1] for d in plain]
    assert set(names) == {0, 1}


def test_too_much_is_asked_for() -> None:
    meta = l2l.data.MetaDataset(tensors())
    with pytest.raises(ValueError, match="a task takes 9 classes, but there are 8"):
        l2l.data.Taskset(meta, steps(meta, ways=9)).sample()
    with pytest.raises(ValueError, match=r"takes 7 examples of class .*, but there are 6"):
        l2l.data.Taskset(meta, steps(meta, samples=7)).sample()
    with pytest.raises(ValueError, match="no task_transforms"):
        l2l.data.Taskset(meta).sample()


def test_transforms_of_ones_own() -> None:
    random.seed(0)
    meta = l2l.data.MetaDataset(tensors())

    class Negate(T.TaskTransform):
        def __call__(self, description: Any) -> Any:
            for d in description:
                d.transforms.append(lambda item: (-item[0], item[1]))
            return description

    x, y = l2l.data.Taskset(meta, [*steps(meta), Negate(meta)]).sample()
    check(-x, y)

    def function(description: Any) -> Any:
        assert description is None
        chosen = [l2l.data.DataDescription(i) for i in (3, 11)]
        return T.LoadData(meta)(chosen)

    x, y = l2l.data.Taskset(meta, function).sample()
    assert (x.flatten().tolist(), y.tolist()) == ([3, 11], [30, 30])
    taskset = l2l.data.Taskset(meta, steps(meta), task_collate=len)
    assert taskset.sample() == 12


def test_task_sets_in_loaders_and_pickles() -> None:
    random.seed(0)
    meta = l2l.data.MetaDataset(tensors())
    taskset = l2l.data.Taskset(meta, steps(meta), num_tasks=6)
    twin = pickle.loads(pickle.dumps(taskset))
    check(*twin[0])
    x, y = next(iter(DataLoader(taskset, batch_size=3)))
    assert (x.shape, y.shape) == ((3, 12, 1), (3, 12))
    for sampler in (
        l2l.data.TasksetSampler(taskset),
        l2l.data.samplers.TasksetSampler(l2l.data.Taskset(meta, steps(meta))),
    ):
        batches = iter(DataLoader(meta, batch_sampler=sampler))
        x, y = next(batches)
        assert x.shape == (12, 1)
        assert len(y.unique()) == 3
    assert len(list(l2l.data.TasksetSampler(taskset, shuffle=False))) == 6


def test_the_former_name_warns() -> None:
    meta = l2l.data.MetaDataset(tensors())
    with pytest.warns(DeprecationWarning, match="now called Taskset"):
        taskset = l2l.data.TaskDataset(meta, steps(meta))
    check(*taskset.sample())


def test_partition_task() -> None:
    x = torch.arange(12).view(12, 1)
    y = torch.tensor([7, 3, 5] * 4)
    (sx, sy), (qx, qy) = l2l.data.partition_task(x, y, shots=1)
    assert (sx.flatten().tolist(), sy.tolist()) == ([1, 2, 0], [3, 5, 7])
    assert qy.tolist() == [3] * 3 + [5] * 3 + [7] * 3
    assert qx.flatten().tolist() == [4, 7, 10, 5, 8, 11, 3, 6, 9]
    with pytest.raises(ValueError, match=r"\[4, 3, 4\] examples"):
        l2l.data.partition_task(x[:-1], y[:-1])
    with pytest.raises(ValueError, match="shots=5"):
        l2l.data.partition_task(x, y, shots=5)
    with pytest.raises(ValueError, match="12 examples, but 3 labels"):
        l2l.data.partition_task(x, y[:3])


def test_partition_task_by_the_number_of_classes() -> None:
    """Without a look at the labels' values, so that vmap can do it for many tasks."""
    x = torch.randn(6, 12, 2)
    y = torch.stack([torch.randperm(12) % 3 for _ in range(6)])

    def split(x: Tensor, y: Tensor) -> Any:
        return l2l.data.partition_task(x, y, shots=2, ways=3)

    support, query = torch.vmap(split)(x, y)
    for i in range(6):
        for found, expected in zip(
            (*support, *query), sum(l2l.data.partition_task(x[i], y[i], shots=2), ()), strict=True
        ):
            assert torch.equal(found[i], expected)
    with pytest.raises(ValueError, match="12 examples are no multiple of ways=5"):
        l2l.data.partition_task(x[0], y[0], ways=5)
    with pytest.raises(ValueError, match="shots=5"):
        l2l.data.partition_task(x[0], y[0], shots=5, ways=3)


def test_data_on_a_device() -> None:
    data: Any = Items()
    data._bookkeeping_path = "kept"
    held = l2l.data.OnDeviceDataset(data, device="cpu", transform=lambda x: -x)
    assert held._bookkeeping_path == "kept"
    assert held.tensors[0].shape == (CLASSES * EACH, 1)
    x, y = held[9]
    assert (x.item(), y.item()) == (-9, 10)
    del held._bookkeeping_path
    random.seed(0)
    meta = l2l.data.MetaDataset(held)
    x, y = l2l.data.Taskset(meta, steps(meta)).sample()
    check(-x, y)
    on_meta = l2l.data.OnDeviceDataset(Items(), device="meta")
    assert on_meta.tensors[0].device.type == "meta"


def test_iterators_without_an_end() -> None:
    endless = l2l.data.InfiniteIterator([1, 2])
    assert [next(endless) for _ in range(5)] == [1, 2, 1, 2, 1]
    assert iter(endless) is endless
    with pytest.raises(ValueError, match="the iterable is empty"):
        next(l2l.data.InfiniteIterator([]))
