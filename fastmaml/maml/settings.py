"""What `MAML` makes of its arguments, and the errors where it cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastmaml.engine.model.scope import Scope
from fastmaml.engine.recording.executors import EXECUTORS, ExecutorName
from fastmaml.engine.step.forward import Loss
from fastmaml.episodes.batch import Batch
from fastmaml.gradients import FirstOrder, GradientMethod
from fastmaml.heads import Head
from fastmaml.ops._load import BACKENDS, Backend
from fastmaml.rules import SGD, Rule


@dataclass(frozen=True)
class Settings:
    """What a `MAML` is given besides its model; its own docstring says what each means.

    Raises:
        ValueError: one that cannot be obeyed, named in the message.
    """

    rule: Rule
    gradient: GradientMethod | None = None
    steps: int = 1
    loss: Loss | None = None
    query_loss: Loss | None = None
    scope: Scope = "all"
    head: Head | None = None
    executor: ExecutorName | None = None
    backend: Backend | None = None
    tasks_chunk: int | None = None
    batch_norm: Literal["batch", "module"] = "batch"
    memory_budget: int | None = None
    check_finite: bool = True
    spot_checks: bool = True
    allow_unused: bool = False
    allow_nograd: bool = False

    def __post_init__(self) -> None:
        chosen_rule(None, self.rule)
        chosen_gradient(False, self.gradient)
        require_count("steps", self.steps, least=0)
        require_count("tasks_chunk", 1 if self.tasks_chunk is None else self.tasks_chunk, least=1)
        require_choice("executor", self.executor, (None, *EXECUTORS))
        require_choice("backend", self.backend, (None, *BACKENDS))
        require_choice("batch_norm", self.batch_norm, ("batch", "module"))


def chosen_rule(lr: float | Tensor | None, rule: Rule | None) -> Rule:
    """The one rule that is meant."""
    if (lr is None) == (rule is None):
        got = "neither" if lr is None else "both"
        raise ValueError(
            f"give either lr= (plain gradient descent) or rule= (for example rules.Adam(1e-3)), "
            f"not {got}."
        )
    chosen = SGD(lr) if lr is not None else rule
    if not isinstance(chosen, Rule) or not chosen.moves:
        raise ValueError(
            f"rule={chosen!r} does not move the parameters: use SGD, Momentum, Adam, AdamW, "
            "MetaSGD, LSLR, MetaCurvature, KFO, ALFA or a Rule of your own whose `moves` is True, "
            "or chain(...) with one of them last."
        )
    return chosen


def chosen_gradient(first_order: bool, gradient: GradientMethod | None) -> GradientMethod | None:
    """The one gradient method that is meant; None for `MAML` to choose."""
    if gradient is not None and not isinstance(gradient, GradientMethod):
        raise ValueError(
            f"gradient={gradient!r} is no gradient method: give one such as gradients.MixedMode()."
        )
    if first_order and not isinstance(gradient, FirstOrder | None):
        raise ValueError(f"first_order=True contradicts gradient={gradient}: give one of them.")
    return FirstOrder() if first_order else gradient


def require_count(name: str, value: int, least: int) -> int:
    """The value, where it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}: give a whole number of at least {least}.")
    return value


def require_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise ValueError unless the value is among the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, choices))}.")


def weights_by_step(
    weights: Sequence[float] | Tensor | None, steps: int, dtype: torch.dtype, device: torch.device
) -> Sequence[float | Tensor]:
    """A weight for each of 0, ..., steps inner steps.

    0 and 1 as numbers, as they decide what is computed; others as tensors, whose values may change
    from call to call and are read at each.
    """
    if weights is None:
        return [0.0] * steps + [1.0]
    if isinstance(weights, Tensor) and (weights.ndim != 1 or weights.requires_grad):
        raise ValueError(
            f"step_weights is a tensor of shape {list(weights.shape)}"
            f"{' that requires a gradient' * weights.requires_grad}: give a plain tensor [steps]."
        )
    given = weights.tolist() if isinstance(weights, Tensor) else [float(w) for w in weights]
    if len(given) != steps or steps == 0:
        raise ValueError(
            f"step_weights has {len(given)} numbers for {steps} inner steps: give one for each of "
            "the steps 1 to steps."
        )
    values = torch.tensor(given, dtype=torch.promote_types(dtype, torch.float32), device=device)
    pairs = zip(given, values.unbind(), strict=True)
    return [0.0, *(w if w in (0.0, 1.0) else x for w, x in pairs)]


def task_weights(
    cotangents: tuple[Tensor | None, Tensor | None] | None,
    dtype: torch.dtype,
    device: torch.device,
    tasks: int,
) -> Tensor:
    """``[tasks]``: each task's weight, given the cotangents of the mean and of the losses."""
    mean = torch.full((tasks,), 1 / tasks, dtype=dtype, device=device)
    if cotangents is None:
        return mean
    of_mean, of_each = cotangents
    weights = torch.zeros_like(mean) if of_mean is None else mean * of_mean
    return weights if of_each is None else weights + of_each


def rate_parameters(rates: Mapping[str, Tensor]) -> nn.ParameterDict:
    """What a rule learns as parameters; one that is a parameter already stays that very one."""
    return nn.ParameterDict(
        {
            rate_key(n): r if isinstance(r, nn.Parameter) else nn.Parameter(r.detach().clone())
            for n, r in rates.items()
        }
    )


def rate_key(name: str) -> str:
    """A rate's name as a key of a ParameterDict: it takes no dots and no names of its methods."""
    return "rate:" + name.replace(".", "/")


def require_batch(support: Any) -> None:
    """Raise ValueError unless `support` is a `Batch`."""
    if not isinstance(support, Batch):
        raise ValueError(
            f"support is a {type(support).__name__}; give a fastmaml.Batch(inputs, targets) "
            "with the examples of one task."
        )


def require_all_adapt(gradient: GradientMethod | None, more: bool) -> None:
    """Raise ValueError where `gradient` learns only what adapts, and there is more to learn."""
    if more and gradient is not None and gradient.adapted_only:
        raise ValueError(
            f"{type(gradient).__name__} learns only what adapts: use scope='all' (or freeze the "
            "rest with requires_grad_(False)) and a rule without learned rates, or "
            "gradient=FirstOrder()."
        )


def require_fit(gradient: GradientMethod | None, rule: Rule, learns: bool) -> None:
    """Raise ValueError where `gradient` cannot differentiate the steps of `rule`."""
    if gradient is not None and (why := gradient.unfit(rule, learns)):
        raise ValueError(why)
