"""Running one meta-step in several ways, and comparing all that it gives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from hand_loop import hand_loop
from problems import tensor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import fastmaml as fm
from fastmaml import ops
from fastmaml.engine.recording.captured import Captured
from fastmaml.engine.recording.tape import UncapturableError

EAGER = {"executor": "eager", "backend": "reference"}
CAPTURED = {"executor": "captured", "backend": "reference"}
PATHS: dict[str, dict[str, Any]] = {
    "captured-reference": CAPTURED,
    "captured-cpp": {"executor": "captured", "backend": "cpp"},
    "eager-cpp": {"executor": "eager", "backend": "cpp"},
}


def require(path: str) -> None:
    """Skip where the native kernels are not built."""
    status = ops.status()["cpp"]
    if path.endswith("cpp") and not status.startswith("available"):
        pytest.skip(f"no native kernels: {status}")


class Outcome(NamedTuple):
    """Losses, query outputs and gradients of one meta-step."""

    losses: Tensor
    outputs: list[Any]
    gradients: list[Tensor | None]
    """Of every trainable meta-parameter; None where there is none."""
    gradient: Tensor
    """All of them as one vector, with zeros for None."""

    def same_bits(self, other: Outcome) -> bool:
        """Whether everything is equal to the last bit, and None in the same places."""
        pairs = zip(self._all(), other._all(), strict=True)
        return all(
            a.dtype == b.dtype and torch.equal(a, b)
            if isinstance(a, Tensor) and isinstance(b, Tensor)
            else (a is None and b is None) or a == b
            for a, b in pairs
        )

    def check_close(self, other: Outcome, tolerance: float) -> None:
        """Raise unless each tensor is within `tolerance` of the other's norm.

        For gradients that is the norm of all of them: some are zero but for rounding, such as that
        of a bias before a normalisation.
        """
        whole = float(other.gradient.norm())
        firsts = 1 + len(self.outputs)
        for i, (a, b) in enumerate(zip(self._all(), other._all(), strict=True)):
            assert isinstance(a, Tensor) == isinstance(b, Tensor)
            if isinstance(a, Tensor):
                assert a.shape == b.shape
                scale = float(b.norm()) if i < firsts else whole
                assert float((a - b).norm()) <= tolerance * scale

    def _all(self) -> Sequence[Any]:
        return [self.losses, *self.outputs, *self.gradients]


def outcome(maml: fm.MAML, episodes: fm.Episodes, seed: int = 5, **options: Any) -> Outcome:
    """One meta-step and its backward pass, from a clean `.grad` and a fixed seed."""
    maml.zero_grad()
    torch.manual_seed(seed)
    out = maml(episodes, **options)
    out.loss.backward()
    outputs = [x.detach() if isinstance(x, Tensor) else x for x in tree_leaves(out.outputs)]
    trainable = [p for p in maml.parameters() if p.requires_grad]
    filled = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainable]
    gradient = torch.cat([g.flatten() for g in filled])
    return Outcome(out.losses.detach(), outputs, [p.grad for p in trainable], gradient)


def recordings(maml: fm.MAML) -> int:
    """How many are kept."""
    executor = maml._execute
    assert isinstance(executor, Captured)
    kept = executor._kept.values()
    assert not any(isinstance(found, UncapturableError) for found in kept)
    return len(kept)


def as_by_hand(
    maml: fm.MAML, episodes: fm.Episodes, loss: Any = F.mse_loss, lr: float = 0.3, steps: int = 2
) -> None:
    """One call's loss and gradient, and evaluation, are those of the plain loop."""
    expected_loss, expected = hand_loop(maml.module, loss, episodes, lr, steps)
    maml.zero_grad()
    out = maml(episodes)
    out.loss.backward()
    torch.testing.assert_close(out.loss.detach(), expected_loss, rtol=1e-9, atol=1e-12)
    found = maml.evaluate(episodes).losses.mean()
    torch.testing.assert_close(found, expected_loss, rtol=1e-9, atol=1e-12)
    for name, p in maml.module.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-12)


def vectors(tasks: int = 3, examples: int = 4, seed: int = 1) -> fm.Episodes:
    """A regression from three numbers to two; `examples` are the query set's."""
    x = [tensor(tasks, n, 3, seed=seed + i) for i, n in enumerate((4, examples))]
    return fm.Episodes(*(fm.Batch(v, v[..., :2].sin()) for v in x))


def pair(
    build: Callable[[], nn.Module], loss: Any = F.mse_loss, **options: Any
) -> tuple[fm.MAML, fm.MAML]:
    """The same learner in float64, captured and eager, both on plain PyTorch.

    The rule, if any, is given as a function, as each has learned rates of its own.
    """
    torch.manual_seed(0)
    model = build().double()
    if "rule" not in options:
        options = {"lr": 0.3, **options}

    def made(how: dict[str, Any]) -> fm.MAML:
        own = {**options, "rule": options["rule"]()} if "rule" in options else options
        return fm.MAML(copy.deepcopy(model), loss=loss, **{"steps": 2, **own, **how})

    return made(CAPTURED), made(EAGER)


def agree(captured: fm.MAML, eager: fm.MAML, episodes: fm.Episodes, **options: Any) -> Outcome:
    """Check that both give the same bits."""
    found = outcome(captured, episodes, **options)
    assert found.same_bits(outcome(eager, episodes, **options))
    return found
