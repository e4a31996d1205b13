"""Property: a meta-step is the plain loop: random networks, rules, scopes, heads, methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import fastmaml as fm
from fastmaml.gradients import Checkpointed, FirstOrder, MixedMode, Unrolled
from fastmaml.heads import Prototype, Zero
from fastmaml.rules import (  # noqa: F401  # noqa: F401
    LSLR,
    SGD,
    Adam,
    AdamW,
    ClipNorm,
    ClipValue,
    MetaSGD,
    Momentum,
    WeightDecay,
    chain,
)
from properties.loop import RULES, Found, Loop, Plan
from properties.networks import NETWORKS, Network, build, episodes_for, loss_of

TOLERANCE = 1e-8
METHODS = {
    "Unrolled()": Unrolled(),
    "Checkpointed()": Checkpointed(),
    "Checkpointed(segments=2)": Checkpointed(segments=2),
    "MixedMode()": MixedMode(),
    "MixedMode(segments=2)": MixedMode(segments=2),
    "FirstOrder()": FirstOrder(),
}
HEADS = {"": None, "Zero()": Zero(), "Prototype(0.5)": Prototype(0.5)}


@dataclass(frozen=True)
class Case:
    """A meta-step: all that decides it."""

    network: Network
    rule: str = "SGD(0.2)"
    scope: str = "all"
    head: str = ""
    method: str = "Unrolled()"
    executor: str = "captured"
    backend: str = "reference"
    steps: int = 1
    tasks: int = 1
    chunk: int | None = None
    step_weights: tuple[float, ...] | None = None
    batch_norm: str = "batch"
    seed: int = 0

    def maml(self, model: nn.Module) -> fm.MAML:
        """fastmaml's."""
        return fm.MAML(
            model, rule=eval(self.rule), loss=loss_of(self.network), steps=self.steps,
            gradient=METHODS[self.method], scope=self.scope, head=HEADS[self.head],
            executor=self.executor, backend=self.backend, tasks_chunk=self.chunk,
            batch_norm=self.batch_norm,
        )  # fmt: skip

    def loop(self, maml: fm.MAML) -> Loop:
        """The plain one, of the model as it is now."""
        plan = Plan(
            self.rule, self.scope, self.head, self.steps, self.method == "FirstOrder()",
            self.step_weights, self.batch_norm == "batch",
        )  # fmt: skip
        return Loop(maml.module, loss_of(self.network), plan, rates_of(maml))


@st.composite
def cases(draw: Callable[..., Any]) -> Case:
    """Any of them; prototypes only where there are classes."""
    network = draw(NETWORKS)
    steps = draw(st.sampled_from([0, 1, 2, 2, 3]))
    heads = ["", "", "Zero()"] + ["Prototype(0.5)"] * network.classifies
    weights = st.none() | st.tuples(*[st.sampled_from([0.0, 0.5, 1.0])] * steps)
    return Case(
        network,
        rule=draw(st.sampled_from(list(RULES))),
        scope=draw(st.sampled_from(["all", "all", "head", "body", "*.bias", "entrance.*"])),
        head=draw(st.sampled_from(heads)),
        method=draw(st.sampled_from(list(METHODS))),
        executor=draw(st.sampled_from(["captured", "captured", "eager"])),
        backend=draw(st.sampled_from(["reference", "cpp"])),
        steps=steps,
        tasks=draw(st.integers(1, 4)),
        chunk=draw(st.sampled_from([None, None, 1, 2, 3])),
        step_weights=draw(weights) if steps else None,
        batch_norm=draw(st.sampled_from(["batch", "batch", "module"])),
        seed=draw(st.integers(0, 3)),
    )


def rates_of(maml: fm.MAML) -> dict[str, nn.Parameter]:
    """What the rule learns, by the names of the parameters that it is for."""
    plain = {key.removeprefix("rate:").replace("/", "."): p for key, p in maml.rates.items()}
    return {n.partition(".")[2] if n[0].isdigit() else n: p for n, p in plain.items()}


class RefusedError(Exception):
    """The case was refused before any number, with a reason."""


def check(case: Case) -> None:
    """The same numbers as the plain loop's, three times in a row, and by every other verb."""
    model, episodes = build(case.network, case.seed), episodes_for(case.network, case.tasks, 7)
    before = _bits((episodes.support, episodes.query))
    maml = _made(case, model)
    try:
        expected = case.loop(maml).run(episodes)
    except (RuntimeError, ValueError, IndexError):
        assume(False)  # not a network that plain PyTorch can meta-learn
    assume(_sound(expected))
    for _ in range(3):
        if case.batch_norm == "module":  # whose running statistics the last call may have moved
            expected = case.loop(maml).run(episodes)
        _compare_step(case, maml, expected, episodes)
        assert _bits((episodes.support, episodes.query)) == before, "the episodes were written to"
    expected = case.loop(maml).run(episodes)
    for _ in range(2):
        out = maml.evaluate(episodes)
        same(case, "evaluate", out.losses, expected.by_step[:, -1])
    for k, out in enumerate(maml.evaluate_each_step(episodes)):
        same(case, f"evaluate_each_step {k}", out.losses, expected.by_step[:, k])
    learner = maml.adapt_to(episodes[0].support.map(lambda x: x.squeeze(0)))
    named = dict(learner.named_parameters())
    for name, x in expected.adapted[0][-1].items():
        same(case, f"adapt_to {name}", named[name].detach(), x)


def _made(case: Case, model: nn.Module) -> fm.MAML:
    try:
        return case.maml(model)
    except ValueError:
        assume(False)  # a scope that selects nothing, say
        raise


def _compare_step(case: Case, maml: fm.MAML, expected: Found, episodes: fm.Episodes) -> None:
    maml.zero_grad()
    held = _bits([*maml.parameters()])
    try:
        out = maml(episodes, step_weights=case.step_weights)
    except (RuntimeError, NotImplementedError) as error:
        if _is_refusal(case, str(error)):
            raise RefusedError(str(error)) from None
        raise
    out.loss.backward()
    assert _bits([*maml.parameters()]) == held, "the parameters were written to"
    same(case, "losses", out.losses.detach(), expected.losses)
    same(case, "loss", out.loss.detach(), expected.losses.mean())
    for t, task in enumerate(expected.outputs):
        found = [x[t] for x in tree_leaves(out.outputs) if isinstance(x, Tensor)]
        for x, y in zip(
            found, [y for y in tree_leaves(task) if isinstance(y, Tensor)], strict=True
        ):
            same(case, f"output of task {t}", x.detach(), y.detach())
    named = dict(maml.module.named_parameters())
    gradient = {n: _grad(named[n]) for n in expected.gradient}
    rates = rates_of(maml)
    whole = torch.cat(
        [g.flatten() for g in [*expected.gradient.values(), *expected.rates.values()]]
    ).norm()
    for name, g in expected.gradient.items():
        same(case, f"gradient of {name}", gradient[name], g, whole)
    for name, g in expected.rates.items():
        same(case, f"gradient of the rate of {name}", _grad(rates[name]), g, whole)
    if case.batch_norm == "module":
        for name, buffer in maml.module.named_buffers():
            left = expected.buffers[name]
            wanted = left.mean(0) if buffer.is_floating_point() else left[0]
            same(case, f"buffer {name}", buffer, wanted)


def _is_refusal(case: Case, message: str) -> bool:
    """Whether it names what cannot be done; a replay that differs is a fault all the same."""
    if "cannot be captured" in message:
        return "replay differs" not in message
    return "MixedMode" in case.method and "forward AD" in message


def same(
    case: Case, what: str, found: Tensor, expected: Tensor, norm: Tensor | None = None
) -> None:
    """Raise AssertionError unless they differ by rounding only."""
    assert found.shape == expected.shape, f"{what}: shape {found.shape}, not {expected.shape}"
    if not found.is_floating_point():
        assert torch.equal(found, expected), what
        return
    size = float(expected.norm() if norm is None else norm)
    error = float((found - expected).norm())
    allowed = TOLERANCE * max(size, 1e-3)
    if not error <= allowed and not error <= 1e3 * noise(case, what):
        raise AssertionError(f"{what} is wrong by {error:.3g} of {size:.3g}")


def noise(case: Case, what: str) -> float:
    """How far the plain loop's own numbers move where everything moves by rounding.

    At a kink (the maximum of equal numbers), and where tiny variances are divided by, rounding is
    all there is. Asked for where something differs only.
    """
    model, episodes = build(case.network, case.seed), episodes_for(case.network, case.tasks, 7)
    maml = case.maml(model)
    first = case.loop(maml).run(episodes)
    moved = 0.0
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1 + 1e-15 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        again = case.loop(maml).run(episodes)
        pairs = zip(_numbers(first), _numbers(again), strict=True)
        moved = max(moved, *(float((x - y).norm()) for x, y in pairs))
    return moved


def _numbers(found: Found) -> list[Tensor]:
    last = [x for task in found.adapted for x in task[-1].values()]
    return [found.by_step, *found.gradient.values(), *found.rates.values(), *last]


def _sound(found: Found) -> bool:
    """Finite, and neither vanishing nor exploding."""
    return all(bool(x.isfinite().all()) and float(x.norm()) < 1e6 for x in _numbers(found))


def _grad(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad.clone()


def _bits(tree: Any) -> list[list[float]]:
    batches = [b.tensors() if isinstance(b, fm.Batch) else [b] for b in tree]
    return [x.detach().flatten().tolist() for tensors in batches for x in tensors]
