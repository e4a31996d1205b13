"""Networks whose layers reach the kernels, or just do not, as learners called by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmaml.compat import learn2learn as l2l

WAYS = 3


def block(inputs: int, *more: nn.Module, **options: Any) -> nn.Sequential:
    conv = nn.Conv2d(inputs, 6, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(6, **options), *more)


def head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(width, WAYS))


class ByFunctions(nn.Module):
    """A residual block whose results are views, and are written over."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.again = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 1, bias=False)
        self.norm, self.out = nn.BatchNorm2d(6), nn.Linear(54, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        seen = x.view(len(x), 6, -1)
        x = self.norm(x)
        y = F.max_pool2d(torch.relu(x) + self.again(F.relu(x, inplace=True)), 2)
        y = y + seen.mean(-1)[..., None, None]
        flat = y.view(len(y), -1)
        flat.mul_(0.5)
        return self.out((flat + y.flatten(1)).view(len(x), -1))


class Alone(nn.Module):
    """A ReLU over a convolution's result that somebody still has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Linear(96, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.conv(x)
        again = kept.relu_()
        y = self.norm(kept * again.view(len(x), 6, 4, 4))
        return self.out(y.view(len(x), -1) + again.flatten(1))


class Behind(nn.Module):
    """Writes to results in ways that no version counts, and goes through parts without a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Linear(24, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, :3].data.mul_(0.5)
        y = self.norm(y)
        y.detach().numpy()[0] = 1
        y = F.max_pool2d(torch.relu(y), 2)
        with torch.no_grad():
            shift = self.norm(self.conv(x)).mean((2, 3))
        with torch.inference_mode():
            self.norm(self.conv(x.clone()))
        return self.out(y.flatten(1)) + shift[:, :WAYS]


class Scaled(l2l.vision.models.cnn4.ConvBlock):
    """It inherits what its parent's ``forward`` calls, and has one of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2 + 1


class Backwards(nn.Sequential):
    """Its modules in another order."""

    def __iter__(self) -> Any:
        return iter([*self._modules.values()][::-1])


class Inside(nn.Module):
    """A row in regions where the kernels have no business, and once where they have."""

    def __init__(self) -> None:
        super().__init__()
        self.row = block(2, nn.ReLU(), nn.MaxPool2d(2), track_running_stats=False)
        self.out = head(54)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            fixed = self.row(x)
        with torch.inference_mode():
            self.row(x.clone())
        flat = torch.vmap(lambda y: self.row[3](self.row[2](y)))(x)
        along = torch.func.grad(lambda y: self.row(y).square().sum())(x)
        return self.out(self.row(x) + fixed + flat.mean() + along.mean())


class Residual(nn.Module):
    """Two convolutions beside one, each normalised, as ResNets have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(3))
        self.relu, self.beside = nn.LeakyReLU(0.1), nn.Conv2d(2, 6, 1, bias=False)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norms[0](self.first(x)))
        y = self.norms[1](self.second(y)) + self.norms[2](self.beside(x))
        return self.pool(self.relu(y))


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            8, 2, 16, dropout=0.0, activation="gelu", batch_first=True
        )
        self.out = nn.Linear(8, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.arange(9) > 6
        h = self.layer(x.flatten(2)[..., :8], src_key_padding_mask=mask.expand(len(x), 9)[:, :2])
        return self.out(F.silu(h).mean(1))


def in_place() -> nn.Module:
    relu = nn.ReLU(inplace=True)  # one, used twice
    blocks = block(2, relu, nn.MaxPool2d(2)), block(6, relu, nn.MaxPool2d(2, stride=2))
    return nn.Sequential(*blocks, head(6))


def hooked() -> nn.Module:
    """Hooks see what goes between the layers, and change it."""
    model = nn.Sequential(block(2, nn.ReLU(), nn.MaxPool2d(2)), head(54))
    model[0][0].register_forward_hook(lambda module, inputs, y: y.view(y.shape) + 0.1)
    model[0][2].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    return model


def with_its_own_forward() -> nn.Module:
    model = nn.Sequential(block(2, nn.ReLU(), nn.MaxPool2d(2)), head(54))
    model[0][2].forward = lambda x: F.leaky_relu(x, 0.3)
    return model


def a_row_with_its_own_forward() -> nn.Module:
    model = nn.Sequential(block(2, nn.ReLU(), nn.MaxPool2d(2)), head(54))
    row = model[0]
    row.forward = lambda x: nn.Sequential.forward(row, x) * 3
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "pooled": lambda: nn.Sequential(
        block(2, nn.ReLU(), nn.MaxPool2d(2)), block(6, nn.ReLU(), nn.MaxPool2d(2)), head(6)
    ),
    "without statistics": lambda: nn.Sequential(
        block(2, nn.ReLU(), track_running_stats=False), nn.MaxPool2d(3), head(24)
    ),
    "without weights": lambda: nn.Sequential(block(2, nn.ReLU(), affine=False), head(216)),
    "averaging statistics": lambda: nn.Sequential(block(2, nn.Tanh(), momentum=None), head(216)),
    "evaluating": lambda: nn.Sequential(
        block(2, nn.ReLU(), nn.MaxPool2d(2)).eval(), nn.Conv2d(6, 4, 2, stride=2), head(4)
    ),
    "frozen": lambda: nn.Sequential(block(2, nn.ReLU()).requires_grad_(False), head(216)),
    "channels-last inside": lambda: nn.Sequential(
        block(2, nn.ReLU()), nn.Conv2d(6, 4, 3, groups=2, padding="same"), nn.GELU(), head(144)
    ),
    "channels-last weights": lambda: nn.Sequential(
        block(2, nn.ReLU(), nn.MaxPool2d(2)), block(6).to(memory_format=torch.channels_last)
    ).append(nn.Sequential(nn.AdaptiveAvgPool2d(1), head(6))),
    "in place": in_place,
    "hooked": hooked,
    "its own forward": with_its_own_forward,
    "a row with its own forward": a_row_with_its_own_forward,
    "backwards": lambda: nn.Sequential(
        Backwards(nn.ReLU(), nn.BatchNorm2d(6), nn.Conv2d(2, 6, 3, padding=1)), head(216)
    ),
    "inherits": lambda: nn.Sequential(Scaled(2, 6, 3), head(54)),
    "inside": Inside,
    "functions": ByFunctions,
    "alone": Alone,
    "behind": Behind,
    "attends": Attends,
    "learn2learn's": lambda: nn.Sequential(
        l2l.vision.models.ConvBase(6, 2, max_pool=True, layers=2), head(6)
    ),
    "residual": lambda: nn.Sequential(Residual(), head(54)),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    if name == "evaluating":
        model[0][1].running_mean.uniform_(-1, 1)
    return model
