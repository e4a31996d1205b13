"""What every gradient method should give, by a loop written by hand: the suites' yardstick."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastmaml as fm
from benchmarks.contestants import Setup
from benchmarks.contestants.torch_problem import Problem, problem
from benchmarks.contestants.worker import as_dtype
from benchmarks.support.results import ROOT
from benchmarks.support.workloads import Workload, arrays

sys.path.append(str(ROOT / "tests" / "support"))  # the plain loop that the tests hold everything to
from hand_loop import Parameters, batch_loss, hand_loop, sgd_step

__all__ = [
    "Parameters",
    "batch_loss",
    "hand_loop",
    "meta_gradient",
    "own_gradient",
    "problem_of",
    "relative",
    "setup_of",
    "sgd_step",
]


def setup_of(work: Workload, device: str, dtype: str = "float32") -> Setup:
    """What a contestant is given: the same weights and episodes each time."""
    found = {n: as_dtype(np.array(x), dtype) for n, x in arrays(work).items()}
    weights = {n[2:]: x for n, x in found.items() if n.startswith("w.")}
    episodes = {n: x for n, x in found.items() if not n.startswith("w.")}
    return Setup(work, weights, episodes, device, dtype, tf32=False)


def problem_of(work: Workload, device: str, dtype: str = "float32") -> Problem:
    """Model, loss and episodes of a workload: the same numbers each time."""
    return problem(setup_of(work, device, dtype))


def meta_gradient(p: Problem, method: fm.gradients.GradientMethod) -> Parameters:
    """The mean over tasks of what `method` is defined to give, one task at a time."""
    theta = dict(p.model.named_parameters())
    total = {n: torch.zeros_like(w) for n, w in theta.items()}
    with sdpa_kernel(SDPBackend.MATH):
        for task in p.episodes:
            adapted = adapted_by_hand(p, task, method)
            if isinstance(method, fm.gradients.Reptile):
                found = {n: (theta[n] - adapted[n]).detach() for n in theta}
            else:
                loss = batch_loss(p.model, p.loss, adapted, task.query)
                grads = torch.autograd.grad(loss, list(theta.values()))
                found = dict(zip(theta, grads, strict=True))
            total = {n: g + found[n] / p.episodes.tasks for n, g in total.items()}
    return total


def adapted_by_hand(
    p: Problem, task: fm.Episodes, method: fm.gradients.GradientMethod
) -> Parameters:
    """The parameters after the inner loop of one task, with the graph that `method` keeps."""
    adapted: Parameters = dict(p.model.named_parameters())
    for step in range(p.steps):
        loss = batch_loss(p.model, p.loss, adapted, task.support)
        constant = not differentiates(method, step, p.steps)
        adapted = sgd_step(adapted, loss, p.lr, first_order=constant)
    return adapted


def differentiates(method: fm.gradients.GradientMethod, step: int, steps: int) -> bool:
    """Whether `method` differentiates the inner gradient of this step."""
    if isinstance(method, fm.gradients.Truncated):
        return step >= steps - method.last
    return method.exact


def own_gradient(p: Problem, **settings: Any) -> Parameters:
    """fastmaml's."""
    maml = fm.MAML(p.model, p.lr, steps=p.steps, loss=p.loss, **settings)
    maml(p.episodes).loss.backward()
    return {n: w.grad for n, w in p.model.named_parameters() if w.grad is not None}


def vector(gradient: Parameters) -> Tensor:
    """The whole gradient, in float64."""
    return torch.cat([g.detach().double().flatten() for _, g in sorted(gradient.items())])


def relative(a: Parameters, b: Parameters) -> float:
    """How far `a` is from `b`, over the whole gradient."""
    if a.keys() != b.keys():
        raise ValueError(f"not the same parameters: {sorted(a.keys() ^ b.keys())}.")
    return float((vector(a) - vector(b)).norm() / vector(b).norm())
