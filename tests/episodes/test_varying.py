"""Ways and shots that vary, supports of unequal classes, and augmentations of each example."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

import fastmaml as fm
from fastmaml.episodes import MetaDatasetShots
from fastmaml.episodes.imbalance import different


def numbered(classes: int = 12, examples: int = 30) -> tuple[Tensor, Tensor]:
    """Inputs ``[n, 2]``: the class, and the example's own number."""
    labels = torch.arange(classes).repeat_interleave(examples)
    return torch.stack([labels, torch.arange(len(labels))], 1), labels


def check(episodes: fm.Episodes, ways: int) -> None:
    """Each label stands for one class of a task, and no example comes twice."""
    inputs = torch.cat([episodes.support.inputs, episodes.query.inputs], 1)
    targets = torch.cat([episodes.support.targets, episodes.query.targets], 1)
    for own, labels in zip(inputs, targets, strict=True):
        pairs = set(zip(own[:, 0].tolist(), labels.tolist(), strict=True))
        assert len(pairs) == ways
        assert {label for _, label in pairs} == set(range(ways))
        assert len(set(own[:, 1].tolist())) == len(own)


def test_ways_and_shots_of_a_range() -> None:
    sampler = fm.EpisodeSampler(numbered(), ways=(2, 4), shots=(1, 3), queries=2, tasks=3)
    seen = set()
    for _ in range(60):
        episodes = sampler.sample()
        ways = int(episodes.support.targets.max()) + 1
        shots = episodes.support.targets.shape[1] // ways
        assert episodes.support.inputs.shape == (3, ways * shots, 2)
        assert episodes.query.inputs.shape == (3, ways * 2, 2)
        check(episodes, ways)
        seen.add((ways, shots))
    assert seen == {(w, s) for w in (2, 3, 4) for s in (1, 2, 3)}


def test_queries_follow_shots_of_a_range() -> None:
    sampler = fm.EpisodeSampler(numbered(), ways=2, shots=(1, 5), tasks=2)
    for _ in range(10):
        episodes = sampler.sample()
        assert episodes.query.targets.shape == episodes.support.targets.shape


def test_one_number_draws_what_it_always_drew() -> None:
    sampler = fm.EpisodeSampler(numbered(), ways=3, shots=1, queries=2, tasks=2, seed=3)
    first = sampler.sample().support.inputs[..., 1]
    assert first.tolist() == EARLIER


EARLIER = [[18, 196, 48], [198, 219, 339]]
"""Of the sampler before ways and shots could vary."""


def test_meta_dataset_shots() -> None:
    sampler = fm.EpisodeSampler(numbered(), ways=(3, 8), shots="meta-dataset", tasks=4)
    totals, orders = set(), set()
    for _ in range(40):
        episodes = sampler.sample()
        ways = int(episodes.query.targets.max()) + 1
        check(episodes, ways)
        queries = episodes.query.targets.shape[1] // ways
        assert queries == 10  # of 30
        counts = torch.stack([row.bincount(minlength=ways) for row in episodes.support.targets])
        assert torch.equal(*(counts.sort(1).values[[0, k]] for k in (0, 3)))  # alike in all tasks
        assert (counts >= 1).all()
        assert (counts <= 20).all()
        assert (torch.stack([r.bincount() for r in episodes.query.targets]) == queries).all()
        totals.add(episodes.support.targets.shape[1])
        orders |= {tuple(row.tolist()) for row in counts}
    assert len(totals) > 20
    assert len(orders) > 60  # which class has how many is each task's own


def test_the_numbers_of_meta_dataset() -> None:
    """As section 3.2 of the paper has them, with its own names."""
    generator = torch.Generator().manual_seed(0)
    sizes, rule = [600, 40, 25, 12], MetaDatasetShots()
    for _ in range(200):
        state = generator.get_state()
        shots, queries = rule.numbers(sizes, None, generator)
        generator.set_state(state)
        draws = torch.rand(5, generator=generator).tolist()
        assert queries == 6
        beta = 1 - draws[0]
        total = min(500, sum(math.ceil(beta * min(100, size - 6)) for size in sizes))
        alpha = [math.log(0.5) + x * (math.log(2) - math.log(0.5)) for x in draws[1:]]
        weights = [math.exp(a) * size for a, size in zip(alpha, sizes, strict=True)]
        wanted = [
            min(math.floor(weight / sum(weights) * (total - 4)) + 1, size - 6)
            for weight, size in zip(weights, sizes, strict=True)
        ]
        assert shots == wanted


def test_meta_dataset_shots_of_unequal_classes() -> None:
    labels = torch.arange(6).repeat_interleave(torch.tensor([2, 3, 5, 8, 30, 100]))
    data = torch.stack([labels, torch.arange(len(labels))], 1), labels
    sampler = fm.EpisodeSampler(data, ways=4, shots=MetaDatasetShots(support=40), tasks=5)
    for _ in range(30):
        episodes = sampler.sample()
        check(episodes, 4)
        assert episodes.support.targets.shape[1] <= 40
    fixed = fm.EpisodeSampler(data, ways=4, shots="meta-dataset", queries=1, tasks=5)
    assert fixed.sample().query.targets.shape == (5, 4)


def test_different_numbers() -> None:
    counts = torch.tensor([[3, 7], [5, 4]])
    generator = torch.Generator().manual_seed(0)
    seen: list[set[tuple[int, ...]]] = [set(), set(), set(), set()]
    for _ in range(400):
        found = different(counts, 3, generator)
        for rows, count, own in zip(found.flatten(0, 1), counts.flatten(), seen, strict=True):
            assert len(set(rows.tolist())) == 3
            assert int(rows.max()) < count
            own.add(tuple(rows.tolist()))
    assert len(seen[0]) == 6  # every order


@pytest.mark.parametrize("shots", [(1, 4), "meta-dataset"])
def test_a_varying_stream_resumes(shots: Any) -> None:
    settings: dict[str, Any] = {"ways": (2, 5), "shots": shots}
    sampler = fm.EpisodeSampler(numbered(), **settings, tasks=2)
    sampler.sample()
    state = sampler.state_dict()
    wanted = [sampler.sample() for _ in range(4)]
    other = fm.EpisodeSampler(numbered(), **settings, tasks=2, seed=9)
    other.load_state_dict(state)
    for one in wanted:
        again = other.sample()
        assert torch.equal(one.support.inputs, again.support.inputs)
        assert torch.equal(one.query.targets, again.query.targets)


def test_models_have_as_many_outputs_as_the_largest_number_of_ways() -> None:
    inputs, labels = torch.randn(120, 4), torch.arange(120) % 8
    sampler = fm.EpisodeSampler((inputs, labels), ways=(2, 6), shots="meta-dataset", tasks=3)
    maml = fm.MAML(fm.models.mlp(4, 6), lr=0.1, steps=2, loss=torch.nn.functional.cross_entropy)
    plain = fm.MAML(
        maml.module, lr=0.1, steps=2, loss=torch.nn.functional.cross_entropy, executor="eager"
    )
    for _ in range(6):
        episodes = sampler.sample()
        grads = []
        for one in (maml, plain):
            one.zero_grad()
            one(episodes).loss.backward()
            grads.append([p.grad.clone() for p in one.parameters() if p.grad is not None])
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ways": (5, 2)}, r"ways=\(5, 2\): give the smallest first, \(2, 5\)"),
        ({"ways": (2, 13)}, r"ways=\(2, 13\), but the data has 12 classes"),
        ({"ways": (2, 3, 4)}, "give a number, or the smallest and the largest"),
        ({"ways": (0, 3)}, r"ways=\(0, 3\): give two positive integers"),
        ({"shots": (1, 30)}, r"takes shots=30 \+ queries=2 = 32"),
        ({"shots": "many"}, "shots='many': give a positive integer"),
        ({"shots": "meta-dataset", "queries": 30}, "needs 31 of each class"),
        ({"augment": 3}, "augment=3: give names such as"),
        ({"augment": "flip,"}, "augment='flip,' has ''"),
    ],
)
def test_refusals(settings: dict[str, Any], said: str) -> None:
    given = {"ways": 2, "shots": 1, "queries": 2, "tasks": 2} | settings
    with pytest.raises(ValueError, match=said):
        fm.EpisodeSampler(numbered(), **given)


IMAGES = torch.arange(40 * 3 * 8 * 8).remainder(251).to(torch.uint8).view(40, 3, 8, 8)
FEW: dict[str, Any] = {"ways": 2, "shots": 4, "queries": 4, "tasks": 3}


def same_images(augment: Any) -> fm.Episodes:
    """Of 40 copies of one image."""
    data = IMAGES[:1].expand(40, -1, -1, -1), torch.arange(40) % 4
    return fm.EpisodeSampler(data, augment=augment, **FEW).sample()


def noisy(image: Tensor) -> Tensor:
    assert image.shape == (3, 8, 8)
    return image.roll(random.randrange(8), -1) + torch.randint(0, 3, (), dtype=torch.uint8)


@pytest.mark.parametrize("augment", ["crop", "jitter", noisy])
def test_each_example_has_draws_of_its_own(augment: Any) -> None:
    episodes = same_images(augment)
    for batch in (episodes.support, episodes.query):
        flat = batch.inputs.flatten(0, 1).flatten(1)
        assert flat.dtype == torch.uint8
        assert len(flat.unique(dim=0)) >= 5


def test_a_transform_draws_once_for_a_set() -> None:
    """What `augment` is for."""
    data = torch.zeros(40, 1), torch.arange(40) % 4
    once = fm.EpisodeSampler(data, transform=lambda x: x + torch.rand(()), **FEW).sample()
    assert len(once.support.inputs.unique()) == 1
    each = fm.EpisodeSampler(data, augment=lambda x: x + torch.rand(()), **FEW).sample()
    assert len(each.support.inputs.unique()) == 24


def test_flips_and_turns_are_half_and_quarters() -> None:
    image = IMAGES[0]
    flips = same_images("flip").support.inputs.flatten(0, 1)
    flipped = [torch.equal(x, image.flip(-1)) for x in flips]
    assert all(f or torch.equal(x, image) for f, x in zip(flipped, flips, strict=True))
    assert 0 < sum(flipped) < len(flips)
    turns = same_images("rotate").support.inputs.flatten(0, 1)
    known = torch.stack([image.rot90(k, (-2, -1)) for k in range(4)])
    found = [(known == x).flatten(1).all(1).nonzero().flatten().tolist() for x in turns]
    assert {k for one in found for k in one} == {0, 1, 2, 3}


def test_crops_are_shifts_with_the_edge_repeated() -> None:
    image = IMAGES[0]
    padded = torch.nn.functional.pad(image[None].float(), (1, 1, 1, 1), mode="replicate")[0]
    windows = [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    crops = same_images("crop").support.inputs.flatten(0, 1)
    which = [[bool((w == crop).all()) for w in windows] for crop in crops]
    assert all(sum(one) == 1 for one in which)


def test_jitter_keeps_grey_grey_and_black_black() -> None:
    grey = torch.full((40, 3, 8, 8), 100, dtype=torch.uint8), torch.arange(40) % 4
    found = fm.EpisodeSampler(grey, augment="jitter", **FEW).sample().support.inputs
    assert (found == found[:, :, :1, :1, :1]).all()
    assert found.min() >= 60
    assert found.max() <= 140
    black = torch.zeros_like(grey[0]), grey[1]
    assert fm.EpisodeSampler(black, augment="jitter", **FEW).sample().support.inputs.max() == 0


def test_augmentations_that_cannot_be() -> None:
    vectors = torch.zeros(40, 3), torch.arange(40) % 4
    with pytest.raises(ValueError, match=r"augment='flip' is for images, uint8 .* torch.float32"):
        fm.EpisodeSampler(vectors, augment="flip", **FEW).sample()
    sizes = iter(range(1, 100))
    with pytest.raises(ValueError, match=r"of the shapes \[1\] and \[2\]"):
        fm.EpisodeSampler(vectors, augment=lambda x: x.new_zeros(next(sizes)), **FEW).sample()
    with pytest.raises(ValueError, match="augment gives a str"):
        fm.EpisodeSampler(vectors, augment=lambda x: "ab", **FEW).sample()


def test_pytrees_are_augmented_as_the_model_gets_them() -> None:
    data = {"a": torch.zeros(40, 3), "b": torch.ones(40)}, torch.arange(40) % 4
    episodes = fm.EpisodeSampler(
        data, augment=lambda x: {"a": x["a"] + torch.rand(3), "b": x["b"]}, **FEW
    ).sample()
    assert episodes.support.inputs["a"].shape == (3, 8, 3)
    assert len(episodes.support.inputs["a"].unique()) == 72
    assert (episodes.support.inputs["b"] == 1).all()
