"""The same scripts under learn2learn itself, where it can be imported.

`make peers` makes an environment that has it.
"""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import pytest
import torch
from problems import Tied, tensor
from torch import nn
from torch.nn import functional as F

import fastmaml.compat.learn2learn as own

INSTALL = "`make peers` makes an environment that has it"


@pytest.fixture
def peer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("learn2learn", reason=INSTALL, exc_type=ImportError)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(x.view(-1, 3, 3))[0][:, -1])


def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    conv = nn.Sequential(
        nn.Unflatten(1, (1, 3, 3)), nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(),
        nn.Linear(12, 2),
    )  # fmt: skip
    return {"mlp": nn.Sequential(nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 2)), "conv": conv,
            "recurrent": Recurrent()}  # fmt: skip


ALGORITHMS: dict[str, Any] = {
    "MAML": lambda l2l, model, **options: l2l.algorithms.MAML(model, 0.2, **options),
    "MetaSGD": lambda l2l, model, **options: l2l.algorithms.MetaSGD(model, 0.2, **options),
    "MetaCurvature": lambda l2l, model, **options: l2l.algorithms.GBML(
        model, l2l.optim.MetaCurvatureTransform, 0.2, **options
    ),
    "KFO": lambda l2l, model, **options: l2l.algorithms.GBML(
        model, l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear), 0.2, **options
    ),
    "adapting KFO": lambda l2l, model, **options: l2l.algorithms.GBML(
        model, l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear), 0.2, True, **options
    ),
}


def train(l2l: Any, algorithm: str, model: nn.Module, **options: Any) -> dict[str, torch.Tensor]:
    """Two iterations of two tasks with three inner steps; the state afterwards."""
    meta = ALGORITHMS[algorithm](l2l, model, **options).double()
    opt = torch.optim.SGD(meta.parameters(), 0.1)
    for i in range(2):
        opt.zero_grad()
        for task in range(2):
            x, q = tensor(6, 9, seed=10 * i + task), tensor(5, 9, seed=100 + task)
            learner = meta.clone()
            for _ in range(3):
                learner.adapt(F.mse_loss(learner(x), x[:, :2].sin()))
            F.mse_loss(learner(q), q[:, :2].sin()).backward()
        opt.step()
    return {n: t.detach().clone() for n, t in meta.state_dict().items()}


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("kind", models())
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_training_leaves_the_same_state(
    peer: Any, algorithm: str, kind: str, first_order: bool
) -> None:
    if (kind == "recurrent" and algorithm == "MetaSGD") or (
        first_order and algorithm == "adapting KFO"
    ):
        pytest.skip("learn2learn cannot do this")
    model = models()[kind]
    found, expected = (
        train(l2l, algorithm, copy.deepcopy(model), first_order=first_order) for l2l in (own, peer)
    )
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-13)


def test_tied_weights(peer: Any) -> None:
    tokens = torch.randint(6, (5, 3), generator=torch.Generator().manual_seed(0))
    grads = []
    for l2l in (own, peer):
        torch.manual_seed(0)
        maml = l2l.algorithms.MAML(Tied().double(), 0.3)
        learner = maml.clone()
        learner.adapt(F.cross_entropy(learner(tokens), torch.arange(5)))
        F.cross_entropy(learner(tokens), torch.arange(5)).backward()
        grads.append(maml.module.embed.weight.grad)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-15)


def test_learned_optimizers(peer: Any) -> None:
    ends = []
    for l2l in (own, peer):
        torch.manual_seed(0)
        model = nn.Linear(3, 1).double()
        transform = l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear)
        metaopt = l2l.optim.LearnableOptimizer(model, transform, lr=0.1).double()
        opt = torch.optim.SGD(metaopt.parameters(), 0.05)
        for i in range(5):
            metaopt.zero_grad()
            opt.zero_grad()
            model(tensor(4, 3, seed=i)).square().mean().backward()
            opt.step()
            metaopt.step()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-15)


def test_modules(peer: Any) -> None:
    x, h, c = tensor(3, 2), tensor(3, 2, seed=1), tensor(3, 2, seed=2)
    for make, inputs in (
        (lambda nn_: nn_.KroneckerLinear(3, 2, psd=True), (x,)),
        (lambda nn_: nn_.KroneckerRNN(3, 2), (x, h)),
        (lambda nn_: nn_.KroneckerLSTM(3, 2), (x, (h, c))),
    ):
        ours, theirs = (make(l2l.nn).double() for l2l in (own, peer))
        for i, p in enumerate(theirs.parameters()):
            p.data = tensor(*p.shape, seed=i)
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(*inputs), theirs(*inputs))
    labels = torch.tensor([2, 0, 2, 0])
    for distance in ("euclidean", "cosine"):
        ours, theirs = (
            l2l.nn.PrototypicalClassifier(tensor(4, 3), labels, distance) for l2l in (own, peer)
        )
        torch.testing.assert_close(ours(tensor(5, 3)), theirs(tensor(5, 3)))


def test_the_same_seed_draws_the_same_tasks(peer: Any) -> None:
    pytest.importorskip("learn2learn.data", reason=INSTALL, exc_type=ImportError)
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(300, 2), torch.randint(0, 20, (300,)))

    def tasks(l2l: Any, steps: str) -> list[Any]:
        meta, T = l2l.data.MetaDataset(data), l2l.data.transforms  # noqa: N806
        begin = {
            "fused": [T.FusedNWaysKShots(meta, n=5, k=2)],
            "apart": [T.NWays(meta, 5), T.KShots(meta, 2)],
            "replacement": [T.NWays(meta, 5), T.KShots(meta, 2, replacement=True)],
            "filter": [T.FilterLabels(meta, list(range(7))), T.KShots(meta, 2)],
        }[steps]
        rest = [T.LoadData(meta), T.RemapLabels(meta), T.ConsecutiveLabels(meta)]
        random.seed(5)
        taskset = l2l.data.Taskset(meta, [*begin, *rest])
        return [taskset.sample() for _ in range(20)]

    for steps in ("fused", "apart", "replacement", "filter"):
        for ours, theirs in zip(tasks(own, steps), tasks(peer, steps), strict=True):
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])
