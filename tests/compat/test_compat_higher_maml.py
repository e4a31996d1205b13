"""higher's interface: inner loops against hand-written ones, and higher where it is installed."""

from __future__ import annotations

import gc
import importlib.util
import weakref
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from hand_loop import hand_loop, sgd_step
from places import EXAMPLES
from problems import Tied, relative, tensor
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import fastmaml as fm
import fastmaml.compat.higher as own
from fastmaml.measure.profile import LiveMemory

INSTALL = "benchmarks/peers/install.sh makes an environment that has higher"


@pytest.fixture(params=["fastmaml", "higher"])
def higher(request: pytest.FixtureRequest) -> Any:
    """Every expectation of ours holds for higher too."""
    if request.param == "fastmaml":
        return own
    return pytest.importorskip("higher", reason=INSTALL, exc_type=ImportError)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def normed() -> nn.Module:
    """BatchNorm, whose statistics are those of each batch."""
    torch.manual_seed(0)
    layers = [nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)]
    return nn.Sequential(*layers).double()


def recurrent() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x.unsqueeze(-1))[0][:, -1])

    torch.manual_seed(0)
    return Net().double()


def frozen() -> nn.Module:
    model = mlp()
    model[0].weight.requires_grad_(False)
    return model


def episodes() -> fm.Episodes:
    x, q = tensor(3, 5, 3, seed=1), tensor(3, 4, 3, seed=2)
    return fm.Episodes(fm.Batch(x, x[..., :2].sin()), fm.Batch(q, q[..., :2].cos()))


def script(
    higher: ModuleType, model: nn.Module, steps: int = 2, step: Any = None, **options: Any
) -> Tensor:
    """The loop of a script; the meta-gradient as one vector."""
    opt = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
    model.zero_grad()
    for task in episodes():
        with higher.innerloop_ctx(model, opt, **options) as (fmodel, diffopt):
            for _ in range(steps):
                loss = F.mse_loss(fmodel(task.support.inputs[0]), task.support.targets[0])
                diffopt.step(loss, **(step or {}))
            loss = F.mse_loss(fmodel(task.query.inputs[0]), task.query.targets[0])
            if loss.requires_grad:
                (loss / 3).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([g.flatten() for g in grads]) if grads else torch.zeros(0)


@pytest.mark.parametrize("model", [mlp, normed, recurrent, frozen])
def test_maml_equals_the_hand_written_loop(higher: Any, model: Callable[[], nn.Module]) -> None:
    expected = hand_loop(model(), F.mse_loss, episodes(), 0.3, 2)[1]
    found = script(higher, model(), copy_initial_weights=False)
    assert relative(found, torch.cat([g.flatten() for g in expected.values()])) < 1e-12


def test_the_default_learns_nothing_about_the_model(higher: Any) -> None:
    assert script(higher, mlp()).numel() == 0


def test_first_order_through_the_callback(higher: Any) -> None:
    expected = hand_loop(mlp(), F.mse_loss, episodes(), 0.3, 2, first_order=True)[1]
    constant = {"grad_callback": lambda gs: [g.detach() for g in gs]}
    found = script(higher, mlp(), copy_initial_weights=False, step=constant)
    assert relative(found, torch.cat([g.flatten() for g in expected.values()])) < 1e-12
    exact = script(higher, mlp(), copy_initial_weights=False)
    assert relative(found, exact) > 0.1


def test_untracked_steps_move_as_much_and_are_detached(higher: Any) -> None:
    model, x = mlp(), tensor(5, 3)
    opt = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, weight_decay=0.1)
    ends = []
    for tracks in (True, False):
        context = higher.innerloop_ctx(
            model, opt, copy_initial_weights=False, track_higher_grads=tracks
        )
        with context as (fmodel, diffopt):
            for _ in range(3):
                diffopt.step(F.mse_loss(fmodel(x), x[:, :2]))
            ends.append(list(fmodel.parameters()))
    for tracked, detached in zip(*ends, strict=True):
        torch.testing.assert_close(tracked, detached)
        assert (tracked.is_leaf, detached.is_leaf) == (False, True)
        assert detached.requires_grad
    assert script(higher, model, copy_initial_weights=False, track_higher_grads=False).numel() == 0


def test_a_half_trained_optimizer_goes_on(higher: Any) -> None:
    model, x = mlp(), tensor(5, 3)
    opt = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(3):
        opt.zero_grad()
        F.mse_loss(model(x), x[:, :2]).backward()
        opt.step()
    with higher.innerloop_ctx(model, opt) as (fmodel, diffopt):
        for _ in range(3):
            diffopt.step(F.mse_loss(fmodel(x), x[:, :2]))
    for _ in range(3):
        opt.zero_grad()
        F.mse_loss(model(x), x[:, :2]).backward()
        opt.step()
    # higher follows an older torch, in which eps (1e-8) was added elsewhere.
    tolerance = 1e-12 if higher is own else 1e-5
    for fast, p in zip(fmodel.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(fast, p, rtol=tolerance, atol=tolerance)


def test_an_optimizer_over_some_parameters_moves_those(higher: Any) -> None:
    model, x = mlp(), tensor(5, 3)
    opt = torch.optim.SGD(model[2].parameters(), lr=0.3)
    with higher.innerloop_ctx(model, opt, copy_initial_weights=False) as (fmodel, diffopt):
        before = list(fmodel.parameters())
        gradients: list[Any] = []
        diffopt.step(fmodel(x).square().mean(), grad_callback=lambda gs: gradients.extend(gs) or gs)
        assert [a is b for a, b in zip(before, fmodel.parameters(), strict=True)] == [
            True, True, False, False,
        ]  # fmt: skip
        assert len(gradients) == 4  # a callback sees all
        diffopt.step(fmodel(x).square().mean())
        fmodel(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


class Halved(nn.Module):
    """Two layers of which only the first is used."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_parameters_that_the_loss_does_not_reach_stay(higher: Any) -> None:
    model = Halved().double()
    opt = torch.optim.SGD(model.parameters(), lr=0.3, weight_decay=0.5)
    with higher.innerloop_ctx(model, opt) as (fmodel, diffopt):
        before = list(fmodel.parameters())
        diffopt.step(fmodel(tensor(5, 3)).square().mean())
        kept = [a is b for a, b in zip(before, fmodel.parameters(), strict=True)]
    assert kept == [False, False, True, True]


def test_a_learned_loss_and_a_learned_rate_get_gradients(higher: Any) -> None:
    model, x = mlp(), tensor(5, 3)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def end(scale: Tensor, rate: Tensor) -> Tensor:
        opt = torch.optim.SGD(model.parameters(), lr=1.0)
        with higher.innerloop_ctx(model, opt, override={"lr": [rate]}) as (fmodel, diffopt):
            for _ in range(2):
                diffopt.step((fmodel(x) - scale * x[:, :2]).square().mean())
            return F.mse_loss(fmodel(x), x[:, :2])

    assert torch.autograd.gradcheck(end, (scale, rate))


def test_tied_parameters(higher: Any) -> None:
    torch.manual_seed(0)
    model = Tied().double()
    tokens, y = torch.tensor([[0, 1, 5], [3, 3, 2]]), torch.tensor([1, 4])
    theta = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    fast: dict[str, Tensor] = theta
    opt = torch.optim.SGD(model.parameters(), lr=0.3)
    with higher.innerloop_ctx(model, opt, copy_initial_weights=False) as (fmodel, diffopt):
        for _ in range(2):
            diffopt.step(F.cross_entropy(fmodel(tokens), y))
            fast = sgd_step(fast, cross_entropy(model, fast, tokens, y), 0.3, first_order=False)
        F.cross_entropy(fmodel(tokens), y).backward()
    cross_entropy(model, fast, tokens, y).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, theta[name].grad)


def cross_entropy(model: nn.Module, fast: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(functional_call(model, fast, (x,)), y)


def test_times_of_an_inner_loop(higher: Any) -> None:
    model, x = mlp(), tensor(5, 3)
    opt = torch.optim.SGD(model.parameters(), lr=0.3)
    with higher.innerloop_ctx(model, opt) as (fmodel, diffopt):
        outputs = [fmodel(x)]
        for _ in range(3):
            diffopt.step(fmodel(x).square().mean())
            outputs.append(fmodel(x))
        times = [list(fmodel.parameters(time=t)) for t in range(4)]
        for expected, params in zip(outputs, times, strict=True):
            torch.testing.assert_close(fmodel(x, params=params), expected)


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def live(kind: type) -> int:
    """How many such objects there are. (gc lists them, and collects nothing.)"""
    return sum(issubclass(type(x), kind) for x in gc.get_objects())


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("model", [mlp, recurrent])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_memory_returns_without_the_garbage_collector(
    no_gc: None, model: Callable[[], nn.Module], kind: type[torch.optim.Optimizer]
) -> None:
    net = model()
    inner, x = kind(net.parameters(), lr=0.1), tensor(5, 3)

    def iteration() -> list[weakref.ref[Any]]:
        with own.innerloop_ctx(net, inner, copy_initial_weights=False) as (fmodel, diffopt):
            for _ in range(2):
                diffopt.step(fmodel(x).square().mean())
            fmodel(x).square().mean().backward()
        fast = next(iter(fmodel.parameters()))
        return [weakref.ref(fmodel), weakref.ref(fmodel.out if model is recurrent else fmodel[0]),
                weakref.ref(diffopt), weakref.ref(fast)]  # fmt: skip

    assert not any(r() is not None for r in iteration())
    before = [live(x) for x in (Tensor, nn.Module, type)]
    for _ in range(200):
        iteration()
    assert [live(x) for x in (Tensor, nn.Module, type)] == before  # no class is made either
    with LiveMemory() as memory:  # what graphs hold has no Python object
        iteration()
    assert memory.live_bytes == 0


def test_a_failing_step_leaves_the_graph_and_the_model(no_gc: None) -> None:
    model, x = mlp(), tensor(5, 3)
    opt = torch.optim.SGD(model.parameters(), lr=0.3)
    with own.innerloop_ctx(model, opt) as (fmodel, diffopt):
        loss = fmodel(x).square().mean()
        with pytest.raises(ValueError, match="hyper-parameter"):
            diffopt.step(loss, override={"rate": [0.1]})
        diffopt.step(loss)
        assert len(list(fmodel.parameters(time=1))) == 4


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / "compat" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_sinusoid_example_equals_a_hand_written_loop() -> None:
    module = example("higher_sinusoid")
    found = module.main(iterations=4, tasks=3, inner_steps=2, dtype=torch.float64)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = module.net().double()
    outer = torch.optim.Adam(model.parameters(), lr=2e-3)
    expected = []
    for _ in range(4):
        tasks = [[x.double() for x in module.task(generator)] for _ in range(3)]
        xs, ys, xq, yq = (torch.stack(parts) for parts in zip(*tasks, strict=True))
        meta_batch = fm.Episodes(fm.Batch(xs, ys), fm.Batch(xq, yq))
        loss, gradients = hand_loop(model, F.mse_loss, meta_batch, 0.01, 2)
        for name, g in gradients.items():
            model.get_parameter(name).grad = g
        outer.step()
        expected.append(loss.item())
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_example_of_learned_rates_equals_a_hand_written_loop() -> None:
    module = example("higher_learned_rates")
    found, rates, momenta = module.main(iterations=3, inner_steps=3, dtype=torch.float64)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    learned = torch.tensor([0.02, 0.02, 0.5, 0.5], dtype=torch.float64, requires_grad=True)
    outer = torch.optim.Adam([learned], lr=0.02)
    expected = []
    for _ in range(3):
        model = module.net().double()
        x, y = module.clusters(generator)
        fast = {n: p.detach().requires_grad_() for n, p in model.named_parameters()}
        velocity = dict.fromkeys(fast, 0.0)
        layers = {n: int(n.startswith("2")) for n in fast}

        for _ in range(3):
            loss = cross_entropy(model, fast, x.double(), y)
            grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
            for (n, i), g in zip(layers.items(), grads, strict=True):
                velocity[n] = learned[2 + i] * velocity[n] + g
                fast[n] = fast[n] - learned[i] * velocity[n]
        loss = cross_entropy(model, fast, x.double(), y)
        outer.zero_grad()
        loss.backward()
        outer.step()
        expected.append(loss.item())
    assert found == pytest.approx(expected, rel=1e-12)
    assert [*rates, *momenta] == pytest.approx(learned.tolist(), rel=1e-12)


@pytest.mark.parametrize("tracks", [True, False])
def test_earlier_parameters_are_kept_only_where_they_can_be_asked_for(
    no_gc: None, tracks: bool
) -> None:
    model, x = mlp(), tensor(5, 3)
    opt = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    with own.innerloop_ctx(model, opt, track_higher_grads=tracks) as (fmodel, diffopt):
        earlier = []
        for _ in range(3):
            earlier.append(weakref.ref(fmodel.fast_params[0]))
            diffopt.step(fmodel(x).square().mean())
        assert [r() is not None for r in earlier] == [tracks] * 3
