"""`Step`: one whole meta-step, sampling and optimizer included; `unchanged`: leaving no trace."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch.optim import Optimizer

from fastmaml.engine.step.program import Executor
from fastmaml.episodes.batch import Episodes
from fastmaml.maml import MAML
from fastmaml.measure.profile.phases import META, OPTIMIZER, REST, SAMPLING, Sink


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether its step cannot be taken without a function that computes the loss (LBFGS)."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def executed_by(maml: MAML, execute: Executor) -> MAML:
    """The same learner, with the same parameters, whose meta-steps another executor runs."""
    twin = maml._twin()
    twin._execute = execute
    return twin


@final
class Step:
    """Draw a meta-batch, run the meta-step, ``backward()`` and the optimizer.

    Every step runs on the first meta-batch, so that all do the same work from the same parameters;
    those that are drawn later are let go.

    Args:
        maml: whose parameters the steps begin with.
        episodes: a meta-batch, or an iterable of them.
        optimizer: or None.

    Attributes:
        first: the meta-batch.
        drawn: how many were.
        samples: whether every step draws one.
    """

    def __init__(
        self, maml: MAML, episodes: Episodes | Iterable[Episodes], optimizer: Optimizer | None
    ) -> None:
        self._source = episodes
        self.samples, self.drawn = not isinstance(episodes, Episodes), 0
        self._iterator = iter(() if isinstance(episodes, Episodes) else episodes)
        self.first = episodes if isinstance(episodes, Episodes) else self._draw()
        self.optimizer = optimizer
        self._parameters = list(maml.parameters())
        self._begin = [(p, p.detach().clone()) for p in self._parameters if optimizer is not None]

    def __call__(self, maml: MAML, sink: Sink) -> None:
        """Run it, and put the parameters back to where they were."""
        with sink.step():
            if self.samples:
                sink.switch(SAMPLING)
                self._draw()
            sink.switch(REST)
            out = maml(self.first)
            sink.switch(META)
            out.loss.backward()
            if self.optimizer is not None:
                sink.switch(OPTIMIZER)
                self.optimizer.step()
            del out
            for parameter in self._parameters:
                parameter.grad = None
            sink.switch(REST)
        with torch.no_grad():
            for parameter, value in self._begin:
                parameter.copy_(value)

    def _draw(self) -> Episodes:
        found = next(self._iterator, None)
        if found is None:
            self._iterator = iter(self._source)
            found = next(self._iterator, None)
        if not isinstance(found, Episodes):
            got = "nothing more" if found is None else f"a {type(found).__name__}"
            raise ValueError(
                f"episodes gave {got} after {self.drawn} meta-batches, and every profiled step "
                "draws one: give one fastmaml.Episodes, or a source of them that goes on."
            )
        self.drawn += 1
        return found


@contextmanager
def unchanged(maml: MAML, optimizer: Optimizer | None) -> Iterator[Optimizer | None]:
    """A block after which parameters, ``.grad``, buffers and random state are as before it.

    Yields:
        An optimizer of the same parameters whose state is a copy, for use within.
    """
    parameters = list(maml.parameters())
    held = [(p, p.detach().clone(), p.grad) for p in parameters]
    buffers = [(b, b.detach().clone()) for b in maml.buffers()]
    state = random.getstate()
    device = parameters[0].device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            for parameter in parameters:
                parameter.grad = None
            yield copy.deepcopy(optimizer, {id(p): p for p in parameters})
        finally:
            random.setstate(state)
            with torch.no_grad():
                for parameter, value, gradient in held:
                    if not torch.equal(parameter, value):
                        parameter.copy_(value)
                    parameter.grad = gradient
                for buffer, value in buffers:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)
