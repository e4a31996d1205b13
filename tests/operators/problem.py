"""A small model around one operator, whose inner loss is far from quadratic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from fastmaml.episodes.batch import Batch, Episodes

from .database import parts

TASKS, STEPS = 2, 2
STEP_SIZE = 0.05
"""An inner step changes the largest parameter by this much of itself, about."""


@dataclass(frozen=True)
class Variant:
    """How the operator stands in the model.

    Attributes:
        name: in results.
        inplace: whether it writes to its first argument.
        adapts: whether its arguments are adapted by the inner loop; else only what follows is.
    """

    name: str
    inplace: bool = False
    adapts: bool = True

    def scope(self, name: str) -> bool:
        return self.adapts or name == "gain"


VARIANTS = (Variant("plain"), Variant("in place", inplace=True), Variant("shared", adapts=False))


class OperatorModel(nn.Module):
    """``gain·op(parameters)``, made curved, from the trainable tensors of a sample.

    Args:
        function: the operator.
        sample: what it is called with; dense tensors that require a gradient become parameters,
            the others buffers.
        inplace: whether `function` writes to its first argument.
        reach: by how much of what is usual its arguments move: little, near the edge of a domain.
    """

    def __init__(
        self, function: Callable[..., Any], sample: Any, inplace: bool, reach: float
    ) -> None:
        super().__init__()
        leaves, self.spec = tree_flatten(parts(sample))
        self.function, self.inplace, self.reach = function, inplace, reach
        self.processed = sample.output_process_fn_grad
        self.names: list[str | None] = []
        self.rest: list[Any] = []
        for i, x in enumerate(leaves):
            self.names.append(self._hold(i, x))
            self.rest.append(None if isinstance(x, Tensor) else x)
        self.gain = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        with torch.no_grad():
            found = self._outputs(torch.zeros(1, dtype=torch.float64))
        if not found:
            raise ValueError("it returns no tensor")
        sizes = [float(y.double().abs().max()) for y in found if y.numel()]
        self.factor = 1 / max([*sizes, 1e-3])
        floats = [y.dtype for y in (*found, *self.parameters()) if y.is_floating_point()]
        self.precision = max(torch.finfo(dtype).eps for dtype in floats)

    def _hold(self, place: int, x: Any) -> str | None:
        if not isinstance(x, Tensor):
            return None
        if not x.requires_grad or x.layout != torch.strided:
            self.register_buffer(f"constant{place}", x.detach().clone())
            return f"constant{place}"
        kind = "complex" if x.is_complex() else "real"
        value = x.detach().resolve_conj().resolve_neg().clone()
        value = torch.view_as_real(value).clone() if x.is_complex() else value
        self.register_parameter(f"{kind}{place}", nn.Parameter(value))
        return f"{kind}{place}"

    def _outputs(self, x: Tensor) -> list[Tensor]:
        """What the operator returns, as real vectors."""
        stretch = 1 + 0.02 * self.reach * x.squeeze(0)
        arguments = list(self.rest)
        for i, name in enumerate(self.names):
            if name is not None:
                arguments[i] = self._argument(name, getattr(self, name), stretch)
        first, args, kwargs = tree_unflatten(arguments, self.spec)
        if self.inplace:
            first = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, first)
        result = self.processed(self.function(first, *args, **kwargs))
        tensors = [y for y in tree_leaves(result) if isinstance(y, Tensor)]
        return [_real(y) for y in tensors]

    @staticmethod
    def _argument(name: str, value: Tensor, stretch: Tensor) -> Tensor:
        if name.startswith("constant"):
            return value
        value = value * stretch.to(value.dtype)
        return torch.view_as_complex(value) if name.startswith("complex") else value

    def forward(self, x: Tensor) -> Tensor:
        outputs = [y.to(torch.float64) for y in self._outputs(x)]
        y = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        return (self.gain * self.factor * y).sin()


def _real(y: Tensor) -> Tensor:
    if y.layout != torch.strided:
        y = y.to_dense()
    if y.is_complex():
        y = torch.view_as_real(y.resolve_conj())
    return y.reshape(-1)


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Squares, no two of which have the same weight."""
    size = len(output)
    weights = torch.linspace(1 / max(size, 1), 2 / max(size, 1), size, dtype=torch.float64)
    return torch.dot(weights, (output - target).square())


def episodes() -> Episodes:
    """Tasks that differ, support sets that differ from query sets."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    sets = (Batch(numbers(TASKS, 1), 0.3 + 0.1 * numbers(TASKS, 1)) for _ in range(2))
    return Episodes(*sets)


def nudged(model: OperatorModel) -> None:
    """Move every parameter by one per cent, or less."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + 0.01 * model.reach)
