"""What a model must not do inside a meta-step, noticed while it is tried out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from fastmaml.engine.randomness import foreign_state
from fastmaml.episodes.batch import Episodes


class Watch(TorchFunctionMode):
    """Notices activation checkpointing, changed inputs, and draws that nothing can draw again.

    Args:
        episodes: what the model runs on meanwhile.
        device: whose random generator is watched, beside the CPU's.
    """

    def __init__(self, episodes: Episodes, device: torch.device) -> None:
        super().__init__()
        self.tensors = [*episodes.support.tensors(), *episodes.query.tensors()]
        self.versions = [x._version for x in self.tensors]
        self.device = device
        self.own_generator = False
        self.states, self.foreign = self._random_states(), foreign_state()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`, unless activation checkpointing is on."""
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
        if hooks and hooks[0].__module__ == "torch.utils.checkpoint":
            raise ValueError(
                "the model uses torch.utils.checkpoint, which runs parts of it again later, but "
                "without the adapted parameters: the meta-gradient would be wrong. Turn it off "
                "(for transformers: model.gradient_checkpointing_disable()); "
                "gradient=Checkpointed() saves memory in its stead."
            )
        if kwargs and isinstance(kwargs.get("generator"), torch.Generator):
            self.own_generator = True
        return func(*args, **(kwargs or {}))

    def check_inputs(self) -> None:
        """Raise ValueError if the model wrote to its inputs."""
        if [x._version for x in self.tensors] != self.versions:
            raise ValueError(
                "the model or the loss changes its inputs in place, so later steps and tasks would "
                "see other data: clone them first in forward()."
            )

    def drew(self) -> bool:
        """Whether a random number was drawn that no key decides."""
        if self.own_generator or foreign_state() != self.foreign:
            return True
        pairs = zip(self.states, self._random_states(), strict=True)
        return any(not torch.equal(a, b) for a, b in pairs)

    def _random_states(self) -> list[torch.Tensor]:
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        return states
