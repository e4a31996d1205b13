"""The plain loop over tasks, by hand: every rule, scope and head, first and second order.

The oracle of the properties: `functional_call` and `autograd.grad`, and nothing of fastmaml.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

Tensors = dict[str, Tensor]
State = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What the loop is told: see `MAML` for the words."""

    rule: str
    scope: str
    head: str
    steps: int
    first_order: bool
    step_weights: tuple[float, ...] | None
    own_statistics: bool = True


@dataclass(frozen=True)
class Found:
    """What the loop found; `adapted` is a list, by task, of the parameters after each step."""

    losses: Tensor
    by_step: Tensor
    outputs: list[Any]
    adapted: list[list[Tensors]]
    gradient: Tensors
    rates: Tensors
    buffers: Tensors


def adapted_names(model: nn.Module, scope: str) -> list[str]:
    """The trainable parameters that a scope means, in order."""
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    last = names[-1].rpartition(".")[0]
    if scope in ("head", "body"):
        return [n for n in names if (n.rpartition(".")[0] == last) == (scope == "head")]
    return names if scope == "all" else [n for n in names if fnmatch.fnmatchcase(n, scope)]


# ----------------------------------------------------------------------------------------- rules


def _sgd(lr: Any) -> Callable[..., Tensors]:
    return lambda k, g, p, s, r: {n: p[n] - (lr if lr is not None else r["lr"]) * g[n] for n in p}


def _momentum(lr: float, decay: float, nesterov: bool) -> Callable[..., Tensors]:
    def step(k: int, g: Tensors, p: Tensors, s: State, r: Tensors) -> Tensors:
        for n in p:
            s[n] = decay * s[n] + g[n] if n in s else g[n]
        return {n: p[n] - lr * (g[n] + decay * s[n] if nesterov else s[n]) for n in p}

    return step


def _adam(lr: float, eps: float, weight_decay: float) -> Callable[..., Tensors]:
    def step(k: int, g: Tensors, p: Tensors, s: State, r: Tensors) -> Tensors:
        moved = {}
        for n in p:
            mean, square = s.get(n, (0.0, 0.0))
            mean, square = 0.9 * mean + 0.1 * g[n], 0.999 * square + 0.001 * g[n] ** 2
            s[n] = mean, square
            corrected = square / (1 - 0.999 ** (k + 1))
            positive = corrected > 0  # the root's slope at zero counts as zero
            root = torch.where(positive, torch.where(positive, corrected, 1.0).sqrt(), 0.0)
            move = mean / (1 - 0.9 ** (k + 1)) / (root + eps)
            moved[n] = p[n] - lr * (move + weight_decay * p[n])
        return moved

    return step


def _meta_sgd(k: int, g: Tensors, p: Tensors, s: State, r: Tensors) -> Tensors:
    return {n: p[n] - r[n] * g[n] for n in p}


def _lslr(k: int, g: Tensors, p: Tensors, s: State, r: Tensors) -> Tensors:
    return {n: p[n] - r[n][k] * g[n] for n in p}


def _clip_norm(limit: float, then: Callable[..., Tensors]) -> Callable[..., Tensors]:
    def step(k: int, g: Tensors, p: Tensors, s: State, r: Tensors) -> Tensors:
        total = sum(x.square().sum() for x in g.values())
        norm = torch.where(total > 0, torch.where(total > 0, total, 1.0).sqrt(), 0.0)
        scale = (limit / (norm + 1e-6)).clamp(max=1)
        return then(k, {n: scale * x for n, x in g.items()}, p, s, r)

    return step


def _clip_value(limit: float, then: Callable[..., Tensors]) -> Callable[..., Tensors]:
    return lambda k, g, p, s, r: then(k, {n: x.clamp(-limit, limit) for n, x in g.items()}, p, s, r)


def _decay(factor: float, then: Callable[..., Tensors]) -> Callable[..., Tensors]:
    return lambda k, g, p, s, r: then(k, {n: g[n] + factor * p[n] for n in p}, p, s, r)


RULES: dict[str, Callable[..., Tensors]] = {
    "SGD(0.2)": _sgd(0.2),
    "SGD(nn.Parameter(torch.tensor(0.2, dtype=torch.float64)))": _sgd(None),
    "Momentum(0.1, 0.8)": _momentum(0.1, 0.8, False),
    "Momentum(0.1, 0.8, nesterov=True)": _momentum(0.1, 0.8, True),
    "Adam(0.05, eps=0.1)": _adam(0.05, 0.1, 0.0),
    "AdamW(0.05, eps=0.1, weight_decay=0.3)": _adam(0.05, 0.1, 0.3),
    "MetaSGD(0.2)": _meta_sgd,
    "LSLR(0.2)": _lslr,
    "chain(ClipNorm(0.5), WeightDecay(0.2), SGD(0.3))": _clip_norm(0.5, _decay(0.2, _sgd(0.3))),
    "chain(ClipValue(0.1), Momentum(0.2, 0.8))": _clip_value(0.1, _momentum(0.2, 0.8, False)),
    "chain(WeightDecay(0.2), LSLR(0.2))": _decay(0.2, _lslr),
}


# ------------------------------------------------------------------------------------------ loop


class Loop:
    """One model, loss and plan; `run` goes over the tasks of some episodes."""

    def __init__(self, model: nn.Module, loss: Any, plan: Plan, rates: Tensors) -> None:
        self.model, self.loss, self.plan = copy.deepcopy(model), loss, plan
        self.rates = {n: r.detach().clone().requires_grad_() for n, r in rates.items()}
        if plan.own_statistics:
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.running_mean = module.running_var = module.num_batches_tracked = None
                    module.track_running_stats = False
        self.places = _places(self.model)
        self.theta = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        last = [n for n in self.theta if n.rpartition(".")[0] == "head"]
        self.own = last if plan.head else []
        self.adapted = list(dict.fromkeys([*adapted_names(self.model, plan.scope), *self.own]))

    def run(self, episodes: Any) -> Found:
        """Losses, outputs, parameters after each step and the meta-gradient."""
        plan, tasks = self.plan, [(e.support, e.query) for e in episodes]
        weights = plan.step_weights or (0.0,) * (plan.steps - 1) + (1.0,)
        weights = (0.0, *weights) if plan.steps else (1.0,)
        by_step, outputs, adapted, buffers = [], [], [], []
        for support, query in tasks:
            each = self.adapt(_one(support))
            queries = [self.pass_over({**self.theta, **p}, _one(query)) for p in each]
            by_step.append(torch.stack([loss for loss, _, _ in queries]))
            outputs.append(queries[-1][1])
            buffers.append(queries[-1][2])
            adapted.append([{n: x.detach() for n, x in p.items()} for p in each])
        table = torch.stack(by_step)
        losses = (table * table.new_tensor(weights)).sum(1)
        wanted = [*self.theta.values(), *self.rates.values()]
        grads = list(torch.autograd.grad(losses.mean(), wanted, allow_unused=True,
                                         materialize_grads=True))  # fmt: skip
        return Found(
            losses.detach(), table.detach(), outputs, adapted,
            dict(zip(self.theta, grads, strict=False)),
            dict(zip(self.rates, grads[len(self.theta) :], strict=True)),
            {n: torch.stack([b[n] for b in buffers]) for n in buffers[0]},
        )  # fmt: skip

    def adapt(self, support: Any) -> list[Tensors]:
        """One task's parameters after 0, 1, ... steps."""
        # Views: the inner gradient is that at a fixed head, not through how it began.
        p = {n: self.theta[n].view_as(self.theta[n]) for n in self.adapted}
        p.update(self.head_start(support))
        each, state = [p], {}
        for k in range(self.plan.steps):
            loss, _, _ = self.pass_over({**self.theta, **p}, support)
            g = torch.autograd.grad(
                loss, list(p.values()), create_graph=not self.plan.first_order,
                retain_graph=True, allow_unused=True, materialize_grads=True,
            )  # fmt: skip
            p = RULES[self.plan.rule](k, dict(zip(p, g, strict=True)), p, state, self.rates)
            each.append(p)
        return each

    def head_start(self, support: Any) -> Tensors:
        """The first weights of a task's own last layer."""
        if not self.plan.head:
            return {}
        weight, bias = (self.theta[n] for n in self.own)
        if self.plan.head == "Zero()":
            return dict(
                zip(self.own, (torch.zeros_like(weight), torch.zeros_like(bias)), strict=True)
            )
        heard: list[Tensor] = []
        handle = self.model.head.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
        self.pass_over(self.theta, support)
        handle.remove()
        means = [
            heard[0][support.targets == c].mean(0)
            if (support.targets == c).any()
            else weight[c] * 0
            for c in range(len(weight))
        ]
        centre = torch.stack(means).detach() if not heard[0].requires_grad else torch.stack(means)
        start = (2 * 0.5 * centre, -0.5 * centre.square().sum(1))
        return dict(zip(self.own, start, strict=True))

    def pass_over(self, parameters: Tensors, batch: Any) -> tuple[Tensor, Any, Tensors]:
        """The loss, the output and the buffers as this pass left them."""
        buffers = {n: b.clone() for n, b in self.model.named_buffers()}
        given = {
            place: {**parameters, **buffers}[name]
            for place, name in self.places.items()
            if name in parameters or name in buffers
        }
        x = batch.inputs
        args = () if isinstance(x, dict) else x if isinstance(x, tuple) else (x,)
        named = x if isinstance(x, dict) else {}
        output = functional_call(self.model, given, args, named, tie_weights=False)
        return self.loss(output, batch.targets), output, buffers


def _places(model: nn.Module) -> dict[str, str]:
    """Where each parameter and buffer lies, every place once: the first name of what is there.

    `functional_call` with tied names leaves its tensors behind in a module that has two names.
    """
    first = {id(x): n for n, x in (*model.named_buffers(), *model.named_parameters())}
    places = {}
    for prefix, owner in model.named_modules():
        for leaf, x in (*owner._parameters.items(), *owner._buffers.items()):
            if x is not None:
                places[f"{prefix}.{leaf}".lstrip(".")] = first[id(x)]
    return places


def _one(batch: Any) -> Any:
    return batch.map(lambda x: x.squeeze(0).clone())
