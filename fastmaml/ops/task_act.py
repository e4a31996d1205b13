# ruff: noqa: D102
"""Activations of all tasks, `task_act`, and the table of those that the other ops can fuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmaml.ops._checks import prepared
from fastmaml.ops._function import TaskFunction, bits, plus, third_derivative, wanted
from fastmaml.ops._load import Kernels
from fastmaml.ops._third import third

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
}

RELU = 1
_CODES: dict[str | None, int] = {name: i for i, name in enumerate((None, *ACTIVATIONS))}
_AT_INPUT = {_CODES["gelu"], _CODES["gelu_tanh"], _CODES["silu"]}


def task_act(x: Tensor, activation: str, *, backend: str = "reference") -> Tensor:
    """``a(x)``, element by element.

    Args:
        x: ``[tasks, ...]``.
        activation: ``"relu"``, ``"tanh"``, ``"gelu"`` (Hendrycks and Gimpel, 2016, with erf),
            ``"gelu_tanh"`` (its approximation), ``"sigmoid"`` or ``"silu"`` (Elfwing et al., 2017).
        backend: ``"reference"``, ``"cpp"``, ``"cuda"`` or ``"triton"``.

    Returns:
        The shape and dtype of x.

    Raises:
        ValueError: x is not floating-point, or the activation or the backend is unknown or cannot
            take it.
    """
    code = act_code("task_act", activation)
    if not x.ndim:
        raise ValueError("task_act: x has no tasks dimension; its shape must be [tasks, ...].")
    found = prepared("task_act", backend, x=x)
    return reference_task_act(x, activation) if found is None else native_task_act(found, x, code)


def reference_task_act(x: Tensor, activation: str) -> Tensor:
    """The definition in PyTorch."""
    return ACTIVATIONS[activation](x)


def native_task_act(kernels: Kernels, x: Tensor, act: int) -> Tensor:
    """The op of a backend, by the activation's code."""
    y: Tensor = Act.apply(kernels, x, act)
    return y


def act_code(op: str, activation: str | None) -> int:
    """The number by which the kernels know an activation; 0 for None."""
    if activation not in _CODES:
        raise ValueError(f"{op}: activation={activation!r}; choose from {', '.join(ACTIVATIONS)}.")
    return _CODES[activation]


def at_input(act: int) -> bool:
    """Whether the derivative is taken at the input of the activation; else at its output."""
    return act in _AT_INPUT


@final
class Act(TaskFunction):
    """``a(x)``."""

    @staticmethod
    def forward(kernels: Kernels, x: Tensor, act: int) -> Tensor:
        y: Tensor = kernels.task_act(x, act)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.kernels, x, ctx.act = inputs
        saved = x if at_input(ctx.act) else output
        ctx.save_for_backward(saved)
        ctx.save_for_forward(saved)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (s,) = ctx.saved_tensors
        return None, ActBwd.apply(ctx.kernels, g, s, ctx.act), None

    @staticmethod
    def jvp(ctx: Any, _kernels: None, t: Tensor, _act: None) -> Any:
        (s,) = ctx.saved_tensors
        return ActBwd.apply(ctx.kernels, t, s, ctx.act)


@final
class ActBwd(TaskFunction):
    """``g a'(s)``: the derivative in either direction, since it is element by element."""

    @staticmethod
    def forward(kernels: Kernels, g: Tensor, s: Tensor, act: int) -> Tensor:
        result: Tensor = kernels.task_act_bwd(g, s, act)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.kernels, g, s, ctx.act = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, s)
        ctx.save_for_forward(g, s)

    @staticmethod
    def backward(ctx: Any, h: Tensor | None) -> Any:
        if h is None:
            return None, None, None, None
        g, s = ctx.saved_tensors
        _, to_g, to_s, _ = ctx.needs_input_grad
        gg = gs = None
        if ctx.act == RELU or not to_s:
            gg = ActBwd.apply(ctx.kernels, h, s, ctx.act) if to_g else None
        else:
            gg, gs = ActBwd2.apply(ctx.kernels, h, g, s, ctx.act, bits(to_g, to_s))
        return None, gg, gs, None

    @staticmethod
    def jvp(ctx: Any, _kernels: None, tg: Tensor | None, ts: Tensor | None, _act: None) -> Any:
        g, s = ctx.saved_tensors
        t = None if tg is None else ActBwd.apply(ctx.kernels, tg, s, ctx.act)
        if ts is not None and ctx.act != RELU:
            t = plus(t, ActBwd2.apply(ctx.kernels, ts, g, s, ctx.act, 0b10)[1])
        return torch.zeros_like(g) if t is None else t


@final
class ActBwd2(TaskFunction):
    """``h a'(s)`` and ``h g (a')'(s)``."""

    @staticmethod
    def forward(
        kernels: Kernels, h: Tensor, g: Tensor, s: Tensor, act: int, need: int
    ) -> tuple[Tensor | None, ...]:
        return wanted(kernels.task_act_bwd2(h, g, s, act, need), need)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernels, h, g, s, ctx.act, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(h, g, s)

    @staticmethod
    def backward(ctx: Any, c: Tensor | None, cs: Tensor | None) -> Any:
        h, g, s = ctx.saved_tensors
        if cs is not None:
            return None, *third(ctx.kernels, "task_act", (h,), g, (s,), (c, cs)), None, None
        if c is None:
            return (None,) * 6
        _, to_h, _, to_s, _, _ = ctx.needs_input_grad
        gh = ActBwd.apply(ctx.kernels, c, s, ctx.act) if to_h else None
        gs = ActBwd2.apply(ctx.kernels, h, c, s, ctx.act, 0b10)[1] if to_s else None
        return None, gh, None, gs, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        third_derivative("task_act")
