"""In-place calls: what they compute, wherever memory is shared, and as fast as others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from anil import Count
from hand_loop import batch_loss, hand_loop
from outcomes import require
from problems import relative, tensor
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.engine.recording.captured import Captured
from fastmaml.engine.recording.replay_code import compiled
from fastmaml.engine.recording.tape import Operation, Tape
from fastmaml.gradients import Checkpointed, MixedMode, Unrolled
from fastmaml.gradients.base import GradientMethod

TASKS, ROWS, WIDTH = 3, 4, 5


class Between(nn.Module):
    """Two layers with something written in place between them."""

    def __init__(self, between: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x), x))


def _identity_kept(y: Tensor, x: Tensor) -> Tensor:
    kept = y  # another name of the same tensor, which changes too
    F.relu(y, inplace=True)
    return y + 2 * kept


def _view_before(y: Tensor, x: Tensor) -> Tensor:
    seen = y.view(-1, WIDTH)[:, 1:2]
    y.mul_(2.0)
    return y + seen


def _view_after(y: Tensor, x: Tensor) -> Tensor:
    y += x
    seen = y[:, 1:2]
    y *= 0.5
    return y - seen


def _no_task_s_own(y: Tensor, x: Tensor) -> Tensor:
    p = torch.arange(WIDTH, dtype=y.dtype)
    p.add_(1.0)
    return y * p + p


def _of_a_view(y: Tensor, x: Tensor) -> Tensor:
    part = y.t()
    part.sub_(x.t())
    return y + part.t().sin()


def _detached(y: Tensor, x: Tensor) -> Tensor:
    seen = y.detach()
    y.add_(x)
    return y * seen


def _kept_by_autograd(y: Tensor, x: Tensor) -> Tensor:
    z = x * 2
    product = y * z  # keeps z
    with torch.no_grad():
        z = z.clone()
    z -= 1
    return product + z * y


def _in_pieces(y: Tensor, x: Tensor) -> Tensor:
    z = y.clone()
    left, right = z[:2], z[2:]
    left += right
    right.mul_(x[:2])
    return z


def _slices(y: Tensor, x: Tensor) -> Tensor:
    z = y.clone()
    z[:, 0] += 1.0
    z[0] = x[1]
    return z.relu_()


def _residual(y: Tensor, x: Tensor) -> Tensor:
    y += x
    return F.relu(y, inplace=True)


def _chained(y: Tensor, x: Tensor) -> Tensor:
    return y.add_(1.0).mul_(x).sub_(0.5).neg_()


def _other_dtype(y: Tensor, x: Tensor) -> Tensor:
    z = (x > 0).float()
    z += y.detach()  # float32 stays float32
    return y * z


def _without_gradients(y: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        y.mul_(2.0)  # keeps the graph that it had
    return y.sin()


def _leaf(y: Tensor, x: Tensor) -> Tensor:
    w = torch.ones(WIDTH, dtype=y.dtype, requires_grad=True)
    with torch.no_grad():
        w.mul_(2.0)
    (g,) = torch.autograd.grad((w * w).sum(), w)
    return y * g


def _attribute(y: Tensor, x: Tensor) -> Tensor:
    y.tag = 3.0  # type: ignore[attr-defined]
    y.mul_(2.0)
    return y * y.tag  # type: ignore[attr-defined]


def _steps(y: Tensor, x: Tensor) -> Tensor:
    total = torch.zeros_like(y)
    for i in range(3):
        total += y * i
    total /= 3
    return total


def _contiguous(y: Tensor, x: Tensor) -> Tensor:
    same, other = y.contiguous(), y.t().contiguous()
    y.mul_(x)
    return same + other.t() + y


def _expanded(y: Tensor, x: Tensor) -> Tensor:
    mean = y.mean(0, keepdim=True)
    wide = mean.expand_as(y)
    mean *= 2.0
    return wide + y


CASES = [
    _identity_kept,
    _view_before,
    _view_after,
    _of_a_view,
    _detached,
    _kept_by_autograd,
    _in_pieces,
    _slices,
    _residual,
    _chained,
    _other_dtype,
    _without_gradients,
    _leaf,
    _attribute,
    _steps,
    _contiguous,
    _expanded,
    _no_task_s_own,
    lambda y, x: F.elu(y, 0.5, True),
    lambda y, x: F.leaky_relu(y, inplace=True),
    lambda y, x: F.silu(y, inplace=True),
    lambda y, x: F.hardtanh(y, -1.0, 1.0, True),
    lambda y, x: torch.relu_(y),
    lambda y, x: y.sigmoid_(),
    lambda y, x: y.clamp_(-0.5, 0.5),
    lambda y, x: F.dropout(y, 0.5, False, True),
]


def _loss(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 2).mean() + output.sin().mean()


def _episodes(*shape: int) -> fm.Episodes:
    def batch(seed: int) -> fm.Batch:
        inputs = tensor(TASKS, ROWS, *shape, seed=seed)
        return fm.Batch(inputs, tensor(TASKS, ROWS, 1, seed=seed + 1))

    return fm.Episodes(batch(1), batch(3))


@pytest.mark.sampled(at_most=40)
@pytest.mark.parametrize("executor", ["captured", "eager"])
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("gradient", [Unrolled(), Checkpointed(), MixedMode()], ids=str)
@pytest.mark.parametrize("between", CASES, ids=lambda f: f.__name__)
def test_numbers_are_the_plain_loop_s(
    between: Callable[[Tensor, Tensor], Tensor],
    gradient: GradientMethod,
    chunk: int,
    executor: str,
) -> None:
    model, episodes = Between(between).double(), _episodes(WIDTH)
    loss, gradients = hand_loop(model, _loss, episodes, 0.1, 2)
    maml = fm.MAML(
        model,
        lr=0.1,
        steps=2,
        loss=_loss,
        gradient=gradient,
        tasks_chunk=chunk,
        executor=executor,  # type: ignore[arg-type]
    )
    out = maml(episodes)
    out.loss.backward()
    torch.testing.assert_close(out.loss, loss, rtol=1e-12, atol=1e-13)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-10, atol=1e-12)


class _Around(nn.Module):
    """Something written in place before the head, which alone adapts, or after it."""

    def __init__(self, between: Callable[[Tensor, Tensor], Tensor], after: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.between, self.after = between, after

    def forward(self, x: Tensor) -> Tensor:
        weight = self.first.weight * 1.0
        weight.mul_(1.5)  # no task's own
        y = F.linear(x, weight, self.first.bias)
        y = self.head(y if self.after else self.between(y, x))
        return self.between(y, x) if self.after else y


def _head_by_hand(model: nn.Module, episodes: fm.Episodes) -> tuple[Tensor, Sequence[Tensor]]:
    theta = dict(model.named_parameters())
    names = [name for name in theta if name.startswith("head")]
    losses = []
    for task in episodes:
        adapted = theta
        for _ in range(3):
            loss = batch_loss(model, _loss, adapted, task.support)
            given = [adapted[name] for name in names]
            steps = torch.autograd.grad(loss, given, create_graph=True)
            pairs = zip(names, given, steps, strict=True)
            adapted = {**adapted, **{name: p - 0.1 * g for name, p, g in pairs}}
        losses.append(batch_loss(model, _loss, adapted, task.query))
    mean = torch.stack(losses).mean()
    return mean.detach(), torch.autograd.grad(mean, list(theta.values()))


@pytest.mark.sampled(at_most=30)
@pytest.mark.parametrize("executor", ["captured", "eager"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("between", CASES, ids=lambda f: f.__name__)
def test_passes_share_only_what_stays(
    between: Callable[[Tensor, Tensor], Tensor], after: bool, executor: str
) -> None:
    model, episodes = _Around(between, after).double(), _episodes(WIDTH)
    loss, gradients = _head_by_hand(model, episodes)
    maml = fm.MAML(
        model, lr=0.1, steps=3, loss=_loss, scope="head", executor=executor, backend="reference"
    )  # type: ignore[arg-type]
    for out in (maml(episodes), maml(episodes)):
        torch.testing.assert_close(out.loss, loss, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(maml.evaluate(episodes).loss, loss, rtol=1e-12, atol=1e-13)
    out.loss.backward()
    for p, expected in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-10, atol=1e-12)


def test_what_plain_pytorch_refuses_is_refused() -> None:
    """tanh keeps its result for its derivative."""
    maml = fm.MAML(Between(lambda y, x: y.tanh().mul_(2.0)).double(), lr=0.1, loss=_loss)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        maml(_episodes(WIDTH))


def _net(inplace: bool) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=inplace),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.ReLU(inplace),
        nn.Linear(6, 6),
        nn.SiLU(inplace),
        nn.Dropout(0.25, inplace),
        nn.Linear(6, 1),
    )


def test_they_are_fused_as_others() -> None:
    require("cpp")
    found = []
    for inplace in (True, False):
        names: list[str] = []

        def prepare(tape: Tape, names: list[str] = names) -> Callable[..., list[Tensor]]:
            names += [str(s.function) for s in tape.steps if isinstance(s, Operation)]
            return compiled(tape)

        torch.manual_seed(1)
        maml = fm.MAML(_net(inplace), lr=0.1, steps=2, loss=_loss, tasks_chunk=3)
        maml._execute = Captured(prepare, required=True)
        out = maml(_episodes(1, 4, 4).to(torch.float32))
        out.loss.backward()
        found.append((names, out.losses, [p.grad for p in maml.parameters()]))
    (names, losses, gradients), (others, same, alike) = found
    assert names == others
    assert not any("relu" in name or "max_pool" in name for name in names)
    torch.testing.assert_close(losses, same, rtol=0, atol=0)
    torch.testing.assert_close(gradients, alike, rtol=0, atol=0)


class _Body(nn.Module):
    """A body that does not adapt, written as vision code is."""

    def __init__(self, activation: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.activation = activation
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.first(x), inplace=True)
        y = self.second(y)
        y += x
        return self.head(self.activation(y, inplace=True))


@pytest.mark.parametrize("activation", [F.relu, F.selu, F.silu], ids=lambda f: f.__name__)
def test_inner_steps_share_what_is_written_in_place(activation: Callable[..., Tensor]) -> None:
    """The last two have derivatives that need what was there before."""
    model, episodes = _Body(activation).double(), _episodes(WIDTH)
    maml = fm.MAML(
        model, lr=0.1, steps=3, loss=_loss, scope="head", executor="eager", backend="reference"
    )
    maml(episodes)  # tries things out
    with Count(F.linear) as linear, Count(activation) as active:
        out = maml(episodes)
    assert (linear.calls, active.calls) == (2 * 2 + 3 + 1, 2 * 2)
    out.loss.backward()
    found = [p.grad for p in model.parameters()]
    whole = fm.MAML(
        copy.deepcopy(model), lr=0.1, steps=3, loss=_loss, scope="head", gradient=Checkpointed()
    )
    whole.zero_grad()
    whole(episodes).loss.backward()
    for p, other in zip(found, whole.module.parameters(), strict=True):
        assert p is not None
        assert other.grad is not None
        assert relative(p, other.grad) < 1e-12
