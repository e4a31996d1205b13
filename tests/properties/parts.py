"""Layers of many kinds, ``[n, width]`` to ``[n, width]``: what random networks are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Apply(nn.Module):
    """A function of the values, without parameters."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *values: Tensor) -> Tensor:
        return self.function(*values)


class Pair(Apply):
    """The same, of two values."""


class Scaled(nn.Module):
    """A parameter of its own, used in some way."""

    def __init__(self, shape: tuple[int, ...], use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.randn(shape) * 0.5 + 0.2)
        self.use = use

    def forward(self, h: Tensor) -> Tensor:
        return self.use(h, self.own)


class Buffered(nn.Module):
    """A buffer of its own, used in some way."""

    def __init__(self, buffer: Tensor, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.register_buffer("own", buffer, persistent=len(buffer.shape) < 2)
        self.use = use

    def forward(self, h: Tensor) -> Tensor:
        return self.use(h, self.own)


class Cell(nn.Module):
    """A recurrent cell over a few steps of the same input, from a state made in `forward`."""

    def __init__(self, cell: nn.Module, steps: int, view: bool) -> None:
        super().__init__()
        self.cell, self.steps, self.view = cell, steps, view

    def forward(self, h: Tensor) -> Tensor:
        zeros = torch.zeros(2, *h.shape, dtype=h.dtype)
        state = zeros[1] if self.view else torch.zeros_like(h)
        both = (state, state) if isinstance(self.cell, nn.LSTMCell) else state
        for _ in range(self.steps):
            both = self.cell(h, both)
        return both[0] if isinstance(both, tuple) else both


class Recurrent(nn.Module):
    """PyTorch's own recurrent layers over the features as a sequence."""

    def __init__(self, width: int, kind: type[nn.RNNBase], layers: int) -> None:
        super().__init__()
        self.rnn = kind(1, width, num_layers=layers, batch_first=True)

    def forward(self, h: Tensor) -> Tensor:
        return self.rnn(h.unsqueeze(-1))[0][:, -1]


def _no_grad_centre(h: Tensor) -> Tensor:
    with torch.no_grad():
        centre = h.mean(0)
    return h - centre


def _rows_in_place(h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for i in range(h.shape[1]):
        out[:, i] = h[:, i - 1].sin()
    return out


def _swapped(h: Tensor) -> Tensor:
    a, b = h.split([1, h.shape[1] - 1], -1)
    return torch.cat([b, a], -1)


def _scatter(h: Tensor) -> Tensor:
    index = torch.arange(h.shape[1]).flip(0).expand_as(h)
    return h.scatter_add(1, index, h.cos())


def _attend(h: Tensor) -> Tensor:
    x = h.unsqueeze(-1)
    return ((x @ x.transpose(1, 2)).softmax(-1) @ x).squeeze(-1)


def _ones(h: Tensor, *shape: int) -> Tensor:
    return torch.ones(*shape, dtype=h.dtype)


ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.ReLU, nn.Softplus, nn.ELU, nn.LeakyReLU,
    lambda: nn.Softmax(-1), lambda: nn.LogSoftmax(-1), nn.Mish, nn.Hardtanh, nn.SELU,
    lambda: nn.GELU("tanh"), nn.Softsign, lambda: nn.PReLU(),
]  # fmt: skip
IN_PLACE: list[Callable[[Tensor], Tensor]] = [
    F.relu_, F.leaky_relu_, F.elu_, torch.tanh_, torch.sigmoid_, lambda h: F.silu(h, inplace=True),
    lambda h: h.mul_(2), lambda h: h.add_(1), lambda h: h.clamp_(-0.7, 0.7), lambda h: h.neg_(),
    lambda h: h.div_(1 + h.detach().abs()), lambda h: F.hardtanh_(h), lambda h: h.t().mul_(0.5).t(),
    lambda h: (h[:, :1].mul_(3), h)[1], lambda h: (h[0].zero_(), h)[1], lambda h: h.square_(),
    lambda h: h.exp_().sub_(1), lambda h: (h[:, 0].add_(1).mul_(2), h)[1],
]  # fmt: skip
TWICE: list[Callable[[Tensor], Tensor]] = [
    lambda h: h @ ((h.t() @ h).softmax(-1) + (h.t() @ h).softmax(-1).t()),
    lambda h: h @ ((h.t() @ h).tanh() * (h.t() @ h).tanh().t()),
    lambda h: h.sin() + h.sin().flip(0),
    lambda h: (h.tanh().t() + h.tanh().t()).t(),
    lambda h: h.exp().sub(h.exp().mean(0)) * 0.3,
    lambda h: h.sigmoid() * h.sigmoid()[:1],
    lambda h: h.cos()[:, :1] + h.cos(),
    lambda h: (h.t() @ h).cos().sum(0) - (h.t() @ h).cos().t().sum(0) * h,
]
CONSTANTS: list[Callable[[Tensor], Tensor]] = [
    lambda h: _ones(h, 2, *h.shape)[0] * h,
    lambda h: torch.zeros(2, *h.shape, dtype=h.dtype)[1] + h,
    lambda h: torch.arange(h.numel(), dtype=h.dtype).view_as(h) * 0.1 + h,
    lambda h: _ones(h, *h.shape[::-1]).t() * h.relu(),
    lambda h: torch.eye(h.shape[1], dtype=h.dtype).expand(2, -1, -1)[1] @ h.t() @ h * 0.1 + h[:1],
    lambda h: _ones(h, len(h), 2 * h.shape[1]).chunk(2, 1)[1].contiguous() * h,
    lambda h: h + torch.linspace(0, 1, h.shape[1], dtype=h.dtype),
    lambda h: h.new_full((1,), 0.5).expand_as(h) * h,
    lambda h: _ones(h, 3, *h.shape).unbind()[2].add(h).mul(h),
    lambda h: torch.full_like(h, 0.3).t().t().sub(h),
    lambda h: torch.tril(_ones(h, h.shape[1], h.shape[1])).mul(0.2).t().matmul(h.t()).t(),
    lambda h: torch.where(torch.arange(h.shape[1]) % 2 == 0, h, h.square()),
]
PIECES: list[Callable[[Tensor], Tensor]] = [
    _swapped, _rows_in_place, _scatter, _attend, _no_grad_centre,
    lambda h: torch.stack(h.unbind(1), 1).roll(1, 0),
    lambda h: h.t().contiguous().view(-1).view(h.shape[1], len(h)).t(),
    lambda h: h.unsqueeze(1).expand(-1, 2, -1).reshape(len(h), -1)[:, : h.shape[1]] * h,
    lambda h: h + h.detach(),
    lambda h: h[:, torch.arange(h.shape[1]).flip(0)],
    lambda h: h.gather(1, h.argsort(1)),
    lambda h: h.cumsum(1) - h.logsumexp(1, keepdim=True),
    lambda h: h - h.amax(1, keepdim=True) + h.var(0),
    lambda h: torch.einsum("ni,nj->nij", h, h).mean(-1),
    lambda h: h / (1 + h.norm(dim=1, keepdim=True)),
    lambda h: h.index_select(0, torch.arange(len(h)).flip(0)) * h,
    lambda h: F.pad(h, (1, 0))[:, :-1] + h.prod(1, keepdim=True),
    lambda h: torch.cat(h.chunk(2, 0)[::-1], 0),
    lambda h: F.avg_pool1d(h.unsqueeze(1), 3, stride=1, padding=1).squeeze(1),
    lambda h: F.max_pool1d(h.unsqueeze(1), 3, stride=1, padding=1).squeeze(1),
    lambda h: F.normalize(h, dim=0) + F.one_hot(torch.arange(h.shape[1]) % 2, 2).to(h)[:, 1],
    lambda h: torch.addmm(h, h, (h.t() @ h) * 0.1, beta=0.5),
    lambda h: torch.bmm(h.unsqueeze(1), torch.diag_embed(h)).squeeze(1),
    lambda h: h.masked_fill(torch.ones_like(h, dtype=torch.bool).triu(1), 0.3),
    lambda h: h.lerp(h.flip(1), 0.3).clamp(min=-2).pow(3).mul(0.2),
    lambda h: torch.outer(h.mean(1), h.mean(0)).as_strided(h.shape, (h.shape[1], 1)),
]  # fmt: skip
PAIRS: list[Callable[[Tensor, Tensor], Tensor]] = [
    torch.add, torch.mul, torch.sub, lambda a, b: torch.cat([a, b], -1)[:, ::2],
    lambda a, b: torch.stack([a, b]).mean(0), lambda a, b: a * b.sigmoid(), torch.maximum,
    lambda a, b: a + b.t().t(), lambda a, b: torch.lerp(a, b, 0.3), torch.atan2,
    lambda a, b: F.scaled_dot_product_attention(a[:, None, :, None], b[:, None, :, None],
                                                a[:, None, :, None])[:, 0, :, 0],
    lambda a, b: a.addcmul(b, b, value=0.5), lambda a, b: a.clone().add_(b).mul_(b),
    lambda a, b: a @ (b.t() @ a).softmax(0),
]  # fmt: skip


def _pick(table: list, option: int) -> Callable:
    return table[option % len(table)]


def _norm(width: int, option: int) -> nn.Module:
    return [
        lambda: nn.BatchNorm1d(width), lambda: nn.LayerNorm(width), lambda: nn.GroupNorm(1, width),
        lambda: nn.BatchNorm1d(width, affine=False), lambda: nn.LayerNorm(width, bias=False),
        lambda: nn.BatchNorm1d(width, track_running_stats=False), lambda: nn.RMSNorm(width),
        lambda: nn.LayerNorm(width, elementwise_affine=False), lambda: nn.BatchNorm1d(width).eval(),
        lambda: nn.BatchNorm1d(width, momentum=None),
    ][option % 10]()  # fmt: skip


def _cell(width: int, option: int) -> nn.Module:
    kind = [nn.GRUCell, nn.LSTMCell, nn.RNNCell][option % 3]
    return Cell(kind(width, width), 1 + option % 2, option % 4 > 1)


def _recurrent(width: int, option: int) -> nn.Module:
    return Recurrent(width, [nn.GRU, nn.LSTM, nn.RNN][option % 3], 1 + option % 2)


def _parameter(width: int, option: int) -> nn.Module:
    return [
        lambda: Scaled((width,), lambda h, p: h * p), lambda: Scaled((), lambda h, p: h * p),
        lambda: Scaled((1, width), lambda h, p: h + p.expand_as(h)),
        lambda: Scaled((width, width), lambda h, p: h @ (p + p.t())),
        lambda: Scaled((width, width), lambda h, p: h @ (p.tanh() + p.tanh().t())),
        lambda: Scaled((2, width), lambda h, p: h * p[0] + p.unbind()[1]),
        lambda: Scaled((width, 1), lambda h, p: h * p.squeeze(1).softmax(0)),
        lambda: Scaled((1,), lambda h, p: h.pow(2) * p.exp()),
    ][option % 8]()  # fmt: skip


def _buffer(width: int, option: int) -> nn.Module:
    wide = torch.randn(width, width)
    return [
        lambda: Buffered(wide[0], lambda h, b: h * b),
        lambda: Buffered(wide, lambda h, b: h @ b.t()),
        lambda: Buffered(torch.randperm(width), lambda h, b: h[:, b]),
        lambda: Buffered(wide.t(), lambda h, b: h + b[1]),
        lambda: Buffered(wide[:, 0] > 0, lambda h, b: torch.where(b, h, -h)),
        lambda: Buffered(wide, lambda h, b: h * b.sum(0) - b.diagonal()),
    ][option % 6]()  # fmt: skip


PARTS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": lambda width, option: nn.Linear(width, width, bias=option % 2 == 0),
    "activation": lambda width, option: _pick(ACTIVATIONS, option)(),
    "in place": lambda width, option: Apply(_pick(IN_PLACE, option)),
    "norm": _norm,
    "twice": lambda width, option: Apply(_pick(TWICE, option)),
    "constant": lambda width, option: Apply(_pick(CONSTANTS, option)),
    "pieces": lambda width, option: Apply(_pick(PIECES, option)),
    "pair": lambda width, option: Pair(_pick(PAIRS, option)),
    "cell": _cell,
    "recurrent": _recurrent,
    "parameter": _parameter,
    "buffer": _buffer,
    "frozen": lambda width, option: nn.Linear(width, width).requires_grad_(False),
    "dropout": lambda width, option: [nn.Dropout(0.0), nn.Dropout(0.5).eval()][option % 2],
}
