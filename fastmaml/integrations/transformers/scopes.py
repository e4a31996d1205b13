"""Which parameters of a language model adapt: predicates for ``MAML(scope=...)``."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn

Predicate = Callable[[str, nn.Parameter], bool]


def last_layers(model: nn.Module, count: int) -> Predicate:
    """The last `count` blocks of the encoder or decoder, and everything after them.

    Args:
        model: whose blocks are the longest `nn.ModuleList` that is not inside another one.
        count: how many, from the end.

    Raises:
        ValueError: the model has no list of blocks, or fewer.
    """
    name, blocks = _blocks(model)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(blocks):
        raise ValueError(f"count={count!r}: the model has {len(blocks)} layers ({name}.*).")
    names = [n for n, _ in model.named_parameters()]
    inside = [_block(n, name) for n in names]
    last = max(i for i, block in enumerate(inside) if block is not None)
    first = len(blocks) - count
    chosen = {
        n
        for i, (n, block) in enumerate(zip(names, inside, strict=True))
        if (i > last if block is None else block >= first)
    }
    return lambda n, p: n in chosen


def bias(model: nn.Module) -> Predicate:
    """Every bias of `model`, and its head: BitFit (Ben Zaken et al., 2022)."""
    head = set(_head(model))
    return lambda n, p: n in head or n.rpartition(".")[2] == "bias"


def lora(model: nn.Module) -> Predicate:
    """The low-rank adapters that `peft` put into the model, and the classifier on top.

    Where the weights under the adapters are frozen, as `peft` leaves them, that is all that is
    trainable. Where they are not, so that they are meta-learned, it is the adapters and what lies
    outside the pretrained model (the last sub-module, in one that names no such).

    Raises:
        ValueError: there are none.
    """
    named = dict(model.named_parameters())
    adapters = {n for n in named if ".lora_" in n}
    frozen = any(".base_layer." in n and not p.requires_grad for n, p in named.items())
    head = {n for n, p in named.items() if p.requires_grad} if frozen else set(_on_top(model))
    if not adapters:
        raise ValueError(
            f"{type(model).__name__} has no LoRA adapters: put them in with peft, or load it with "
            "integrations.transformers.sequence_classifier(..., lora=Lora())."
        )
    return lambda n, p: n in head or n in adapters


def _head(model: nn.Module) -> list[str]:
    """The parameters of the last sub-module that has trainable ones, as scope 'head' has them."""
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    owner = trainable[-1].rpartition(".")[0] if trainable else ""
    return [n for n in trainable if n.rpartition(".")[0] == owner]


def _on_top(model: nn.Module) -> list[str]:
    """The trainable parameters outside the pretrained model, which transformers names."""
    for name, module in model.named_modules():
        prefix = getattr(module, "base_model_prefix", None)
        if prefix in module._modules:
            inside = f"{name}.{prefix}.".removeprefix(".")
            trainable = (n for n, p in model.named_parameters() if p.requires_grad)
            return [n for n in trainable if not n.startswith(inside)] or _head(model)
    return _head(model)


def _blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    outer = [(n, m) for n, m in found if not any(n.startswith(f"{o}.") for o, _ in found)]
    if not outer:
        raise ValueError(
            f"{type(model).__name__} has no nn.ModuleList of layers: give MAML(scope=...) a name "
            "pattern or a predicate of your own."
        )
    return max(outer, key=lambda pair: len(pair[1]))


def _block(parameter: str, blocks: str) -> int | None:
    """The number of the block that a parameter is in."""
    match = re.match(rf"{re.escape(blocks)}\.(\d+)\.", parameter)
    return int(match[1]) if match else None
