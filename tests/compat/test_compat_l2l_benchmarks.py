"""learn2learn's benchmarks by name, and the augmentation of Lee et al. 2019."""

from __future__ import annotations

import inspect
import pickle
import random
from pathlib import Path
from typing import Any

import image_files as files
import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

import fastmaml.compat.learn2learn as l2l
from fastmaml.compat.learn2learn.data import transforms as T
from fastmaml.compat.learn2learn.vision.benchmarks import lee2019 as augmentation
from fastmaml.compat.learn2learn.vision.benchmarks.lee2019 import MEAN, STD, Lee2019

benchmarks = l2l.vision.benchmarks
NAMES = {"mini-imagenet": "MiniImagenet", "tiered-imagenet": "TieredImagenet"}


def pixels(seed: int = 0) -> numpy.ndarray:
    """Random ones, ``[84, 84, 3]``."""
    return numpy.random.default_rng(seed).integers(0, 256, (84, 84, 3), dtype="uint8")


def numbers(picture: Any) -> Tensor:
    """From 0 to 255, ``[height, width, 3]``."""
    return torch.from_numpy(numpy.array(picture)).float()


def test_a_crop_is_of_the_padded_image() -> None:
    image = pixels()
    padded = numpy.pad(image, ((8, 8), (8, 8), (0, 0)))
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        cropped = numpy.array(augmentation._crop(Image.fromarray(image)))
        torch.manual_seed(seed)
        upper, left = (int(torch.randint(17, (1,))) for _ in range(2))
        assert (cropped == padded[upper : upper + 84, left : left + 84]).all()
        seen |= {upper, left}
    assert {0, 16} <= seen


@pytest.mark.parametrize("seed", range(12))
def test_colours_are_jittered_by_their_formulas(seed: int) -> None:
    image = Image.fromarray(pixels(seed))
    torch.manual_seed(seed)
    result = numbers(augmentation._jitter(image))
    torch.manual_seed(seed)
    order = torch.randperm(4).tolist()
    factors = [torch.empty(1).uniform_(0.6, 1.4).item() for _ in range(3)]
    x = numbers(image)
    for i in order:
        if i == 3:
            continue
        grey = (x @ torch.tensor([0.299, 0.587, 0.114])).unsqueeze(-1)
        towards = (torch.zeros(1), grey.mean(), grey)[i]
        x = (factors[i] * x + (1 - factors[i]) * towards).clamp(0, 255)
    # each of the three cuts to whole levels, which the next ones make 1.4 times as much
    assert (result - x).abs().max() <= 1 + 1.4 + 1.4**2


def test_an_image_is_mirrored_every_other_time() -> None:
    image = Image.fromarray(pixels())
    torch.manual_seed(0)
    drawn = [augmentation._flip(image) for _ in range(200)]
    turned = [bool((numpy.array(d) == pixels()[:, ::-1]).all()) for d in drawn]
    assert all(t or d is image for t, d in zip(turned, drawn, strict=True))
    assert 70 < sum(turned) < 130


def test_pictures_and_tensors_of_both_scales_are_alike() -> None:
    image = pixels()
    tensor = torch.from_numpy(image).permute(2, 0, 1).float()
    for training in (True, False):
        results = []
        for x, largest in ((Image.fromarray(image), 1), (tensor / 255, 1), (tensor, 255)):
            torch.manual_seed(3)
            results.append(pickle.loads(pickle.dumps(Lee2019(training, largest)))(x))
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])
    torch.testing.assert_close(results[0], (tensor / 255 - MEAN) / STD)
    assert MEAN.mul(255).flatten().tolist() == pytest.approx([120.396, 115.594, 104.540], abs=1e-3)
    assert STD.mul(255).flatten().tolist() == pytest.approx([70.682, 68.276, 72.545], abs=1e-3)


def test_the_same_as_torchvision() -> None:
    there = pytest.importorskip("torchvision.transforms")
    augment = there.Compose(
        [
            there.RandomCrop(84, padding=8),
            there.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
            there.RandomHorizontalFlip(),
            there.ToTensor(),
            there.Normalize(MEAN.flatten().tolist(), STD.flatten().tolist()),
        ]
    )
    for seed in range(20):
        image = Image.fromarray(pixels(seed))
        torch.manual_seed(seed)
        expected = augment(image), torch.rand(1)
        torch.manual_seed(seed)
        torch.testing.assert_close((Lee2019(training=True)(image), torch.rand(1)), expected)


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("name", NAMES)
def test_images_are_drawn_anew_whenever_they_are_read(
    name: str, device: str | None, tmp_path: Path
) -> None:
    files.write_benchmarks(tmp_path)
    get = benchmarks.get_tasksets
    torch.manual_seed(0)
    state = torch.get_rng_state()
    sets = get(name, 2, 3, 2, 3, 1, tmp_path, device, data_augmentation="lee2019")
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn and kept
    first, again = sets.train[0][0], sets.train[0][0]
    assert first.shape == (6, 3, 84, 84)
    assert not torch.equal(first, again)
    assert len({x.sum().item() for x in first}) > 2  # images of a class are drawn one by one
    for taskset in sets[1:]:
        x, _ = taskset[0]
        assert torch.equal(x, taskset[0][0])
        greys = x.mul(STD).add(MEAN).mul(255).flatten(1).mean(1)
        torch.testing.assert_close(greys.sort().values, torch.tensor([51.0] * 3 + [255.0] * 3))
    # white stays nearly white in training; learn2learn's miniImageNet turns into its negative there
    light = sorted((first * STD + MEAN).amax((1, 2, 3)).tolist())
    assert light[-1] > 0.59
    assert light[0] < 0.41


def test_the_functions_of_the_benchmarks(tmp_path: Path) -> None:
    files.write_benchmarks(tmp_path)
    for name in benchmarks.list_tasksets():
        function = getattr(benchmarks, f"{name.replace('-', '_')}_tasksets")
        module = f"fastmaml.compat.learn2learn.vision.benchmarks.{name.replace('-', '_')}_benchmark"
        assert function.__module__ == module  # scripts import it by its full name
        assert list(inspect.signature(function).parameters)[:5] == [
            "train_ways",
            "train_samples",
            "test_ways",
            "test_samples",
            "root",
        ]
    datasets, transforms = benchmarks.cifarfs_tasksets(2, 3, 2, 1, root=tmp_path)
    assert [type(d) for d in datasets] == [l2l.data.MetaDataset] * 3
    names = [[type(t).__name__ for t in steps] for steps in transforms]
    start = ["NWays", "KShots", "LoadData"]
    assert names[0] == names[2] == [*start, "RemapLabels", "ConsecutiveLabels"]
    assert names[1] == [*start, "ConsecutiveLabels", "RemapLabels"]
    random.seed(5)
    x, y = l2l.data.Taskset(datasets[0], transforms[0]).sample()
    random.seed(5)
    same_x, same_y = benchmarks.get_tasksets("cifarfs", 2, 3, 2, 1, root=tmp_path).train.sample()
    assert torch.equal(x, same_x)
    assert torch.equal(y, same_y)
    assert [d[0][0].max() for d in benchmarks.mini_imagenet_tasksets(root=tmp_path)[0]] == [51] * 3
    with pytest.raises(TypeError, match="num_tasks"):
        benchmarks.fc100_tasksets(root=tmp_path, num_tasks=3)


def test_omniglot_s_function(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(1623, 1, 1, 2, 2)
    module: Any = inspect.getmodule(benchmarks.omniglot_tasksets)

    def few(root: Any, download: bool) -> Any:
        assert download
        data = torch.utils.data.TensorDataset(images.flatten(0, 1), torch.arange(1623))
        data.transform = None
        return data

    monkeypatch.setattr(module, "FullOmniglot", few)
    for device in (None, "cpu"):
        random.seed(2)
        datasets, transforms = benchmarks.omniglot_tasksets(5, 1, 7, 1, "here", device)
        assert [len(d) for d in datasets] == [1100, 100, 423]
        assert [type(s[0]) for s in transforms] == [T.FusedNWaysKShots] * 3
        assert [s[0].n for s in transforms] == [5, 7, 7]
        for data, steps in zip(datasets, transforms, strict=True):
            x, y = l2l.data.Taskset(data, steps).sample()
            assert len(x) == len(y) == steps[0].n
