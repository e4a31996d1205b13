"""Parameters, buffers and plain tensors: written in place, replaced, given other memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from properties.readers.base import Reader, attribute, module, replaced

DOUBLE = torch.float64


def _full(v: float) -> Tensor:
    return torch.full((3,), v, dtype=DOUBLE)


class Own(nn.Module):
    """A parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3, dtype=DOUBLE) + 0.1)
        self.bias: nn.Parameter | None = nn.Parameter(_full(0.1))
        self.register_buffer("scale", _full(1.0))
        self.register_buffer("on", torch.tensor(False))
        self.register_buffer("mask", torch.tensor([True, False, True]))

    def forward(self, y: Tensor) -> Tensor:
        return nn.functional.linear(y, self.weight, self.bias) * self.scale


class Branches(Own):
    def forward(self, y: Tensor) -> Tensor:
        return super().forward(y) if self.on else y * self.scale


class Masks(Own):
    def forward(self, y: Tensor) -> Tensor:
        return super().forward(y) + y[:, self.mask].sum()


class All(Own):
    def forward(self, y: Tensor) -> Tensor:
        return y * sum(p.square().sum() for p in self.parameters())


class State(Own):
    def forward(self, y: Tensor) -> Tensor:
        return y * sum(x.double().sum() for x in self.state_dict().values())


def _no_grad_write(m: Own, v: float) -> None:
    with torch.no_grad():
        m.weight.mul_(v)


def _data(m: Own, v: float) -> None:
    m.weight.data = torch.full((3, 3), v, dtype=DOUBLE)


def _transposed(m: Own, v: float) -> None:
    m.weight.data = (m.weight.data * v).t().contiguous().t()


def _new_parameter(m: Own, v: float) -> None:
    m.weight = nn.Parameter(m.weight.detach() * v)


def _no_bias(m: Own, v: float) -> None:
    m.bias = None if v > 1 else nn.Parameter(_full(v))


def _flip(m: Own, v: float) -> None:
    m.weight.requires_grad_(v <= 1)


def _load(m: Own, v: float) -> None:
    state = {n: x * v if x.is_floating_point() else x for n, x in m.state_dict().items()}
    m.load_state_dict(state, assign=v > 1)


def _set_(m: nn.Module, v: float) -> None:
    m.own.set_(_full(v))


def _to_and_back(m: Own, v: float) -> None:
    m.float()
    m.double()


def _tie(m: Own, v: float) -> None:
    m.scale = m.bias.detach() if m.bias is not None else _full(v)


def _register(m: Own, v: float) -> None:
    m.register_parameter(f"extra{int(2 * v)}", nn.Parameter(_full(v)))


OWN = (
    _no_grad_write,
    _data,
    _transposed,
    _new_parameter,
    _no_bias,
    _flip,
    _load,
    _to_and_back,
    lambda m, v: m.scale.fill_(v),
    lambda m, v: setattr(m, "scale", _full(v)),
    lambda m, v: setattr(m.scale, "data", _full(v)),
    lambda m, v: m.scale.copy_(_full(v)),
    lambda m, v: m._buffers.__setitem__("scale", _full(v)),
    lambda m, v: setattr(m, "scale", _full(v).expand(2, 3)[1]),
    lambda m, v: m.scale.resize_(3),
    _tie,
)
_times = lambda x, y: y * x  # noqa: E731

TENSORS: dict[str, Reader] = {
    "parameter and buffer": module(Own, *OWN),
    "buffer branch": module(Branches, lambda m, v: m.on.fill_(v > 1), *OWN[8:10]),
    "buffer mask": module(
        Masks,
        lambda m, v: m.mask.copy_(torch.tensor([v > 1, True, v < 1])),
        lambda m, v: setattr(m.mask, "data", torch.tensor([True, v > 1, True])),
    ),
    "all parameters": module(All, _register, _no_grad_write, _no_bias),
    "state dict": module(State, _no_grad_write, lambda m, v: m.scale.fill_(v), _new_parameter),
    "tensor": attribute(
        lambda: _full(1.0),
        _times,
        lambda m, v: m.own.fill_(v),
        replaced(_full),
        lambda m, v: setattr(m.own, "data", _full(v)),
        _set_,
    ),
    "tensor item": attribute(
        lambda: _full(1.0),
        lambda x, y: y * x[0].item(),
        lambda m, v: m.own.fill_(v),
        replaced(_full),
    ),
    "tensor shape": attribute(
        lambda: _full(1.0), lambda x, y: y * x.shape[0], replaced(lambda v: torch.zeros(int(2 * v)))
    ),
    "tensor view": attribute(
        lambda: torch.ones(2, 3, dtype=DOUBLE)[1],
        _times,
        lambda m, v: m.own._base.fill_(v),
        replaced(_full),
    ),
    "tensor in a list": attribute(
        lambda: [_full(1.0)],
        lambda x, y: y * x[0],
        lambda m, v: m.own.__setitem__(0, _full(v)),
        lambda m, v: m.own[0].fill_(v),
    ),
    "tensor in a dict": attribute(
        lambda: {"k": _full(1.0)},
        lambda x, y: y * x["k"],
        lambda m, v: m.own.__setitem__("k", _full(v)),
    ),
    "tensor of numpy": attribute(
        lambda: torch.from_numpy(np.ones(3)), _times, lambda m, v: m.own.numpy().fill(v)
    ),
    "plain mask": attribute(
        lambda: torch.tensor([True, False, True]),
        lambda x, y: y + y[:, x].sum(),
        lambda m, v: m.own.copy_(torch.tensor([v > 1, True, v < 1])),
        replaced(lambda v: torch.tensor([True, v > 1, True])),
    ),
    "index": attribute(
        lambda: torch.tensor([0, 1, 2]),
        lambda x, y: y[:, x],
        lambda m, v: m.own.copy_(torch.tensor([2, 1, int(v)])),
        replaced(lambda v: torch.tensor([int(v) % 3, 0, 0])),
    ),
    "dtype of tensor": attribute(
        lambda: _full(1.0),
        lambda x, y: y.sin() if x.dtype == DOUBLE else y,
        replaced(lambda v: torch.ones(1) if v > 1 else _full(v)),
    ),
    "requires grad": attribute(
        lambda: _full(1.0),
        lambda x, y: y.sin() if x.requires_grad else y,
        lambda m, v: m.own.requires_grad_(v > 1),
    ),
    "parameter list": attribute(
        lambda: nn.ParameterList([_full(1.0)]),
        lambda x, y: y * sum(x),
        lambda m, v: m.own.append(nn.Parameter(_full(v))),
        lambda m, v: m.own.__setitem__(0, nn.Parameter(_full(v))),
    ),
    "parameter dict": attribute(
        lambda: nn.ParameterDict({"k": _full(1.0)}),
        lambda x, y: y * x["k"],
        lambda m, v: m.own.__setitem__("k", nn.Parameter(_full(v))),
    ),
    "hidden module": attribute(
        lambda: [nn.Linear(3, 3).double().requires_grad_(False)],
        lambda x, y: y + x[0](y),
        lambda m, v: m.own[0].weight.fill_(v),
        lambda m, v: setattr(m.own[0].weight, "data", m.own[0].weight * v),
        lambda m, v: setattr(m.own[0], "weight", nn.Parameter(m.own[0].weight * v, False)),
    ),
}
