"""The linear layer of which every task has its own, and what the model feeds into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastmaml.engine.model.scope import select
from fastmaml.heads import Head
from fastmaml.rules.base import Tensors


@dataclass(frozen=True)
class HeadLayer:
    """A head, and the names of the parameters that it begins.

    Attributes:
        head: how they begin.
        weight: ``[classes, width]``.
        bias: ``[classes]``; None where the layer has none.
    """

    head: Head
    weight: str
    bias: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the layer's parameters: its weight, and its bias if it has one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def start(self, own: Tensors, features: Tensor, targets: Any) -> Tensors:
        """What the head begins one task with, by name.

        Args:
            own: the model's own, by name.
            features, targets: as for `Head.start`.

        Raises:
            ValueError: that is not shaped as the layer is.
        """
        weight, bias = self.head.start(own[self.weight], features, targets)
        found = {self.weight: weight} | ({self.bias: bias} if self.bias else {})
        for name, x in found.items():
            if x.shape != own[name].shape:
                raise ValueError(
                    f"head={self.head} begins {name} with the shape {list(x.shape)}, which in the "
                    f"model has {list(own[name].shape)}: its start() returns the weight "
                    "[classes, width] and the bias [classes] of one task."
                )
        return found


def find_head_layer(model: nn.Module, head: Head | None) -> HeadLayer | None:
    """The layer for `head`: the model's last one; None without a head.

    Raises:
        ValueError: that is no linear layer, or one without a bias that `head` needs.
    """
    if head is None:
        return None
    if not isinstance(head, Head):
        raise ValueError(
            f"head={head!r}: give heads.Zero(), heads.Prototype() or a heads.Head of your own, or "
            "None for the model's own last layer."
        )
    named = dict(model.named_parameters())
    found = {n.rpartition(".")[2]: n for n in select(named, "head")}
    weight, bias = found.pop("weight", None), found.pop("bias", None)
    if found or weight is None or named[weight].ndim != 2:
        raise ValueError(
            f"head={head} needs a model whose last layer is a trainable nn.Linear; the last "
            f"parameters of {type(model).__name__} are "
            f"{', '.join(select(named, 'head')) or 'frozen'}."
        )
    if later := _frozen_after(weight, named):
        raise ValueError(
            f"head={head} begins the model's last layer, but {later} of {type(model).__name__} is "
            f"frozen and comes after the last trainable one, {weight}: unfreeze it (it is not "
            "meta-learned under a head), or take head= out."
        )
    if bias is None and head.needs_bias:
        raise ValueError(
            f"head={head} needs a bias in the last layer (prototypes have their squared lengths "
            f"there), and {weight} of {type(model).__name__} is without one. Give that layer "
            "bias=True (of a language model, sequence_classifier(pooling='mean') makes one so), or "
            "use heads.Zero()."
        )
    return HeadLayer(head, str(weight), bias)


def _frozen_after(weight: str, named: Mapping[str, nn.Parameter]) -> str:
    """The weight of a frozen layer that comes last, alone; a whole body may be defined later."""
    names = list(named)
    later = names[names.index(weight) + 1 :]
    found = [n for n in later if n.endswith("weight") and named[n].ndim == 2]
    return found[0] if len(found) == 1 else ""


class Listener(TorchFunctionMode):
    """Remembers what a model feeds into the linear layer with this very weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.inputs: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`, and note the input of the linear layer with this weight."""
        kwargs = kwargs or {}
        if func is F.linear and (args[1] if len(args) > 1 else kwargs.get("weight")) is self.weight:
            self.inputs.append(args[0] if args else kwargs["input"])
        return func(*args, **kwargs)

    def features(self, name: str) -> Tensor:
        """``[examples, width]``.

        Raises:
            ValueError: the layer was not called once, with one vector an example.
        """
        if len(self.inputs) != 1 or self.inputs[0].ndim != 2:
            shapes = [list(x.shape) for x in self.inputs]
            raise ValueError(
                "a head that needs features, as prototypes do, needs a model that calls its last "
                f"layer ({name}) once, with one vector an example; this one called it with inputs "
                f"of the shapes {shapes}. Use heads.Zero(), or a model that pools before its last "
                "layer."
            )
        return self.inputs[0]
