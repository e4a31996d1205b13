"""Complex parameters, by every method and rule, against loops in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import RULES, relative, tensor
from torch import Tensor, nn
from torch.func import functional_call

import fastmaml as fm
from fastmaml.gradients import Checkpointed, FirstOrder, MixedMode, Reptile, Truncated, Unrolled
from fastmaml.rules import SGD, ClipValue, chain

STEPS = 2
Move = Callable[[int, dict[str, Tensor], dict[str, Tensor], dict[str, Any]], dict[str, Tensor]]


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.complex(tensor(*shape, seed=seed), tensor(*shape, seed=seed + 50))


class Waves(nn.Module):
    """Complex weights and real ones, a conjugate, a modulus and an angle."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(0.6 * numbers(3, 4, seed=1))
        self.shift = nn.Parameter(0.3 * numbers(4, seed=2))
        self.out = nn.Linear(4, 2).double()
        with torch.no_grad():
            self.out.weight.copy_(tensor(2, 4, seed=3))
            self.out.bias.copy_(tensor(2, seed=4))

    def forward(self, x: Tensor) -> Tensor:
        h = (x.to(self.first.dtype) @ self.first + self.shift).tanh()
        return self.out((h * h.roll(1, -1).conj()).real + h.abs())


class Spectrum(Waves):
    """All parameters are complex, and so is what it returns."""

    def __init__(self) -> None:
        super().__init__()
        del self.out

    def forward(self, x: Tensor) -> Tensor:
        h = x.to(self.first.dtype) @ self.first + self.shift
        return torch.fft.fft(h / (1 + h.abs().square()), norm="ortho")


def squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs().square().mean()


def episodes(target: int) -> fm.Episodes:
    return fm.Episodes(
        *(fm.Batch(tensor(3, 5, 3, seed=s), tensor(3, 5, target, seed=s + 1)) for s in (11, 13))
    )


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def _sgd(lr: Any) -> Move:
    return lambda step, p, g, state: {n: p[n] - lr * g[n] for n in p}


def _momentum(lr: float, momentum: float, nesterov: bool = False) -> Move:
    def move(step: int, p: Any, g: Any, state: Any) -> Any:
        for n in p:
            state[n] = momentum * state[n] + g[n] if n in state else g[n]
        along = {n: g[n] + momentum * state[n] if nesterov else state[n] for n in p}
        return {n: p[n] - lr * along[n] for n in p}

    return move


def _adam(lr: float, eps: float, decay: float = 0.0) -> Move:
    """As torch.optim: a complex number is a pair of real ones."""

    def move(step: int, p: Any, g: Any, state: Any) -> Any:
        found = {}
        for n in p:
            gradient, zero = _real(g[n]), torch.zeros_like(_real(p[n]))
            m, v = state.get(n, (zero, zero))
            state[n] = m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient * gradient
            m, v = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            new = _real(p[n]) * (1 - lr * decay) - lr * m / (v.sqrt() + eps)
            found[n] = torch.view_as_complex(new) if p[n].is_complex() else new
        return found

    return move


def _clip_and_decay(step: int, p: Any, g: Any, state: Any) -> Any:
    """As torch.nn.utils.clip_grad_norm_, then as torch.optim's weight_decay."""
    norm = torch.stack([torch.linalg.vector_norm(x) for x in g.values()]).norm()
    scale = (0.5 / (norm + 1e-6)).clamp(max=1.0)
    return {n: p[n] - 0.3 * (scale * g[n] + 0.2 * p[n]) for n in p}


MOVES: dict[str, Move] = {
    "sgd": _sgd(0.3),
    "sgd-learned": _sgd(0.3),
    "momentum": _momentum(0.2, 0.8),
    "nesterov": _momentum(0.2, 0.8, nesterov=True),
    "adam": _adam(0.1, 0.1),
    "adamw": _adam(0.1, 0.1, decay=0.3),
    "meta-sgd": _sgd(0.3),
    "lslr": _sgd(0.3),
    "clip-decay-sgd": _clip_and_decay,
    "decay-lslr": lambda step, p, g, state: {n: p[n] - 0.3 * (g[n] + 0.2 * p[n]) for n in p},
}


def by_hand(
    model: nn.Module, batch: fm.Episodes, move: Move, first_order: bool = False, *others: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean query loss and its gradient, real numbers side by side; last that by `others`."""
    theta = dict(model.named_parameters())
    losses = []
    for task in batch:
        p, state = theta, {}
        x, y = task.support.inputs[0], task.support.targets[0]
        for step in range(STEPS):
            loss = squared(functional_call(model, p, (x,)), y)
            g = torch.autograd.grad(loss, list(p.values()), create_graph=not first_order)
            p = move(step, p, dict(zip(p, g, strict=True)), state)
        losses.append(
            squared(functional_call(model, p, (task.query.inputs[0],)), task.query.targets[0])
        )
    mean = torch.stack(losses).mean()
    found = torch.autograd.grad(mean, [*theta.values(), *others])
    return mean.detach(), torch.cat([_real(g).flatten() for g in found])


def learned(maml: fm.MAML, batch: fm.Episodes) -> Tensor:
    maml.zero_grad()
    maml(batch).loss.backward()
    grads = [p.grad for p in maml.module.parameters()]
    assert all(
        g is not None and g.dtype == p.dtype
        for g, p in zip(grads, maml.module.parameters(), strict=True)
    )
    return torch.cat([_real(g).flatten() for g in grads if g is not None])


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("method", [Unrolled(), Checkpointed(), MixedMode()], ids=str)
@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("kind", [Waves, Spectrum])
def test_exact_methods(kind: Callable[[], nn.Module], name: str, method: Any) -> None:
    model, batch = kind(), episodes(2 if kind is Waves else 4)
    value, gradient = by_hand(model, batch, MOVES[name])
    first = by_hand(model, batch, MOVES[name], first_order=True)[1]
    assert relative(first, gradient) > 1e-2
    maml = fm.MAML(model, rule=RULES[name](), steps=STEPS, loss=squared, gradient=method)
    assert relative(learned(maml, batch), gradient) < 1e-10
    torch.testing.assert_close(maml(batch).loss.detach(), value, rtol=1e-12, atol=0)
    torch.testing.assert_close(maml.evaluate(batch).loss, value, rtol=1e-12, atol=0)


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("executor", ["eager", None])
@pytest.mark.parametrize("chunk", [1, 3])
def test_one_at_a_time_and_together(executor: Any, chunk: int) -> None:
    model, batch = Waves(), episodes(2)
    gradient = by_hand(model, batch, MOVES["sgd"])[1]
    maml = fm.MAML(model, 0.3, steps=STEPS, loss=squared, executor=executor, tasks_chunk=chunk)
    assert maml.explain(batch).batched
    for _ in range(2):
        assert relative(learned(maml, batch), gradient) < 1e-10


def test_approximate_methods() -> None:
    model, batch = Waves(), episodes(2)
    gradient = by_hand(model, batch, MOVES["sgd"], first_order=True)[1]
    for method in (FirstOrder(), Truncated(0)):
        maml = fm.MAML(model, 0.3, steps=STEPS, loss=squared, gradient=method)
        assert relative(learned(maml, batch), gradient) < 1e-10
    found = learned(fm.MAML(model, 0.3, steps=STEPS, loss=squared, gradient=Reptile()), batch)
    maml = fm.MAML(model, 0.3, steps=STEPS, loss=squared)
    adapted = [
        maml.adapt_to(batch[i].support.map(lambda x: x.squeeze(0))).parameters() for i in range(3)
    ]
    moved = [
        p.detach() - torch.stack(each).detach().mean(0)
        for p, *each in zip(model.parameters(), *adapted, strict=True)
    ]
    torch.testing.assert_close(found, torch.cat([_real(x).flatten() for x in moved]))


def test_learned_rates_get_their_gradient() -> None:
    model, batch = Waves(), episodes(2)
    rate = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    maml = fm.MAML(model, rate, steps=STEPS, loss=squared)
    learned(maml, batch)
    same = rate.detach().clone().requires_grad_()
    expected = by_hand(model, batch, _sgd(same), False, same)[1][-1]
    own = next(p for n, p in maml.named_parameters() if n.startswith("rates"))
    torch.testing.assert_close(own.grad, expected, rtol=1e-10, atol=0)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("method", [Unrolled(), Checkpointed(), MixedMode()], ids=str)
def test_a_loss_over_complex_outputs(method: Any) -> None:
    """The meta-step runs again with what autograd says of them."""
    model, batch = Spectrum(), episodes(4)

    def own(outputs: Tensor) -> Tensor:
        return (outputs * outputs.roll(1, 1).conj()).real.mean() + outputs.imag.mean()

    theta = dict(model.named_parameters())
    outputs = []
    for task in batch:
        p = theta
        for _ in range(STEPS):
            loss = squared(
                functional_call(model, p, (task.support.inputs[0],)), task.support.targets[0]
            )
            g = torch.autograd.grad(loss, list(p.values()), create_graph=True)
            p = {n: x - 0.3 * d for (n, x), d in zip(p.items(), g, strict=True)}
        outputs.append(functional_call(model, p, (task.query.inputs[0],)))
    expected = torch.autograd.grad(own(torch.stack(outputs)), list(theta.values()))
    maml = fm.MAML(model, 0.3, steps=STEPS, loss=squared, gradient=method)
    own(maml(batch).outputs).backward()
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-12)


def test_per_task() -> None:
    model, batch = Waves(), episodes(2)
    value, gradient = by_hand(model, batch, MOVES["sgd"])
    maml = fm.MAML(model, 0.3, loss=squared)

    @maml.per_task
    def run(learner: Any, support: fm.Batch, query: fm.Batch) -> Tensor:
        for _ in range(STEPS):
            learner.adapt(squared(learner(support.inputs), support.targets))
        return squared(learner(query.inputs), query.targets)

    out = run(batch)
    out.loss.backward()
    found = torch.cat([_real(p.grad).flatten() for p in model.parameters() if p.grad is not None])
    assert relative(found, gradient) < 1e-10
    torch.testing.assert_close(out.loss.detach(), value, rtol=1e-12, atol=0)


def test_no_order_no_clamping() -> None:
    maml = fm.MAML(Waves(), rule=chain(ClipValue(0.1), SGD(0.3)), loss=squared)
    with pytest.raises(ValueError, match="ClipValue cannot clamp the gradient of 'first'"):
        maml(episodes(2))


def test_not_finite() -> None:
    model, batch = Waves(), episodes(2)
    with torch.no_grad():
        model.first[0, 0] = complex(float("nan"), 0.0)
    with pytest.raises(fm.NonFiniteLoss, match="support loss of task 0"):
        fm.MAML(model, 0.3, steps=STEPS, loss=squared)(batch)
