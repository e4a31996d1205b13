"""Random networks as plain data, the modules that they describe, and episodes for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

import fastmaml as fm
from properties.parts import PARTS, Pair

CLASSES = 3


@dataclass(frozen=True)
class Node:
    """One layer: what it is, and how far back it reads (0: the value before it).

    `again` runs the module of an earlier node in place of a new one; `used` is False for a layer
    that has parameters and is never called.
    """

    kind: str
    option: int = 0
    source: int = 0
    other: int = 0
    again: bool = False
    used: bool = True


@dataclass(frozen=True)
class Network:
    """An entrance, a graph of layers, and a last linear layer."""

    entrance: str = "vector"
    option: int = 0
    width: int = 3
    nodes: tuple[Node, ...] = ()
    classifies: bool = False
    output: str = "tensor"


class Vector(nn.Module):
    """``[n, 2]``."""

    def __init__(self, width: int, option: int) -> None:
        super().__init__()
        self.first = nn.Linear(2, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)


class Image(nn.Module):
    """``[n, 2, 4, 4]``: a block of convolution, normalisation, activation and pooling."""

    def __init__(self, width: int, option: int) -> None:
        super().__init__()
        conv = nn.Conv2d(2, width, 1 + option % 3, padding=option % 2, stride=1 + option % 5 // 4)
        norms = [nn.BatchNorm2d(width), nn.GroupNorm(1, width), nn.Identity()]
        acts = [nn.ReLU(), nn.Tanh(), nn.ReLU(inplace=True), nn.GELU()]
        pools = [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Identity()]
        self.block = nn.Sequential(
            conv, norms[option % 3], acts[option % 4], pools[option // 3 % 4]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x).mean((2, 3))


class Tokens(nn.Module):
    """``[n, 3]`` of six words."""

    def __init__(self, width: int, option: int) -> None:
        super().__init__()
        self.table = nn.Embedding(6, width, padding_idx=0 if option % 2 else None)
        self.position = nn.Embedding(3, width)
        self.option = option

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x)
        if self.option % 3 == 1:
            h = h + self.position(torch.arange(x.shape[1]))
        if self.option % 5 == 4:  # the table as a whole, as a tied read-out uses it
            h = (h @ self.table.weight.t()).softmax(-1) @ self.table.weight
        return h[:, 0] if self.option % 4 == 3 else h.mean(1)


class Sequence(nn.Module):
    """``[n, 3, 2]``: PyTorch's recurrent layers, a cell over the steps, or one written by hand."""

    def __init__(self, width: int, option: int) -> None:
        super().__init__()
        self.option, self.width = option, width
        layers = {0: nn.GRU, 1: nn.LSTM, 2: nn.RNN}
        cells = {3: nn.GRUCell, 4: nn.LSTMCell, 5: nn.RNNCell}
        kind = option % 7
        if kind in layers:
            self.rnn = layers[kind](2, width, batch_first=True)
        else:
            self.rnn = cells[kind](2, width) if kind in cells else nn.Linear(2 + width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        kind = self.option % 7
        if kind < 3:
            return self.rnn(x)[0][:, -1]
        h, c = torch.zeros(len(x), 2 * self.width, dtype=x.dtype).chunk(2, 1)
        for t in range(x.shape[1]):
            if kind == 6:
                gate, new = self.rnn(torch.cat([x[:, t], h], 1)).chunk(2, 1)
                h = h + gate.sigmoid() * (new.tanh() - h)
            else:
                h = self.rnn(x[:, t], (h, c) if kind == 4 else h)
                h, c = h if kind == 4 else (h, c)
        return h


class Named(nn.Module):
    """Two inputs, given by name or as a tuple."""

    def __init__(self, width: int, option: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(2, width), nn.Linear(1, width)
        self.option = option

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x, y = self.left(a), self.right(b)
        return x.tanh() * y if self.option % 2 else x + y


ENTRANCES: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "vector": (Vector, (2,)),
    "image": (Image, (2, 4, 4)),
    "tokens": (Tokens, (3,)),
    "sequence": (Sequence, (3, 2)),
    "dict": (Named, ()),
    "tuple": (Named, ()),
}


class Net(nn.Module):
    """The module of a `Network`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.entrance = ENTRANCES[network.entrance][0](network.width, network.option)
        self.layers = nn.ModuleList()
        for node in network.nodes:
            if node.again and len(self.layers):
                self.layers.append(self.layers[node.option % len(self.layers)])
            else:
                self.layers.append(PARTS[node.kind](network.width, node.option))
        self.head = nn.Linear(network.width, CLASSES)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        values = [self.entrance(*args, **kwargs)]
        for node, layer in zip(self.network.nodes, self.layers, strict=True):
            if node.used:
                given = [values[-1 - node.source % len(values)]]
                if isinstance(layer, Pair):
                    given.append(values[-1 - node.other % len(values)])
                values.append(layer(*given))
        y = self.head(values[-1])
        return {"tensor": y, "dict": {"y": y, "h": values[-1]}, "tuple": (y, len(values))}[
            self.network.output
        ]


def _first(output: Any) -> Tensor:
    return (
        output["y"] if isinstance(output, dict) else output[0] if type(output) is tuple else output
    )


def squared(output: Any, targets: Tensor) -> Tensor:
    return F.mse_loss(_first(output), targets)


def entropy(output: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(_first(output), targets)


def loss_of(network: Network) -> Any:
    """Cross-entropy or the mean square."""
    return entropy if network.classifies else squared


def build(network: Network, seed: int) -> Net:
    """In float64, the same for the same seed."""
    torch.manual_seed(seed)
    return Net(network).double()


def episodes_for(network: Network, tasks: int, seed: int) -> fm.Episodes:
    """Random support and query sets, of different sizes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    def batch(n: int) -> fm.Batch:
        inputs: Any = normal(tasks, n, *ENTRANCES[network.entrance][1])
        if network.entrance == "tokens":
            inputs = torch.randint(6, inputs.shape, generator=generator)
        if network.entrance in ("dict", "tuple"):
            inputs = {"a": normal(tasks, n, 2), "b": normal(tasks, n, 1)}
            inputs = inputs if network.entrance == "dict" else tuple(inputs.values())
        classes = torch.randint(CLASSES, (tasks, n), generator=generator)
        return fm.Batch(inputs, classes if network.classifies else normal(tasks, n, CLASSES))

    return fm.Episodes(batch(4), batch(3))


NODES = st.builds(
    Node,
    kind=st.sampled_from(sorted(PARTS)),
    option=st.integers(0, 39),
    source=st.sampled_from([0, 0, 0, 0, 1, 2]),
    other=st.integers(0, 3),
    again=st.sampled_from([False] * 7 + [True]),
    used=st.sampled_from([True] * 11 + [False]),
)
NETWORKS = st.builds(
    Network,
    entrance=st.sampled_from(sorted(ENTRANCES)),
    option=st.integers(0, 20),
    width=st.integers(2, 4),
    nodes=st.lists(NODES, max_size=5).map(tuple),
    classifies=st.booleans(),
    output=st.sampled_from(["tensor", "tensor", "dict", "tuple"]),
)
