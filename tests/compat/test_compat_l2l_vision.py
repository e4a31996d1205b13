"""learn2learn's networks, image data sets and benchmarks."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import write_benchmarks
from places import data_beside
from torch import nn

import fastmaml.compat.learn2learn as l2l
from fastmaml.compat.learn2learn.data import transforms as T
from fastmaml.compat.learn2learn.vision.models.resnet12 import BasicBlock, DropBlock

models = l2l.vision.models


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize(
    ("make", "parameters", "shape", "names"),
    [
        (lambda: models.OmniglotFC(784, 5), 247_621, (1, 28, 28), ["features.1.0.linear.weight"]),
        (
            models.OmniglotCNN,
            112_261,
            (1, 28, 28),
            ["base.0.conv.weight", "features.1.0.conv.bias"],
        ),
        (lambda: models.CNN4(5), 121_093, (3, 84, 84), ["features.3.normalize.running_mean"]),
        (
            lambda: models.ResNet12(5),
            12_427_525,
            (3, 84, 84),
            ["features.layer1.0.downsample.0.weight", "features.layer4.0.bn3.bias"],
        ),
    ],
)
def test_networks(make: Any, parameters: int, shape: tuple[int, ...], names: list[str]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert isinstance(model.classifier, nn.Linear)
    x = torch.randn(2, *shape)
    assert torch.equal(model(x), model.classifier(model.features(x)))
    assert model(x).shape == (2, 5)
    assert set(names) <= set(model.state_dict())


def test_the_wide_network() -> None:
    with torch.device("meta"):
        model = models.WRN28(5)
        assert model(torch.empty(2, 3, 84, 84)).shape == (2, 5)
    assert sum(p.numel() for p in model.parameters()) == 36_486_085
    assert "features.layer2.0.shortcut.0.bias" in model.state_dict()
    with torch.device("meta"):
        assert models.ResNet12(5, hidden_size=16000, avg_pool=False)(
            torch.empty(2, 3, 84, 84)
        ).shape == (2, 5)
        narrow = models.ResNet12Backbone(wider=False)
        assert narrow(torch.empty(2, 3, 84, 84)).shape == (2, 512)


def test_small_networks_take_other_sizes() -> None:
    assert models.MiniImagenetCNN is models.CNN4
    small = models.CNN4(3, hidden_size=8, layers=2, channels=1, embedding_size=8 * 49)
    assert small(torch.randn(2, 1, 112, 112)).shape == (2, 3)  # two poolings by 4
    strided = models.CNN4Backbone(hidden_size=8, channels=1, max_pool=False)
    assert strided(torch.randn(2, 1, 32, 32)).shape == (2, 8 * 4)
    assert models.OmniglotFC(10, 3, sizes=[7])(torch.randn(4, 10)).shape == (4, 3)
    weight = models.fc_init_(nn.Linear(100, 100)).weight
    assert weight.abs().max() <= 0.02
    assert 0.005 < weight.std() < 0.01
    assert (models.maml_init_(nn.Linear(4, 4)).bias == 0).all()


def test_drop_block_drops_squares_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropBlock(3)
    x = torch.ones(8, 4, 12, 12)
    y = drop(x, 0.05)
    assert y.mean().item() == pytest.approx(1, abs=1e-5)
    zero = y[0, 0] == 0
    square = torch.ones(1, 1, 3, 3)
    full = torch.nn.functional.conv2d(zero[None, None].float(), square) == 9
    inside = torch.nn.functional.conv_transpose2d(full.float(), square) > 0
    assert torch.equal(inside[0, 0], zero)  # every zero is in a square of zeros
    assert zero.any()
    assert torch.equal(drop.eval()(x, 0.05), x)
    block = BasicBlock(2, 3, drop_rate=0.1, drop_block=True, block_size=1)
    block.num_batches_tracked = 10**6
    assert block._gamma(10) == pytest.approx(0.1)
    block.num_batches_tracked = 20000
    assert block._gamma(10) == pytest.approx(0.05)


def test_pretrained_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'resnet12' for dataset='omniglot'"):
        models.get_pretrained_backbone("resnet12", "omniglot")
    with pytest.raises(FileNotFoundError, match=r"cnn4\.pth.* Fetch .*w02f5vab\.pth and put it"):
        models.get_pretrained_backbone("cnn4", "fc100", root=tmp_path, download=True)
    path = tmp_path / "pretrained_models" / "fc100" / "cnn4.pth"
    path.parent.mkdir(parents=True)
    original = models.CNN4Backbone()
    torch.save(original.state_dict(), path)
    loaded = models.get_pretrained_backbone("cnn4", "fc100", root=tmp_path)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, original.state_dict()[name])


def test_classes_are_turned_each_by_its_own_angle() -> None:
    random.seed(0)
    images = torch.arange(4.0).view(1, 1, 2, 2).repeat(30, 1, 1, 1)
    labels = torch.arange(6).repeat_interleave(5)
    meta = l2l.data.MetaDataset(torch.utils.data.TensorDataset(images, labels))
    angles = [0.0, 90.0, 180.0, 270.0]
    steps = [
        T.FusedNWaysKShots(meta, 6, 3),
        T.LoadData(meta),
        T.ConsecutiveLabels(meta),
        l2l.vision.transforms.RandomClassRotation(meta, angles),
    ]
    seen = set()
    for _ in range(5):
        x, _ = l2l.data.Taskset(meta, steps).sample()
        for same in x.view(6, 3, 1, 2, 2):
            assert (same == same[0]).all()
            seen.add(tuple(same[0].flatten().tolist()))
    assert seen == {tuple(images[0].rot90(k, (1, 2)).flatten().tolist()) for k in range(4)}
    steps[-1] = l2l.vision.transforms.RandomClassRotation(meta, [45.0])
    with pytest.raises(ValueError, match="multiples of 90"):
        l2l.data.Taskset(meta, steps).sample()


SIDES = {"mini-imagenet": 84, "tiered-imagenet": 84, "fc100": 32, "cifarfs": 32}


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("name", SIDES)
def test_benchmarks_from_local_files(name: str, device: str | None, tmp_path: Path) -> None:
    write_benchmarks(tmp_path)
    random.seed(0)
    sets = l2l.vision.benchmarks.get_tasksets(
        name, 2, 3, 2, 2, num_tasks=5, root=tmp_path, device=device, data_augmentation="normalize"
    )
    train, validation, test = sets
    assert (sets.train, sets.validation, sets.test) == (train, validation, test)
    assert [len(s) for s in sets] == [5, 5, 5]
    for taskset, samples in ((train, 3), (validation, 2), (test, 2)):
        x, y = taskset.sample()
        side = SIDES[name]
        assert x.shape == (2 * samples, 3, side, side)
        assert x.dtype == torch.float32
        first = x.flatten(1)[:, 0].view(2, samples)
        torch.testing.assert_close(first[:, :1].expand_as(first), first)
        torch.testing.assert_close(first[:, 0].sort().values, torch.tensor([0.2, 1.0]))
        assert sorted(y.view(2, samples)[:, 0].tolist()) == [0, 1]


def test_image_data_sets_and_their_transforms(tmp_path: Path) -> None:
    write_benchmarks(tmp_path)
    numpy = pytest.importorskip("numpy")
    mini = l2l.vision.datasets.MiniImagenet(tmp_path, "test", transform=lambda x: x / 255)
    assert mini[5][0].max() == 1
    assert l2l.vision.datasets.MiniImagenet(tmp_path, "test")[5][0].max() == 255
    for kind in ("FC100", "CIFARFS", "TieredImagenet"):
        made = getattr(l2l.vision.datasets, kind)
        data = made(tmp_path, transform=lambda p: numpy.asarray(p), target_transform=lambda y: -y)
        picture, label = data[0]
        assert picture.shape[-1] == 3
        assert picture.max() == 51
        assert label <= 0
        assert len(data) == 6
        with pytest.raises(ValueError, match="mode='valid'"):
            made(tmp_path, mode="valid")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mini-imagenet", r"mini-imagenet-cache-train\.pkl"),
        ("tiered-imagenet", r"train_images_png\.pkl"),
        ("fc100", r"FC100_train\.pickle"),
        ("cifarfs", r"train\.txt"),
    ],
)
def test_missing_files_say_what_can_be_done(name: str, file: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{file}.* Fetch .*datasets="):
        l2l.vision.benchmarks.get_tasksets(name, root=tmp_path)


def test_what_benchmarks_refuse(tmp_path: Path) -> None:
    get = l2l.vision.benchmarks.get_tasksets
    assert "omniglot" in l2l.vision.benchmarks.list_tasksets()
    with pytest.raises(ValueError, match="name='imagenet' is unknown"):
        get("imagenet")
    for name in ("fc100", "cifarfs", "omniglot"):  # learn2learn takes it, and does nothing
        with pytest.raises(ValueError, match=f"lee2019' of the benchmark {name}.*'normalize', or"):
            get(name, root=tmp_path, data_augmentation="lee2019")
    with pytest.raises(ValueError, match=r"'all' of the benchmark mini-.*'normalize' or 'lee2019'"):
        get("mini-imagenet", root=tmp_path, data_augmentation="all")
    with pytest.raises(ValueError, match="datasets has 1"):
        get("mine", datasets=[None])
    with pytest.raises(ValueError, match="transforms of your own"):
        get("mine", datasets=[None] * 3, data_augmentation="normalize")


def real() -> Path:
    """The folder of the real data."""
    pytest.importorskip("numpy")
    return data_beside("omniglot28.npz")


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("device", [None, "cpu"])
def test_omniglot(device: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    root: Any = real()
    if device is None:
        monkeypatch.setenv("FASTMAML_DATA", str(root))
        root = "~/data"
    random.seed(0)
    sets = l2l.vision.benchmarks.get_tasksets("omniglot", 5, 2, 20, 3, root=root, device=device)
    classes = [set(s.dataset.labels) for s in sets]
    assert [len(c) for c in classes] == [1100, 100, 423]
    assert len(set.union(*classes)) == 1623  # no class is in two of them
    x, y = sets.train.sample()
    assert x.shape == (10, 1, 28, 28)
    assert set(x.unique().tolist()) == {0, 1}
    assert 0.02 < x.mean() < 0.2
    assert y.view(5, 2).unique(dim=0).shape == (5, 2)
    assert sets.test.sample()[0].shape == (60, 1, 28, 28)


def test_all_of_omniglot() -> None:
    root = real()
    numpy = pytest.importorskip("numpy")
    plain = l2l.vision.datasets.FullOmniglot(root)
    assert len(plain) == 32460
    assert (plain[0][1], plain[-1][1]) == (0, 1622)
    picture = l2l.vision.datasets.FullOmniglot(root, transform=numpy.array)[0][0]
    assert torch.equal(1 - torch.from_numpy(picture).float() / 255, plain[0][0][0])
    meta = l2l.data.MetaDataset(plain)
    read, labels = meta.tensors_at([0, 40])
    assert torch.equal(read[1], plain[40][0])
    assert labels.tolist() == [0, 2]
