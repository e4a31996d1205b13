"""Episodes: what is drawn, how often, from what data, and that a stream can be resumed."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from math import comb, factorial, pi

import pytest
import torch
from torch.utils.data import TensorDataset

from fastmaml.episodes import Batch, Episodes, EpisodeSampler, digits, sinusoid
from fastmaml.episodes.digits import load as load_digits
from fastmaml.episodes.sampler import draw

# Classes of different sizes, their examples in no order; an input is its own index.
SIZES = {3: 6, -1: 9, 10: 5, 7: 40}
LABELS = torch.cat([torch.full((n,), c) for c, n in SIZES.items()])
LABELS = LABELS[torch.randperm(60, generator=torch.Generator().manual_seed(1))]
INPUTS = torch.arange(60)
NUMBERS = {"ways": 3, "shots": 2, "queries": 3, "tasks": 4}


def indexes(**numbers) -> EpisodeSampler:
    return EpisodeSampler((INPUTS, LABELS), **(NUMBERS | numbers))


# ---------------------------------------------------------------- Batch and Episodes


def test_episodes_know_their_tasks():
    batch = Batch({"a": torch.ones(3, 4, 2), "b": torch.ones(3, 4)}, torch.zeros(3, 4).long())
    episodes = Episodes(batch, batch)
    assert episodes.tasks == len(episodes) == len(list(episodes)) == 3
    assert episodes[1:].tasks == 2
    assert episodes[-1].support.inputs["a"].shape == (1, 4, 2)
    half = episodes.to(torch.float16)
    assert half.query.inputs["b"].dtype == torch.float16
    assert half.query.targets.dtype == torch.int64
    with pytest.raises(IndexError):
        episodes[3]


def batch(inputs=(2, 4, 1), targets=(2, 4)) -> Batch:
    return Batch(torch.zeros(inputs), torch.zeros(targets))


@pytest.mark.parametrize(
    ("support", "message"),
    [
        (batch(inputs=(4,)), r"support.inputs has shape \[4\]; it needs the dimensions"),
        (batch(targets=(2,)), r"support.targets has shape \[2\]"),
        (batch((2, 0, 1), (2, 0)), r"support.inputs is empty: its shape is \[2, 0, 1\]"),
        (batch((0, 4), (0, 4)), "support.inputs is empty"),
        (batch(targets=(3, 4)), r"numbers of tasks: \[2, 3\]"),
        (batch(targets=(2, 5)), "support.inputs has 4 examples a task and support.targets 5"),
        (batch((3, 4), (3, 4)), r"support and query hold different numbers of tasks: \[2, 3\]"),
        (Batch((), torch.zeros(2, 4)), "support.inputs holds no tensor"),
        (Batch((torch.ones(2, 4), torch.ones(1, 4)), torch.ones(2, 4)), r"tasks: \[1, 2\]"),
        ((torch.ones(2, 4), torch.ones(2, 4)), "support is a tuple; give a Batch"),
    ],
)
def test_episodes_of_wrong_sizes_are_refused(support, message):
    with pytest.raises(ValueError, match=message):
        Episodes(support, batch())


# ---------------------------------------------------------------- what is drawn


def test_shapes_labels_and_disjoint_support_and_query():
    for episodes in islice(indexes(), 50):
        support, query = episodes.support, episodes.query
        assert support.inputs.shape == support.targets.shape == (4, 3 * 2)
        assert query.inputs.shape == query.targets.shape == (4, 3 * 3)
        assert support.targets.dtype == query.targets.dtype == torch.int64
        inputs = torch.cat([support.inputs, query.inputs], 1)
        targets = torch.cat([support.targets, query.targets], 1)
        for x, y in zip(inputs, targets, strict=True):
            assert len(x.unique()) == 15  # nothing twice, so support and query are disjoint
            pairs = {(int(a), int(LABELS[i])) for a, i in zip(y, x, strict=True)}
            assert sorted(a for a, _ in pairs) == [0, 1, 2]
            assert len({c for _, c in pairs}) == 3


def test_all_examples_of_a_class_may_be_used_up():
    sampler = indexes(ways=4, shots=1, queries=4)  # class 10 has just these five
    episodes = sampler.sample()
    drawn = torch.cat([episodes.support.inputs, episodes.query.inputs], 1)
    for x in drawn:
        assert set((LABELS == 10).nonzero().flatten().tolist()) <= set(x.tolist())


def chi_square(counts: list[int]) -> float:
    """Standard deviations from the expectation of Pearson's statistic, for equal chances."""
    mean, freedom = sum(counts) / len(counts), len(counts) - 1
    statistic = sum((n - mean) ** 2 / mean for n in counts)
    return (statistic - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize(("n", "k"), [(7, 3), (4, 4), (6, 1), (60, 2)])
def test_every_ordered_draw_is_equally_likely(n, k):
    arrangements = comb(n, k) * factorial(k)
    draws = draw(torch.full((arrangements * 40,), n), k, torch.Generator().manual_seed(0))
    assert draws.min() == 0
    assert draws.max() == n - 1
    counts = Counter(map(tuple, draws.tolist()))
    assert all(len(set(numbers)) == k for numbers in counts)
    assert abs(chi_square([*counts.values(), *[0] * (arrangements - len(counts))])) < 4


def test_draws_from_classes_of_different_sizes_stay_inside_each():
    sizes = torch.tensor([2, 5, 1000]).repeat(5000, 1)
    draws = draw(sizes, 2, torch.Generator().manual_seed(0))
    assert draws.shape == (5000, 3, 2)
    assert draws.amin((0, 2)).tolist()[:2] == [0, 0]
    assert draws.amax((0, 2)).tolist()[:2] == [1, 4]
    assert (draws < sizes.unsqueeze(-1)).all()
    thousand = draws[:, 2].flatten().div(100, rounding_mode="floor")
    assert abs(chi_square(torch.bincount(thousand, minlength=10).tolist())) < 4


def test_classes_labels_and_examples_are_uniform():
    sampler = indexes(ways=2, shots=1, queries=1, tasks=20_000)
    support = sampler.sample().support
    classes = LABELS[support.inputs]
    for label in (0, 1):
        counts = Counter(classes[:, label].tolist())
        assert set(counts) == set(SIZES)
        assert abs(chi_square(list(counts.values()))) < 4
    for name, count in SIZES.items():
        seen = Counter(support.inputs[classes == name].tolist())
        assert len(seen) == count
        assert abs(chi_square(list(seen.values()))) < 4


def test_same_seed_same_episodes_whatever_the_global_generator_does():
    torch.manual_seed(0)
    first = indexes(seed=5).sample()
    torch.manual_seed(1)
    torch.rand(3)
    assert same(first, indexes(seed=5).sample())
    assert not same(first, indexes(seed=6).sample())


def same(a: Episodes, b: Episodes) -> bool:
    left = a.support.tensors() + a.query.tensors()
    right = b.support.tensors() + b.query.tensors()
    return all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


SOURCES = {"sampler": indexes, "digits": digits, "sinusoid": sinusoid}


@pytest.mark.parametrize("name", SOURCES)
def test_a_resumed_stream_continues_bit_for_bit(name):
    source = SOURCES[name]()
    for _ in range(3):
        source.sample()
    state = {k: v.clone() for k, v in source.state_dict().items()}
    ahead = list(islice(source, 3))
    resumed = SOURCES[name](seed=99)
    resumed.load_state_dict(state)
    assert all(same(a, b) for a, b in zip(ahead, resumed, strict=False))
    assert not same(ahead[0], ahead[1])
    for bad in ({}, {"generator": state["generator"][:16]}):
        with pytest.raises(ValueError, match="no state of an episode source on cpu"):
            resumed.load_state_dict(bad)


# ---------------------------------------------------------------- from what data


def test_inputs_may_be_a_tree_and_are_transformed():
    data = ({"a": INPUTS, "b": (INPUTS.to(torch.uint8).view(-1, 1, 1),)}, LABELS)
    sampler = EpisodeSampler(data, **NUMBERS, transform=lambda t: (t["a"], t["b"][0].float() / 2))
    a, b = sampler.sample().query.inputs
    assert (a.shape, b.shape) == ((4, 9), (4, 9, 1, 1))
    assert torch.equal(a / 2, b.flatten(1))
    assert sampler.classes == 4
    assert repr(sampler) == (
        "EpisodeSampler(ways=3, shots=2, queries=3, tasks=4, classes=4, examples=60, device='cpu')"
    )


class Table:
    """The part of datasets.Dataset that is used."""

    def __init__(self, columns: dict) -> None:
        self.columns, self.column_names = columns, list(columns)

    def select_columns(self, names):
        return Table({name: self.columns[name] for name in names})

    def with_format(self, kind):
        assert kind == "torch"
        return self

    def __getitem__(self, rows):
        return {name: column[rows] for name, column in self.columns.items()}


def test_every_kind_of_data_gives_the_same_episodes():
    expected = indexes().sample()
    items = [(x, int(y)) for x, y in zip(INPUTS, LABELS, strict=True)]
    table = Table({"label": LABELS, "x": INPUTS, "text": [""] * 60})
    for data, columns in [
        (TensorDataset(INPUTS, LABELS), {}),
        (items, {}),
        ((INPUTS.numpy(), LABELS.numpy()), {}),
        (table, {"inputs": "x"}),
        (table.select_columns(["x", "label"]), {}),
    ]:
        assert same(expected, EpisodeSampler(data, **NUMBERS, **columns).sample())
    table = Table({"ids": INPUTS, "mask": INPUTS, "kind": LABELS})
    episodes = EpisodeSampler(table, **NUMBERS, labels="kind").sample()
    assert torch.equal(episodes.support.inputs["mask"], expected.support.inputs)


def test_a_real_datasets_dataset():
    datasets = pytest.importorskip("datasets")
    columns = {"x": INPUTS.tolist(), "label": LABELS.tolist(), "text": ["a"] * 60}
    table = datasets.Dataset.from_dict(columns)
    assert same(indexes().sample(), EpisodeSampler(table, **NUMBERS, inputs="x").sample())
    with pytest.raises(ValueError, match="column 'text' is not a column of numbers"):
        EpisodeSampler(table, **NUMBERS)
    with pytest.raises(ValueError, match=r"give one datasets\.Dataset"):
        EpisodeSampler(datasets.DatasetDict(train=table), **NUMBERS)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"ways": 5}, "ways=5, but the data has 4 classes"),
        ({"queries": 4}, r"class 10 has 5 examples, but .* shots=2 \+ queries=4 = 6 of a class"),
        ({"shots": 9, "queries": None}, "class -1 has 9 examples .2 more classes are too small"),
        ({"ways": 0}, "ways=0: give a positive integer"),
        ({"shots": -1}, "shots=-1"),
        ({"queries": 0}, "queries=0"),
        ({"tasks": 2.5}, "tasks=2.5"),
        ({"labels": "y"}, "choose columns of a datasets.Dataset"),
    ],
)
def test_impossible_episodes_are_refused_at_once(numbers, message):
    with pytest.raises(ValueError, match=message):
        indexes(**numbers)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((INPUTS, LABELS, LABELS), "a tuple of 3"),
        ((INPUTS[1:], LABELS), r"inputs has shape \[59\], but there are 60 labels"),
        ((INPUTS, LABELS.float()), r"labels is a torch.float32 tensor of shape \[60\]"),
        ((INPUTS, LABELS.view(30, 2)), r"tensor of shape \[30, 2\]"),
        (({}, LABELS), "inputs holds no tensor"),
        ((torch.tensor(1), LABELS), r"inputs has shape \[\]"),
        ((["a"] * 60, LABELS), "inputs holds a str"),
        (iter([1]), "data is a list_iterator; give a tuple"),
        ([], "the dataset is empty"),
        ([1, 2], r"item 0 of the dataset is no \(x, y\)"),
        ([(INPUTS, 0), (INPUTS[1:], 0)], r"differ in shape: \(59,\) and \(60,\)"),
        ([(INPUTS, 0), ((INPUTS,), 0)], "items 0 and 1 of the dataset differ in structure"),
        ([(INPUTS, 0.5)], "the label of item 0 of the dataset is 0.5"),
        ([(object(), 0)], "the input of item 0 holds a object"),
        (Table({"x": INPUTS, "y": LABELS}), "labels=None .* from the dataset's columns"),
        (Table({"label": LABELS}), r"inputs=\[\]"),
        (Table({"text": ["a"] * 60, "label": LABELS}), "column 'text' is not a column of numbers"),
    ],
)
def test_unusable_data_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(data, **NUMBERS)


# ---------------------------------------------------------------- digits and sinusoids


def test_the_digits_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = load_digits()
    expected = datasets.load_digits()
    assert torch.equal(images.double(), torch.from_numpy(expected.images))
    assert torch.equal(labels, torch.from_numpy(expected.target))


def test_digit_splits_are_disjoint_by_digit_and_pixels():
    images, labels = load_digits()
    known = {}
    for image, y in zip(images, labels.tolist(), strict=True):
        known[image.numpy().tobytes()] = (y, 0)
        known[image.rot90().numpy().tobytes()] = (y, 90)
    assert len(known) == 2 * 1797  # no image occurs twice, so an image tells its class
    for split, own in {"train": {0, 1, 2, 3}, "validation": {4, 5, 6}, "test": {7, 8, 9}}.items():
        sampler = digits(split=split, queries=3, tasks=50)
        assert sampler.classes == 2 * len(own)
        episodes = sampler.sample()
        inputs = torch.cat([episodes.support.inputs, episodes.query.inputs], 1)
        targets = torch.cat([episodes.support.targets, episodes.query.targets], 1)
        assert inputs.shape == (50, 20, 1, 8, 8)
        assert inputs.dtype == torch.float32
        assert (inputs.amin(), inputs.amax()) == (0, 1)
        seen = set()
        for task, own_labels in zip((inputs * 16).to(torch.uint8), targets.tolist(), strict=True):
            classes = [known[image.numpy().tobytes()] for image in task]
            assert len(set(zip(classes, own_labels, strict=True))) == 5
            seen |= set(classes)
        assert seen == {(digit, turn) for digit in own for turn in (0, 90)}
    with pytest.raises(ValueError, match="'dev' is unknown; choose one of train, validation, test"):
        digits(split="dev")


def test_sinusoids_are_those_of_the_paper():
    episodes = sinusoid(shots=5, queries=3, tasks=2000).sample()
    assert episodes.support.inputs.shape == episodes.support.targets.shape == (2000, 5, 1)
    assert episodes.query.inputs.shape == episodes.query.targets.shape == (2000, 3, 1)
    x = torch.cat([episodes.support.inputs, episodes.query.inputs], 1)
    y = torch.cat([episodes.support.targets, episodes.query.targets], 1)
    assert x.dtype == y.dtype == torch.float32
    assert -5 <= x.min() < -4.99
    assert 4.99 < x.max() <= 5
    # y = a sin x + b cos x with a = A cos(phase) and b = -A sin(phase), found by least squares.
    basis = torch.cat([x.sin(), x.cos()], -1).double()
    a, b = torch.linalg.lstsq(basis, y.double()).solution.squeeze(-1).unbind(-1)
    assert (basis @ torch.stack([a, b], -1).unsqueeze(-1) - y).abs().max() < 1e-4
    amplitude, phase = torch.hypot(a, b), torch.atan2(-b, a)
    assert 0.099 < amplitude.min() < 0.12
    assert 4.98 < amplitude.max() < 5.001
    assert amplitude.mean().item() == pytest.approx(2.55, abs=0.1)
    assert -1e-3 < phase.min() < 0.01
    assert pi - 0.01 < phase.max() < pi + 1e-3
    assert repr(sinusoid()) == "Sinusoid(shots=10, queries=10, tasks=25, device='cpu')"
    with pytest.raises(ValueError, match="tasks=0"):
        sinusoid(tasks=0)
