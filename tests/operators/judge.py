"""One operator through every gradient method and executor, held against the plain loop."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

import fastmaml as fm
from fastmaml.gradients import Checkpointed, FirstOrder, GradientMethod, MixedMode, Unrolled

from .database import draws, operators, samples
from .loops import Numbers, plain, slope, step_size
from .problem import STEPS, VARIANTS, OperatorModel, Variant, episodes, loss, nudged

METHODS: tuple[GradientMethod, ...] = (Unrolled(), Checkpointed(), MixedMode(), FirstOrder())
EXECUTORS = {"eager": "eager", "captured": None}  # None: eager where it cannot be captured
REACHES = (1.0, 0.1, 0.01)
TOLERANCE = 1e-8
ROUNDINGS = 100
"""Where an operator returns fewer digits than float64: the tolerance, in roundings to that many."""


@dataclass(frozen=True)
class Finding:
    """How one sample fared in one way.

    Attributes:
        variant: how the operator stood in the model.
        sample: its number.
        method, executor: the way; empty where the plain loop could not be compared with.
        outcome: "right", "refused", "wrong", "error", or why there was nothing to compare.
        distance: from what is right, relative to the largest element.
        second: how much of the meta-gradient is second-order.
        why: the error, or why a recording was not used.
        random: whether the operator is; `Unrolled` run eagerly is then what is right.
    """

    variant: str
    sample: int
    method: str = ""
    executor: str = ""
    outcome: str = ""
    distance: float = 0.0
    second: float = 0.0
    why: str = ""
    random: bool = False

    def row(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v not in ("", 0.0, False)}


@dataclass(frozen=True)
class Expected:
    """What is right for a model: at its parameters as they are, and when they moved a little."""

    exact: tuple[Numbers, Numbers] | str
    """Or the error that the plain loop raises."""
    first: tuple[Numbers, Numbers]


def judge(
    name: str,
    count: int,
    variants: Sequence[Variant] = VARIANTS,
    executors: Sequence[str] = tuple(EXECUTORS),
) -> Iterator[Finding]:
    """Every finding about the operator, from `count` samples (all variants but one take one)."""
    op = operators()[name]
    for variant in variants:
        function = op.get_inplace() if variant.inplace else op.op
        if function is None or (not op.supports_autograd and variant.name != "plain"):
            continue
        samples = count if variant.name == "plain" else 1
        yield from _judge_variant(op, function, variant, samples, executors)


def _judge_variant(
    op: Any, function: Any, variant: Variant, count: int, executors: Sequence[str]
) -> Iterator[Finding]:
    refused: list[Finding] = []
    judged = tried = 0
    for number, sample in samples(op):
        if judged == count or tried == 3 * count + 3:
            break
        tried += 1
        if variant.inplace and sample.broadcasts_input:
            continue
        found = _prepared(op, function, variant, sample)
        if isinstance(found, Finding):
            refused.append(replace(found, sample=number))
            continue
        model, lr, expected = found
        judged += 1
        for method in METHODS:
            for executor in executors:
                found = _tried(model, variant, number, lr, method, executor, expected)
                yield replace(found, random=draws(op))
    if judged == 0:
        yield refused[0] if refused else Finding(variant.name, -1, outcome="no sample")


def _prepared(
    op: Any, function: Any, variant: Variant, sample: Any
) -> tuple[OperatorModel, float, Expected] | Finding:
    """The model, its learning rate and what is right; or why there is nothing to compare."""
    found = Finding(variant.name, 0, outcome="not finite")
    for reach in REACHES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = OperatorModel(function, sample, variant.inplace, reach)
                lr = step_size(model, variant.scope, episodes())
                return model, lr, (_own if draws(op) else _expected)(model, variant, lr)
        except _Incomparable as why:
            found = replace(found, outcome=str(why))
            if "finite" not in str(why):
                break
        except Exception as error:
            return replace(found, outcome="plain error", why=_line(error))
    return found


class _Incomparable(Exception):  # noqa: N818  # it says what it is
    pass


def _expected(model: nn.Module, variant: Variant, lr: float) -> Expected:
    """What is right, or why nothing is."""
    state = torch.get_rng_state()
    first = _twice(model, variant, lr, second_order=False)
    if not torch.equal(state, torch.get_rng_state()):
        raise _Incomparable("random")
    if plain(model, variant.scope, episodes(), lr, False).distance(first[0]) > 1e-12:
        raise _Incomparable("not deterministic")
    if not all(numbers.finite() for numbers in first):
        raise _Incomparable("not finite")
    try:
        exact = _twice(model, variant, lr, second_order=True)
    except (RuntimeError, NotImplementedError) as error:
        return Expected(_line(error), first)
    if not all(numbers.finite() for numbers in exact):
        raise _Incomparable("second derivative not finite")
    return Expected(exact, first)


def _own(model: OperatorModel, variant: Variant, lr: float) -> Expected:
    """What fastmaml itself gives, for an operator whose draws no plain loop repeats."""
    kept = [p.detach().clone() for p in model.parameters()]
    found = []
    for method in (Unrolled(), FirstOrder()):
        found.append(tuple(_run(model, variant, lr, method, "eager", 2)))
        _restore(model, kept)
    return Expected(*found)


def _twice(
    model: nn.Module, variant: Variant, lr: float, second_order: bool
) -> tuple[Numbers, Numbers]:
    kept = [p.detach().clone() for p in model.parameters()]
    before = plain(model, variant.scope, episodes(), lr, second_order)
    nudged(model)
    after = plain(model, variant.scope, episodes(), lr, second_order)
    _restore(model, kept)
    return before, after


def _restore(model: nn.Module, values: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for p, value in zip(model.parameters(), values, strict=True):
            p.copy_(value)


def _tried(
    model: OperatorModel, variant: Variant, number: int, lr: float, method: GradientMethod,
    executor: str, expected: Expected,
) -> Finding:  # fmt: skip
    found = Finding(variant.name, number, type(method).__name__, executor)
    kept = [p.detach().clone() for p in model.parameters()]
    heard = _Heard()
    logging.getLogger("fastmaml").addHandler(heard)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            numbers = _run(model, variant, lr, method, executor, 1 + (executor == "captured"))
    except Exception as error:
        outcome = "refused" if _clear(error) else "error"
        return replace(found, outcome=outcome, why=_line(error))
    finally:
        logging.getLogger("fastmaml").removeHandler(heard)
        _restore(model, kept)
    right = expected.first if isinstance(method, FirstOrder) else expected.exact
    if isinstance(right, str):
        distance = _slope_error(model, variant, lr, numbers[0])
        outcome = "right" if distance < 1e-5 else "wrong"
        return replace(found, outcome=outcome, distance=distance, why="plain: " + right)
    distance = max(n.distance(r) for n, r in zip(numbers, right, strict=False))
    second = right[0].distance(expected.first[0])
    found = replace(found, distance=distance, second=second, why=" ".join(heard.told))
    if distance <= _tolerance(model):
        return replace(found, outcome="right")
    exact = not isinstance(method, FirstOrder)
    if exact and _slope_error(model, variant, lr, numbers[0]) < 1e-6:
        return replace(found, outcome="right", why="plain: wrong by central differences")
    return replace(found, outcome="wrong")


def _run(
    model: OperatorModel, variant: Variant, lr: float, method: GradientMethod, executor: str,
    turns: int,
) -> list[Numbers]:  # fmt: skip
    """At the parameters as they are, and when they moved, which a recording has to notice."""
    maml = fm.MAML(
        model, lr=lr, steps=STEPS, loss=loss, gradient=method,
        scope=lambda name, _: variant.scope(name), executor=EXECUTORS[executor],
    )  # fmt: skip
    numbers = []
    for turn in range(turns):
        torch.manual_seed(turn)
        if turn:
            nudged(model)
        maml.zero_grad()
        out = maml(episodes())
        out.loss.backward()
        gradient = {
            n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()
        }
        numbers.append(Numbers(out.loss.detach(), gradient))
    return numbers


def _slope_error(model: OperatorModel, variant: Variant, lr: float, numbers: Numbers) -> float:
    """How far the gradient is from central differences, in three random directions."""
    errors = []
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        along = {
            n: torch.randn(p.shape, dtype=p.dtype, generator=generator)
            for n, p in model.named_parameters()
        }
        exact = sum(
            float((g * along[n]).sum()) for n, g in numbers.gradient.items() if g is not None
        )
        found = slope(model, variant.scope, episodes(), lr, along, 1e-4)
        scale = sum(
            float((g * along[n]).abs().sum()) for n, g in numbers.gradient.items() if g is not None
        )
        errors.append(abs(found - exact) / max(scale, 1e-300))
    return max(errors)


def _tolerance(model: OperatorModel) -> float:
    return max(TOLERANCE, ROUNDINGS * model.precision if model.precision > 1e-10 else 0.0)


def _clear(error: BaseException) -> bool:
    """Whether the error is one of fastmaml's own, that says what to do."""
    ways_out = ("gradient=", "executor=", "FirstOrder()", "leave options out")
    return any(way in str(error) for way in ways_out)


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage()[:300])
