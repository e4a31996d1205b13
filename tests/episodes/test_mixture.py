"""Episodes whose tasks are data sets: what is drawn, how often, and what it is called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import fastmaml as fm
from fastmaml.episodes import InTurn, Mixture, NamedEpisodes, TextTask
from fastmaml.episodes.text_task import LabelledText
from fastmaml.episodes.tokens import Tokens

SIZES = {"two": 300, "three": 90, "value": 48}


def numbered(first: int, count: int) -> Tokens:
    """One text a number: the token is the number."""
    ids = torch.arange(first, first + count, dtype=torch.int32)
    return Tokens(ids, None, torch.arange(count + 1), pad=-1, max_length=4)


def part(first: int, count: int, classes: int) -> LabelledText:
    """A text's class is its number modulo the classes; twice as many of the last class."""
    number = torch.arange(count)
    if classes == 1:
        return LabelledText(numbered(first, count), number.float() / count)
    return LabelledText(numbered(first, count), (number % (classes + 1)).clamp(max=classes - 1))


def data_sets(apart: bool = False) -> list[TextTask]:
    """Texts of "two" are 0 to 299, those of "three" 1000, ..., query texts 500 more."""
    found = []
    for i, (name, classes) in enumerate({"two": 2, "three": 3, "value": 1}.items()):
        other = part(1000 * i + 500, 60, classes) if apart else None
        found.append(TextTask(name, classes, part(1000 * i, SIZES[name], classes), other))
    return found


def mixture(apart: bool = False, **changes: Any) -> Mixture:
    return Mixture(data_sets(apart), **{"support": 8, "query": 5, "tasks": 6} | changes)


def numbers(batch: fm.Batch) -> Tensor:
    """Which texts these are."""
    return batch.inputs["input_ids"][..., 0]


def tasks(source: Mixture, batches: int = 40) -> Iterator[SimpleNamespace]:
    """The tasks of many meta-batches, one by one."""
    for episodes in islice(source, batches):
        for i, name in enumerate(episodes.names):
            parts = {
                f"{kind}_{key}": value[i]
                for kind, batch in (("support", episodes.support), ("query", episodes.query))
                for key, value in {**batch.targets, "rows": numbers(batch)}.items()
            }
            yield SimpleNamespace(name=name, **parts)


def shares(labels: Tensor) -> list[int]:
    return sorted(torch.bincount(labels).tolist())


# ---------------------------------------------------------------- what is drawn


def test_targets_say_what_each_task_is() -> None:
    episodes = mixture().sample()
    assert isinstance(episodes, NamedEpisodes)
    targets = episodes.support.targets
    shapes = {name: (tuple(x.shape), x.dtype) for name, x in targets.items()}
    assert shapes == {
        "labels": ((6, 8), torch.int64),
        "values": ((6, 8), torch.float32),
        "classes": ((6, 1), torch.int64),
    }
    seen = set()
    for task in tasks(mixture()):
        first = {"two": 0, "three": 1000, "value": 2000}[task.name]
        classes = {"two": 2, "three": 3, "value": 1}[task.name]
        for rows, labels, values, count in (
            (task.support_rows, task.support_labels, task.support_values, task.support_classes),
            (task.query_rows, task.query_labels, task.query_values, task.query_classes),
        ):
            own = rows - first
            assert count.tolist() == [classes]
            assert ((own >= 0) & (own < SIZES[task.name])).all()
            if classes == 1:
                assert torch.equal(values, own.float() / SIZES["value"])
                assert not labels.any()
            else:
                assert torch.equal(labels, (own % (classes + 1)).clamp(max=classes - 1))
                assert not values.any()
        both = torch.cat([task.support_rows, task.query_rows])
        assert len(both.unique()) == len(both) == 13
        seen.add(task.name)
    assert seen == set(SIZES)


def test_classes_are_even_and_the_larger_share_is_random() -> None:
    larger = Counter()
    for task in tasks(mixture(), 100):
        if task.name == "two":
            assert shares(task.support_labels) == [4, 4]
            assert shares(task.query_labels) == [2, 3]
        if task.name == "three":
            assert shares(task.support_labels) == [2, 3, 3]
            assert shares(task.query_labels) == [1, 2, 2]
            larger[torch.bincount(task.support_labels).argmin().item()] += 1
    assert min(larger[c] for c in range(3)) > sum(larger.values()) / 5


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("balance", ["support", "none"])
def test_natural_shares(balance: Any) -> None:
    """Of three texts of "two" two are of class 1."""
    found = [t for t in tasks(mixture(balance=balance), 150) if t.name == "two"]
    query = torch.cat([t.query_labels for t in found]).double().mean().item()
    support = torch.cat([t.support_labels for t in found]).double().mean().item()
    assert query == pytest.approx(2 / 3, abs=0.05)
    assert support == pytest.approx(1 / 2 if balance == "support" else 2 / 3, abs=0.05)
    for task in found:
        both = torch.cat([task.support_rows, task.query_rows])
        assert len(both.unique()) == 13


@pytest.mark.slow
@pytest.mark.parametrize("balance", ["both", "support", "none"])
def test_every_example_is_equally_likely_within_its_class(balance: Any) -> None:
    counts = torch.zeros(2, SIZES["two"])
    source = Mixture(data_sets()[:1], support=8, query=5, tasks=50, balance=balance)
    for task in tasks(source, 60):
        counts[0] += torch.bincount(task.support_rows, minlength=SIZES["two"])
        counts[1] += torch.bincount(task.query_rows, minlength=SIZES["two"])
    labels = data_sets()[0].support.labels
    for kind in counts:
        for label in (0, 1):
            own = kind[labels == label]
            freedom = len(own) - 1
            statistic = ((own - own.mean()) ** 2 / own.mean()).sum().item()
            assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "weights"),
    [
        ("uniform", [1, 1, 1]),
        ("proportional", [300, 90, 48]),
        ("sqrt", [300**0.5, 90**0.5, 48**0.5]),
    ],
)
def test_how_often_each_data_set_is_drawn(sampling: Any, weights: list[float]) -> None:
    drawn = Counter(t.name for t in tasks(mixture(sampling=sampling, tasks=20), 150))
    total = sum(drawn.values())
    for name, weight in zip(SIZES, weights, strict=True):
        share = weight / sum(weights)
        assert abs(drawn[name] / total - share) < 4 * (share * (1 - share) / total) ** 0.5


def test_equal_sampling_and_what_is_left() -> None:
    rest = Counter()
    for episodes in islice(mixture(sampling="equal", tasks=7), 60):
        counts = Counter(episodes.names)
        assert sorted(counts.values()) == [2, 2, 3]
        rest[counts.most_common(1)[0][0]] += 1
    assert min(rest[name] for name in SIZES) > 8


def test_query_sets_of_their_own_may_be_fixed() -> None:
    fixed = {}
    for task in tasks(mixture(apart=True, fixed_query=True, seed=3)):
        first = {"two": 500, "three": 1500, "value": 2500}[task.name]
        assert ((task.query_rows >= first) & (task.query_rows < first + 60)).all()
        assert (task.support_rows < first).all()
        fixed.setdefault(task.name, task.query_rows)
        assert torch.equal(task.query_rows, fixed[task.name])
    alone = Mixture(data_sets(apart=True)[1:2], support=8, query=5, tasks=1, fixed_query=True)
    assert torch.equal(next(tasks(alone)).query_rows, fixed["three"])  # whatever goes with it
    rows = {tuple(t.query_rows.tolist()) for t in tasks(mixture(apart=True)) if t.name == "two"}
    assert len(rows) > 10


def test_same_seed_same_episodes_and_resuming() -> None:
    def drawn(source: Mixture, count: int = 3) -> list[tuple[Any, ...]]:
        return [(e.names, numbers(e.support).tolist()) for e in islice(source, count)]

    source = mixture(seed=5)
    torch.manual_seed(1)
    assert drawn(source) == drawn(mixture(seed=5))
    assert drawn(mixture(seed=6)) != drawn(mixture(seed=5))
    state = {k: v.clone() for k, v in source.state_dict().items()}
    resumed = mixture(seed=99)
    resumed.load_state_dict(state)
    assert drawn(source, 5) == drawn(resumed, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"support": 0}, "support=0: give a positive integer"),
        ({"sampling": "size"}, "sampling='size' is unknown; choose one of uniform, proportional"),
        ({"balance": True}, "balance=True is unknown"),
        ({"support": 2}, "support=2: 'three' has 3 classes; give at least one of each"),
        ({"support": 120}, "support=120: the smallest class of 'three' has 23 .* may need 40"),
        ({"query": 150}, "query=150: the smallest class of 'three' has 23 .* may need 53"),
        ({"support": 44, "balance": "none"}, "query=5: the data set of 'value' .* may need 49"),
        ({"fixed_query": True}, "fixed_query=True, but 'two' has no query examples"),
    ],
)
def test_impossible_mixtures_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixture(**changes)


def test_impossible_data_sets_are_refused() -> None:
    for given, message in (
        ([], "give at least one, each once"),
        (data_sets()[:1] * 2, "names .'two', 'two'.: give at least one, each once"),
    ):
        with pytest.raises(ValueError, match=message):
            Mixture(given)
    for classes, labels in ((2, torch.tensor([0, 2])), (1, torch.tensor([0, 1]))):
        with pytest.raises(ValueError, match=f"from 0 to .*classes={classes}: give int64 from 0"):
            TextTask("x", classes, LabelledText(numbered(0, 2), labels))
    with pytest.raises(ValueError, match=r"labels has shape \[2\], and there are 3 texts"):
        LabelledText(numbered(0, 3), torch.tensor([0, 1]))


# ---------------------------------------------------------------- sources in turn


def few(name: str, seed: int = 0) -> fm.EpisodeSampler:
    inputs = torch.arange(40) + (100 if name == "b" else 0)
    labels = torch.arange(40) % 4
    return fm.EpisodeSampler((inputs, labels), ways=2, shots=1, tasks=3, seed=seed)


def test_sources_in_turn_and_resumed() -> None:
    source = InTurn({"a": few("a"), "b": few("b")})
    drawn = list(islice(source, 3))
    assert [e.names for e in drawn] == [("a",) * 3, ("b",) * 3, ("a",) * 3]
    assert (drawn[1].support.inputs >= 100).all()
    assert (drawn[2].support.inputs < 100).all()
    state = source.state_dict()
    ahead = list(islice(source, 4))
    resumed = InTurn({"a": few("a", 9), "b": few("b", 9)})
    resumed.load_state_dict(state)
    for a, b in zip(ahead, resumed, strict=False):
        assert a.names == b.names
        assert torch.equal(a.query.inputs, b.query.inputs)
    with pytest.raises(ValueError, match="a state of the sources a, b, and these are b"):
        InTurn({"b": few("b")}).load_state_dict(state)
    with pytest.raises(ValueError, match="sources is empty"):
        InTurn({})


def test_names_go_with_their_tasks() -> None:
    batch = few("a").sample()
    episodes = NamedEpisodes(batch.support, batch.query, ("x", "y", "z"))
    assert episodes[1:].names == ("y", "z")
    assert episodes[-1].names == ("z",)
    assert [e.names for e in episodes] == [("x",), ("y",), ("z",)]
    assert episodes.to(torch.float64).names == ("x", "y", "z")
    with pytest.raises(ValueError, match="give one for each of the 3 tasks"):
        NamedEpisodes(batch.support, batch.query, ("x",))
