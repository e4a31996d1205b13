"""Small models of transformers, episodes of token numbers, and the meta-gradient by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

import fastmaml as fm
from fastmaml import ops
from fastmaml.engine.base.seeds import step_keys, task_seeds

METHODS = {
    "unrolled": fm.gradients.Unrolled(),
    "checkpointed": fm.gradients.Checkpointed(),
    "segments": fm.gradients.Checkpointed(2),
    "mixed-mode": fm.gradients.MixedMode(),
    "mixed-segments": fm.gradients.MixedMode(2),
}
PATHS: dict[str, dict[str, Any]] = {
    "eager": {"executor": "eager", "backend": "reference"},
    "captured": {"executor": "captured", "backend": "reference"},
    "native": {},
}
TOLERANCE = 1e-10

VOCABULARY, LENGTH, CLASSES = 2500, 9, 3

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
    "num_labels": CLASSES,
}


def bert(kind: str = "BertForSequenceClassification", **more: Any) -> nn.Module:
    """A BERT of two layers in float64, in evaluation mode."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(**{**SIZES, **more})
    model: nn.Module = getattr(transformers, kind)(config).double().eval()
    return model


def episodes(tasks: int = 2, examples: int = 4, seed: int = 1, padding: bool = True) -> fm.Episodes:
    """Random tokens, padded at the end to random lengths; padding is token 0."""
    generator = torch.Generator().manual_seed(seed)

    def batch() -> fm.Batch:
        shape = (tasks, examples, LENGTH)
        tokens = torch.randint(1, VOCABULARY, shape, generator=generator)
        tokens[..., 0] = 5  # some token that all share
        lengths = torch.randint(3, LENGTH + 1, shape[:2], generator=generator)
        mask = (torch.arange(LENGTH) < lengths.unsqueeze(-1)).long()
        mask = mask if padding else torch.ones_like(mask)
        labels = torch.randint(CLASSES, shape[:2], generator=generator)
        return fm.Batch({"input_ids": tokens * mask, "attention_mask": mask}, labels)

    return fm.Episodes(batch(), batch())


class HandMadeDropout(TorchFunctionMode):
    """F.dropout as the definition of fastmaml's masks has it, call by call."""

    def __init__(self, key: Tensor) -> None:
        super().__init__()
        self.key, self.calls = key, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not F.dropout:
            return func(*args, **(kwargs or {}))
        return self.dropout(*args, **(kwargs or {}))

    def dropout(
        self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return input
        self.calls += 1
        return (
            input
            * ops.dropout_mask((self.key + self.calls).unsqueeze(0), list(input.shape), p, input)[0]
        )


def by_hand(
    model: nn.Module,
    batch: fm.Episodes,
    steps: int,
    lr: float,
    adapts: Callable[[str], bool] = lambda name: True,
    loss: Callable[[Any, Any], Tensor] = fm.losses.classification,
    head: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The mean query loss after inner steps written out, in plain PyTorch, task after task.

    `head` is what every task begins with in place of the model's parameters of these names.

    Seeds are drawn as `MAML` draws them, so that dropout masks can be the same.
    """
    seeds = task_seeds(batch.tasks, torch.device("cpu"))
    names = [n for n, p in model.named_parameters() if p.requires_grad and adapts(n)]
    total = torch.zeros((), dtype=torch.float64)
    for task in range(batch.tasks):
        theta: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        theta |= head or {}
        for step in range(steps):
            value = _loss(model, theta, batch.support, task, step_keys(seeds, step, False), loss)
            found = torch.autograd.grad(
                value, [theta[n] for n in names], create_graph=True, materialize_grads=True
            )
            theta |= {n: theta[n] - lr * g for n, g in zip(names, found, strict=True)}
        keys = step_keys(seeds, steps, True)
        total = total + _loss(model, theta, batch.query, task, keys, loss)
    return total / batch.tasks


def _loss(
    model: nn.Module,
    theta: dict[str, Tensor],
    part: fm.Batch,
    task: int,
    keys: Tensor,
    loss: Callable[[Any, Any], Tensor],
) -> Tensor:
    own = part.map(lambda x: x[task])
    with sdpa_kernel(SDPBackend.MATH), HandMadeDropout(keys[task]):
        return loss(functional_call(model, theta, (), own.inputs), own.targets)


def meta_gradient(maml: fm.MAML, batch: fm.Episodes, seed: int = 3) -> list[Tensor | None]:
    maml.zero_grad()
    torch.manual_seed(seed)
    maml(batch).loss.backward()
    return [p.grad for p in maml.module.parameters()]


def hand_gradient(model: nn.Module, batch: fm.Episodes, *given: Any, **more: Any) -> Any:
    model.zero_grad()
    torch.manual_seed(3)
    by_hand(model, batch, *given, **more).backward()
    return [p.grad for p in model.parameters()]


def check(
    found: list[Tensor | None], expected: list[Tensor | None], tolerance: float = TOLERANCE
) -> None:
    """Equal up to rounding, relative to the whole gradient; None may stand for zero."""
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a is not None or b is not None]
    norm = torch.stack([b.norm() for _, b in pairs if b is not None]).norm()
    assert norm > 0
    for a, b in pairs:
        left = 0.0 if a is None else a
        right = torch.zeros_like(a) if b is None else b  # type: ignore[arg-type]
        assert float((left - right).norm()) <= tolerance * float(norm)
