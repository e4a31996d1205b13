"""What the libraries need that a model's parts come from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from fastmaml.integrations.quantized.host import QuantizedHost, find_quantized
from fastmaml.integrations.transformers.host import TransformersHost, find_host

Tensors = Mapping[str, Tensor]


@final
@dataclass(frozen=True)
class Hosts:
    """One of each library, where the model has something of it."""

    transformers: TransformersHost | None
    quantized: QuantizedHost | None

    @property
    def functions(self) -> tuple[Any, ...]:
        """Of the libraries or the user, what of it the model runs by name."""
        ours = () if self.quantized is None else self.quantized.functions
        return (*ours, *(() if self.transformers is None else self.transformers.functions))

    def constants(self, frozen: Tensors) -> dict[str, Tensor]:
        """What the model is given in place of its frozen parameters."""
        return dict(frozen) if self.quantized is None else self.quantized.constants(frozen)

    def checkpointing(self, checkpoint: Callable[..., Any], constants: Tensors) -> Any:
        """``checkpoint(layer, *args)`` for layers that run again when nothing is inside."""
        if self.quantized is not None:
            checkpoint = self.quantized.checkpointing(checkpoint, constants)
        if self.transformers is not None:
            checkpoint = self.transformers.checkpointing(checkpoint)
        return checkpoint

    @contextlib.contextmanager
    def inside(self, checkpoint: Callable[..., Any], constants: Tensors) -> Iterator[None]:
        """The context in which the model runs with these constants.

        Args:
            checkpoint: as `checkpointing` gives it.
            constants: as `constants` names them.
        """
        with contextlib.ExitStack() as stack:
            if self.quantized is not None:
                stack.enter_context(self.quantized.inside(constants))
            if self.transformers is not None:
                stack.enter_context(self.transformers.inside(checkpoint))
            yield

    def notes(self) -> list[str]:
        """What is done differently, a line each."""
        both = (self.quantized, self.transformers)
        return [note for host in both if host is not None for note in host.notes()]


def find_hosts(model: nn.Module) -> Hosts | None:
    """Those of a model; None of one that has nothing of a library that needs something.

    Raises:
        ValueError: a quantized layer whose derivatives are not known.
    """
    transformers, quantized = find_host(model), find_quantized(model)
    if transformers is None and quantized is None:
        return None
    return Hosts(transformers, quantized)
