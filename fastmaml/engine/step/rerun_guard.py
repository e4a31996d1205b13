"""What a meta-step depends on besides its arguments, so that running it again is the same."""

from __future__ import annotations

import contextlib
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from fastmaml.engine.base.tensor_cores import ONE_RULE
from fastmaml.engine.model.inventory import Inventory
from fastmaml.engine.step.data import TaskData, tensors_in
from fastmaml.engine.step.program import Program


class RerunGuard:
    """A context in which a meta-step runs, and runs again, under the autocast of the first time.

    autocast's cache of cast weights is off: within it every step's copies would stay alive.

    Args:
        model: whose modes must not change in between.
        data: which must not be written to in between.
        held: the model's tensors and modes now.
        program: whose tensors that have no meta-gradient, and whose settings, must be as they were
            when it had run; it may be set later.

    Raises:
        RuntimeError: on entering, if they are not.
    """

    def __init__(
        self,
        model: nn.Module,
        data: TaskData,
        held: Inventory,
        program: Program | None = None,
    ) -> None:
        self.model, self.data, self.program = model, data, program
        self.tensors = tensors_in(data)
        self.device = held.device.type
        self.autocast = torch.is_autocast_enabled(self.device)
        self.dtype = torch.get_autocast_dtype(self.device)
        self.before = self._versions(), held.training
        self.after: list[tuple[Tensor, int | None]] | None = None  # until the program has run
        self.ran = False
        self.entered: contextlib.ExitStack | None = None

    def __enter__(self) -> None:
        modes = (tuple(m.training for m in self.model.modules())) if self.ran else self.before[1]
        others = self.ran and not all(map(is_, tensors_in(self.data), self.tensors))
        if others or (self._versions(), modes) != self.before:
            raise RuntimeError(
                "the episodes were written to, or the model changed between train() and eval(), "
                "after maml(episodes): the backward() of a loss of your own over out.losses or "
                "out.outputs needs both as they were."
            )
        if self.after is not None:
            self._check_program()
        self.ran = True
        self.entered = contextlib.ExitStack()
        self.entered.enter_context(ONE_RULE)  # backward() may be called anywhere
        if self.autocast or torch.is_autocast_enabled(self.device):
            self.entered.enter_context(
                torch.autocast(self.device, self.dtype, self.autocast, cache_enabled=False)
            )

    def __exit__(self, *error: Any) -> None:
        if self.entered is not None:
            self.entered.close()
        if self.program is not None:
            self.after = [(x, _version(x)) for x in self._others()]

    def _check_program(self) -> None:
        what = "a tensor that the model or the loss reads was written to"
        if all(_version(x) == version for x, version in self.after or ()):
            # Also where a recording was looked at in this call: that was before.
            settings = self.program.depends.guards.changed() if self.program else None
            if settings is None:
                return
            what = f"{settings} changed"
        raise RuntimeError(
            f"{what} after maml(episodes): the backward() of a loss of your own over out.losses or "
            "out.outputs runs the meta-step again, and needs all as it was. Call backward() first."
        )

    def _versions(self) -> list[int | None]:
        return [_version(x) for x in self.tensors]

    def _others(self) -> list[Tensor]:
        """All that is read without getting a gradient; autograd looks after the rest."""
        if self.program is None:
            return []
        forward = self.program.forward
        own = [*forward.frozen.values(), *forward.buffers.values()]
        return own + self.program.depends.others()


def _version(x: Tensor) -> int | None:
    return None if x.is_inference() else x._version
