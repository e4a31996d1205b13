"""What a checkpointed layer may use: its own parameters and its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastmaml.engine.base.trees import found_in


@final
class OwnAlone(TorchFunctionMode):
    """Refuses a layer that uses something trainable which is no argument of its run.

    Its gradient would be lost. A run of one task, as every plan has, shows each such tensor.
    """

    def __init__(self, layer: str, given: Sequence[Any]) -> None:
        super().__init__()
        self.layer, self.given = layer, {id(x) for x in given}
        self.kept = list(given)  # or another tensor could have the id of one
        self.begun = torch.autograd._get_sequence_nr()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunction():
            foreign = [x for x in found_in((args, kwargs), Tensor) if self._foreign(x)]
        if foreign:
            raise ValueError(
                f"a checkpointed layer, {self.layer}, uses a trainable tensor of shape "
                f"{list(foreign[0].shape)} that is neither its own parameter nor an argument, so "
                "that it would get no gradient from there: give it as an argument, or leave this "
                "layer out of gradient checkpointing."
            )
        result = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            made = [x for x in found_in(result, Tensor) if self._foreign(x)]  # leaves of its own
        self.given.update(map(id, made))
        self.kept += made
        return result

    def _foreign(self, x: Tensor) -> bool:
        if not x.requires_grad or id(x) in self.given:
            return False
        return x.grad_fn is None or x.grad_fn._sequence_nr() < self.begun
