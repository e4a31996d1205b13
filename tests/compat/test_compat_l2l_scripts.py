"""The scripts of examples/compat run unchanged and give the numbers of loops written by hand."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from places import EXAMPLES
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import fastmaml.compat.learn2learn as l2l

SCRIPTS = EXAMPLES / "compat"
ITERATIONS = 3
Tensors = dict[str, Tensor]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def begin() -> None:
    random.seed(42)
    torch.manual_seed(42)


def run(model: nn.Module, parameters: Tensors, x: Tensor) -> Tensor:
    """The model with other parameters; its buffers are written to, as by the script."""
    # Without ties: with them it would not put back what one layer under two names held before.
    output: Tensor = functional_call(model, parameters, x, tie_weights=False)
    return output


def adapted(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    steps: int,
    update: Callable[[str, Tensor], Tensor],
    loss: Any = F.cross_entropy,
) -> Tensors:
    """The model's parameters after p ← p − update(name, g)."""
    theta: Tensors = dict(model.named_parameters())
    for _ in range(steps):
        value = loss(run(model, theta, x), y)
        grads = torch.autograd.grad(value, list(theta.values()), create_graph=True)
        pairs = zip(theta.items(), grads, strict=True)
        theta = {n: p - update(n, g) for (n, p), g in pairs}
    return theta


def train(
    meta_parameters: list[Tensor], meta_lr: float, losses: Callable[[], Tensor]
) -> list[float]:
    """The outer loop: the mean query loss of every iteration."""
    opt = torch.optim.Adam(meta_parameters, meta_lr)
    history = []
    for _ in range(ITERATIONS):
        loss = losses()
        history.append(loss.item())
        for p, g in zip(meta_parameters, torch.autograd.grad(loss, meta_parameters), strict=True):
            p.grad = g
        opt.step()
    return history


def check(found: list[float], by_hand: list[float]) -> None:
    assert len(found) == ITERATIONS
    assert found == pytest.approx(by_hand, rel=1e-10)
    assert len(set(found)) == ITERATIONS


def of_tasks(tasksets: Any, tasks: int, one: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """The mean of `one` over new tasks."""

    def mean() -> Tensor:
        drawn = [tasksets.train.sample() for _ in range(tasks)]
        return torch.stack([one(x.double(), y) for x, y in drawn]).mean()

    return mean


def test_maml_omniglot(script: Any) -> None:
    found = script("maml_omniglot").main(iterations=ITERATIONS, double=True)
    begin()
    tasksets = script("synthetic").tasksets(5, 2, (1, 28, 28))
    model = l2l.vision.models.OmniglotFC(784, 5).double()

    def one(x: Tensor, y: Tensor) -> Tensor:
        theta = adapted(model, x[::2], y[::2], 1, lambda _, g: 0.5 * g)
        return F.cross_entropy(run(model, theta, x[1::2]), y[1::2])

    check(found, train(list(model.parameters()), 0.003, of_tasks(tasksets, 4, one)))


def test_maml_conv4(script: Any) -> None:
    found = script("maml_conv4").main(iterations=ITERATIONS, double=True)
    begin()
    tasksets = script("synthetic").tasksets(5, 3, (3, 16, 16))
    model = l2l.vision.models.CNN4(5, hidden_size=8, embedding_size=8).double()

    def one(x: Tensor, y: Tensor) -> Tensor:
        order = y.argsort(stable=True)
        support = order.view(5, 3)[:, :1].flatten()
        query = order.view(5, 3)[:, 1:].flatten()
        theta = adapted(model, x[support], y[support], 5, lambda _, g: 0.1 * g)
        return F.cross_entropy(run(model, theta, x[query]), y[query])

    check(found, train(list(model.parameters()), 0.003, of_tasks(tasksets, 3, one)))


def test_metasgd_omniglot(script: Any) -> None:
    found = script("metasgd_omniglot").main(iterations=ITERATIONS, double=True)
    begin()
    tasksets = script("synthetic").tasksets(5, 2, (1, 28, 28))
    model = l2l.vision.models.OmniglotCNN(5, hidden_size=4).double()
    rates = {n: torch.full_like(p, 0.2).requires_grad_() for n, p in model.named_parameters()}

    def one(x: Tensor, y: Tensor) -> Tensor:
        theta = adapted(model, x[::2], y[::2], 2, lambda n, g: rates[n] * g)
        return F.cross_entropy(run(model, theta, x[1::2]), y[1::2])

    meta = [*model.parameters(), *rates.values()]
    check(found, train(meta, 0.003, of_tasks(tasksets, 3, one)))


def test_anil(script: Any) -> None:
    found = script("anil_cifarfs").main(iterations=ITERATIONS, double=True)
    begin()
    tasksets = script("synthetic").tasksets(5, 4, (3, 16, 16))
    features = l2l.vision.models.CNN4Backbone(hidden_size=8).double()
    head = nn.Linear(8, 5).double()

    def one(x: Tensor, y: Tensor) -> Tensor:
        z = features(x)
        theta = adapted(head, z[::2], y[::2], 5, lambda _, g: 0.3 * g)
        return F.cross_entropy(run(head, theta, z[1::2]), y[1::2])

    meta = [*features.parameters(), *head.parameters()]
    check(found, train(meta, 0.002, of_tasks(tasksets, 3, one)))


def test_meta_curvature(script: Any) -> None:
    found = script("metacurvature_fc100").main(iterations=ITERATIONS, double=True)
    begin()
    tasksets = script("synthetic").tasksets(5, 2, (3, 16, 16))
    model = l2l.vision.models.CNN4(5, hidden_size=4, embedding_size=4).double()
    factors: dict[str, list[Tensor]] = {}
    for name, p in model.named_parameters():
        if p.dim() == 1:
            factors[name] = [torch.ones_like(p).requires_grad_()]
        else:
            sizes = [*p.shape[:2], *([9] if p.dim() == 4 else [])]
            factors[name] = [torch.eye(n).double().requires_grad_() for n in sizes]

    def update(name: str, g: Tensor) -> Tensor:
        if g.dim() == 1:
            return 0.2 * factors[name][0] * g
        if g.dim() == 2:
            return 0.2 * factors[name][0] @ g @ factors[name][1]
        first, second, positions = factors[name]
        turned = torch.einsum("ax,xyp,yb,qp->abq", first, g.flatten(2), second, positions)
        return 0.2 * turned.view_as(g)

    def one(x: Tensor, y: Tensor) -> Tensor:
        theta = adapted(model, x[::2], y[::2], 3, update)
        return F.cross_entropy(run(model, theta, x[1::2]), y[1::2])

    meta = [*model.parameters(), *(f for fs in factors.values() for f in fs)]
    check(found, train(meta, 0.003, of_tasks(tasksets, 2, one)))


def test_kronecker_transform(script: Any) -> None:
    found = script("anil_kfo").main(iterations=ITERATIONS, double=True)
    begin()
    tasksets = script("synthetic").tasksets(5, 4, (3, 16, 16))
    features = l2l.vision.models.CNN4Backbone(hidden_size=8).double()
    head = nn.Linear(8, 5).double()
    eyes = {"weight": (5, 8), "bias": (5, 1)}
    roots = {n: [torch.eye(k).double().requires_grad_() for k in e] for n, e in eyes.items()}

    def update(name: str, g: Tensor) -> Tensor:
        left, right = (r.t() @ r for r in roots[name])
        return 0.3 * (left @ g.view(5, -1) @ right).view_as(g)

    def one(x: Tensor, y: Tensor) -> Tensor:
        z = features(x)
        theta = adapted(head, z[::2], y[::2], 3, update)
        return F.cross_entropy(run(head, theta, z[1::2]), y[1::2])

    meta = [*features.parameters(), *head.parameters(), *roots["weight"], *roots["bias"]]
    check(found, train(meta, 0.002, of_tasks(tasksets, 3, one)))


def test_rnn_regression(script: Any) -> None:
    rnn = script("maml_rnn")
    found = rnn.main(iterations=ITERATIONS, double=True)
    begin()
    model = rnn.Forecaster(6).double()

    def mean() -> Tensor:
        losses = []
        for _ in range(3):
            series = rnn.sample(6, 8, torch.float64)
            past, future = series[:, :-1], series[:, 1:]
            given = (past[:3], future[:3], 2, lambda _, g: 0.1 * g, F.mse_loss)
            theta = adapted(model, *given)
            losses.append(F.mse_loss(run(model, theta, past[3:]), future[3:]))
        return torch.stack(losses).mean()

    check(found, train(list(model.parameters()), 0.005, mean))


def test_one_process_with_all_tasks(script: Any) -> None:
    found = script("distributed_maml").main(processes=1, iterations=ITERATIONS, double=True)
    begin()
    tasksets = script("synthetic").tasksets(5, 2, (1, 28, 28))
    model = l2l.vision.models.OmniglotFC(784, 5, sizes=[32, 16]).double()

    def one(x: Tensor, y: Tensor) -> Tensor:
        theta = adapted(model, x[::2], y[::2], 1, lambda _, g: 0.5 * g)
        return F.cross_entropy(run(model, theta, x[1::2]), y[1::2])

    check(found, train(list(model.parameters()), 0.003, of_tasks(tasksets, 4, one)))


@pytest.mark.slow
def test_two_processes_equal_one(script: Any) -> None:
    main = script("distributed_maml").main
    one, two = (main(processes=n, iterations=ITERATIONS, double=True) for n in (1, 2))
    assert two == pytest.approx(one, rel=1e-12)


def test_scripts_run_in_single_precision(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("maml_omniglot", "maml_conv4", "metasgd_omniglot", "anil_cifarfs"):
        assert len(script(name).main(iterations=1)) == 1
    assert capsys.readouterr().out.count("loss") == 4
