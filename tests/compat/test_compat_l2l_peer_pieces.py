"""The small functions, data sets and networks beside learn2learn's, where it can be imported."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
from problems import tensor
from torch import nn

import fastmaml.compat.learn2learn as own

INSTALL = "`make peers` makes an environment that has it"


@pytest.fixture
def peer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("learn2learn", reason=INSTALL, exc_type=ImportError)


def same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def network() -> nn.Module:
    torch.manual_seed(0)
    shared = nn.Linear(3, 3)
    return nn.Sequential(shared, nn.Tanh(), shared, nn.BatchNorm1d(3), nn.Linear(3, 2)).double()


def test_clones_updates_and_detached_modules(peer: Any) -> None:
    ends = []
    for l2l in (own, peer):
        model = network()
        clone = l2l.clone_module(l2l.clone_module(model))
        updates = [tensor(*p.shape, seed=i) for i, p in enumerate(clone.parameters())]
        updates[1] = None
        updated = l2l.update_module(clone, updates=updates)
        for i, p in enumerate(updated.parameters()):
            p.update = 0.1 * p * tensor(*p.shape, seed=10 + i)
        updated = l2l.update_module(updated)
        updated(tensor(4, 3)).square().sum().backward()
        kept = l2l.clone_module(updated)
        detached = [l2l.detach_module(kept, keep_requires_grad=keep) for keep in (True, False)]
        ends.append(
            {
                "end": [p.detach() for p in updated.parameters()],
                "grads": [p.grad for p in model.parameters()],
                "buffers": dict(model.named_buffers()),
                "tied": updated[0].weight is updated[2].weight,
                "returns": detached,
                "leaves": [(p.is_leaf, p.requires_grad) for p in kept.parameters()],
            }
        )
    ours, theirs = ends
    assert {n: ours.pop(n) for n in ("tied", "returns", "leaves")} == {
        n: theirs.pop(n) for n in ("tied", "returns", "leaves")
    }
    same(ours, theirs)


def test_clones_of_parameters(peer: Any) -> None:
    model = network()
    for l2l in (own, peer):
        cloned = l2l.utils.clone_parameters(list(model.parameters()))
        named = l2l.utils.clone_named_parameters(dict(model.named_parameters()))
        assert [*named] == [n for n, _ in model.named_parameters()]
        assert all(not p.is_leaf and p.requires_grad for p in (*cloned, *named.values()))
        same(cloned, list(model.parameters()))


def test_magic_box(peer: Any) -> None:
    """Its value is 1; its derivatives, to the third, are those of its argument's."""
    found = []
    for l2l in (own, peer):
        x = tensor(4).requires_grad_()
        y = (l2l.magic_box(x.sin()) * x).sum()
        derivatives = [y]
        for _ in range(3):
            (g,) = torch.autograd.grad(derivatives[-1].sum(), x, create_graph=True)
            derivatives.append(g)
        found.append([d.detach() for d in derivatives])
    same(*found)


def test_pieces_of_scripts(peer: Any) -> None:
    x, labels = tensor(24, 3), torch.arange(24) % 4
    for shots in (1, 3, 6):
        same(*(l2l.data.partition_task(x, labels, shots=shots) for l2l in (own, peer)))
    scores = tensor(24, 4)
    same(*(torch.as_tensor(l2l.utils.accuracy(scores, labels)) for l2l in (own, peer)))


def test_distributions(peer: Any) -> None:
    found = []
    for l2l in (own, peer):
        p = tensor(3).requires_grad_()
        clone = l2l.clone_distribution(torch.distributions.Normal(p, torch.ones(3)))
        clone.log_prob(torch.ones(3)).sum().backward()
        l2l.detach_distribution(clone)
        found.append((p.grad, clone.log_prob(torch.ones(3))))
        assert not found[-1][1].requires_grad
    same(*found)


def test_data_sets_of_data_sets(peer: Any) -> None:
    """Bookkeeping, unions, filters, samplers: the same labels, lengths, items, and random draws."""
    data = torch.utils.data.TensorDataset(tensor(60, 2), torch.arange(60) % 6)
    found = []
    for l2l in (own, peer):
        meta = l2l.data.MetaDataset(data)
        filtered = l2l.data.FilteredMetaDataset(meta, [1, 4])
        union = l2l.data.UnionMetaDataset([meta, filtered])
        on_device = l2l.data.OnDeviceDataset(data)
        T = l2l.data.transforms  # noqa: N806
        steps = [T.NWays(meta, 3), T.KShots(meta, 2), T.LoadData(meta)]
        random.seed(3)
        taskset = l2l.data.Taskset(meta, steps, num_tasks=4)
        drawn = [taskset[i] for i in (2, 0, 2, 3)]
        random.seed(4)
        drawn += [t for t, _ in zip(l2l.data.InfiniteIterator([1, 2, 3]), range(7), strict=False)]
        books = [
            (sorted(d.labels), dict(d.labels_to_indices), dict(d.indices_to_labels), len(d))
            for d in (meta, filtered, union)
        ]
        items = [[d[i] for i in range(0, len(d), 7)] for d in (meta, filtered, union, on_device)]
        found.append((books, len(taskset), items, drawn))
    assert found[0][:2] == found[1][:2]
    same([[torch.as_tensor(t) for t in x] for d in found[0][2] for x in d],
         [[torch.as_tensor(t) for t in x] for d in found[1][2] for x in d])  # fmt: skip
    same(found[0][3], found[1][3])


@pytest.mark.parametrize("psd", [False, True])
def test_learned_updates(peer: Any, psd: bool) -> None:
    """DifferentiableSGD and ParameterUpdate by themselves, of transforms of every kind."""
    ends = []
    for l2l in (own, peer):
        torch.manual_seed(0)
        model = nn.Linear(3, 2).double()
        transforms = (
            l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear, bias=True, psd=psd),
            l2l.optim.ModuleTransform(nn.Linear),
            l2l.optim.MetaCurvatureTransform,
        )
        for transform in transforms:
            update = l2l.optim.ParameterUpdate(model.parameters(), transform).double()
            for i, p in enumerate(update.parameters()):
                p.data = tensor(*p.shape, seed=i)
            clone = l2l.clone_module(model)
            loss = clone(tensor(4, 3)).sin().square().sum()
            steps = update(loss, clone.parameters(), create_graph=True, retain_graph=True)
            moved = l2l.optim.DifferentiableSGD(0.3)(clone, steps)
            learned = torch.autograd.grad(
                clone(tensor(4, 3, seed=5)).square().sum(), [*update.parameters()]
            )
            ends.append((moved, [p.detach() for p in clone.parameters()], learned))
    for found, expected in zip(ends[:3], ends[3:], strict=True):
        assert found[0] is expected[0] is None
        same(found[1:], expected[1:])


NETWORKS: dict[str, tuple[tuple[Any, ...], tuple[int, ...], int]] = {
    "OmniglotFC": ((784, 5), (1, 28, 28), 247_621),
    "OmniglotCNN": ((5,), (1, 28, 28), 112_261),
    "CNN4": ((5,), (3, 84, 84), 121_093),
    "MiniImagenetCNN": ((5,), (3, 84, 84), 121_093),
    "CNN4Backbone": ((), (3, 84, 84), 113_088),
    "ResNet12": ((5,), (3, 84, 84), 12_427_525),
    "ResNet12Backbone": ((), (3, 84, 84), 12_424_320),
    "WRN28": ((5,), (3, 84, 84), 36_486_085),
    "WRN28Backbone": ((), (3, 84, 84), 36_482_880),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(peer: Any, name: str) -> None:
    """Names, shapes and numbers of parameters; outputs and features in `train()` and `eval()`."""
    arguments, shape, count = NETWORKS[name]
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    theirs = getattr(peer.vision.models, name)(*arguments)
    ours = getattr(own.vision.models, name)(*arguments)
    ours.load_state_dict(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert sum(p.numel() for p in ours.parameters()) == count
    outputs = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        features = getattr(model, "features", nn.Identity())(x)
        outputs.append((model(x), model.eval()(x), features))
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("name", ["OmniglotCNN", "CNN4", "ResNet12"])
def test_networks_begin_alike(peer: Any, name: str) -> None:
    """The same seed draws the same first weights; learn2learn draws OmniglotFC's by scipy."""
    arguments, _, _ = NETWORKS[name]
    begun = []
    for l2l in (own, peer):
        torch.manual_seed(0)
        begun.append(getattr(l2l.vision.models, name)(*arguments).state_dict())
    torch.testing.assert_close(*begun, rtol=0, atol=0)
