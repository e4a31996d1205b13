"""Copies of the user's `MAML` in other configurations; theirs stays as it is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from fastmaml.gradients import GradientMethod
from fastmaml.maml import MAML


def in_configuration(
    twin: MAML,
    gradient: GradientMethod | None,
    steps: int,
    backend: Any = "reference",
    executor: Any = "eager",
) -> MAML:
    """A `MAML` around the very module and rule of `twin`, so that many take the memory of one.

    Learned rates have the values of the twin's where they have its shapes (rates of each step
    have not, with another number of steps: those begin as the rule says).
    """
    settings = replace(
        twin.settings,
        loss=twin.loss,
        query_loss=twin.query_loss,
        gradient=gradient,
        steps=steps,
        backend=backend,
        executor=executor,
        spot_checks=False,  # what is measured is a call like most
    )
    made = MAML.of(twin.module, settings)
    with torch.no_grad():
        for name, rate in made.rates.items():
            if name in twin.rates and rate.shape == twin.rates[name].shape:
                rate.copy_(twin.rates[name])
    return made


def starts_rates_anew(twin: MAML, steps: int) -> bool:
    """Whether the learned rates are others at this number of steps."""
    made = in_configuration(twin, None, steps)
    return any(r.shape != twin.rates[n].shape for n, r in made.rates.items())


@contextmanager
def undisturbed(maml: MAML) -> Iterator[None]:
    """Gradients are enabled inside; afterwards the random states are as before."""
    state = random.getstate()
    devices = {p.device for p in maml.parameters() if p.device.type == "cuda"}
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(state)
