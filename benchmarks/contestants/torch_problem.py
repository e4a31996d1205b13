"""A workload as torch's contestants take it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastmaml as fm
from benchmarks.contestants import Built, Setup
from benchmarks.support.workloads import network


@dataclass(frozen=True)
class Problem:
    """Model, loss and episodes, on the device."""

    model: nn.Module
    loss: Callable[[Any, Any], Tensor]
    episodes: fm.Episodes
    lr: float
    steps: int


def problem(setup: Setup) -> Problem:
    precision = "tf32" if setup.tf32 else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision
    dtype = getattr(torch, setup.dtype)
    model = network(setup.work)
    model.load_state_dict({n: torch.from_numpy(w) for n, w in setup.weights.items()})
    given = {n: torch.from_numpy(x) for n, x in setup.episodes.items()}
    support, query = (
        fm.Batch(given[f"{part}.inputs"], given[f"{part}.targets"]) for part in ("support", "query")
    )
    loss = F.mse_loss if setup.work.regression else F.cross_entropy
    episodes = fm.Episodes(support, query).to(setup.device)
    return Problem(model.to(setup.device, dtype), loss, episodes, setup.work.lr, setup.work.steps)


def built(
    run: Callable[[], Mapping[str, Tensor]], setup: Setup, plain: bool = True, **versions: str
) -> Built:
    """The contestant; a `plain` one needs to be told which attention has a second derivative."""
    attends = plain and setup.work.network == "transformer"

    def finished() -> Mapping[str, Tensor]:
        with sdpa_kernel(SDPBackend.MATH) if attends else contextlib.nullcontext():
            result = run()
        if setup.device == "cuda":
            torch.cuda.synchronize()
        return result

    return Built(finished, arrays, {"torch": torch.__version__, **versions})


def arrays(gradient: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: g.detach().cpu().numpy() for name, g in gradient.items()}
