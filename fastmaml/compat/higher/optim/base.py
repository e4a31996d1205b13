"""The contract of a differentiable optimizer: made from a live one, it steps on a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from fastmaml.compat.higher.functional_module import FunctionalModule
from fastmaml.compat.higher.tree import Device
from fastmaml.compat.higher.utils import mapped

Override = Mapping[str, Any]
"""Hyper-parameters by name: a list with one value for all parameter groups, or one for each."""
Gradients = list[Tensor | None]
GradCallback = Callable[[Gradients], Sequence[Tensor | None]]


class DifferentiableOptimizer(ABC):
    """An optimizer whose steps autograd can differentiate, begun in the state of another.

    A subclass gives `_update`, and `register_optim` connects it with its `torch.optim` type.

    Args:
        other: the optimizer to continue. Its hyper-parameters and its state are copied; a
            hyper-parameter that is a tensor stays connected.
        reference_params: the parameters of the model whose parameters `other` holds, in order.
        fmodel: a functional model that receives the new parameters of every step.
        device: where the copy of the state goes.
        override: see `step`.
        grad_callback: see `step`.
        track_higher_grads: False detaches every step.

    Attributes:
        param_groups: the groups of `other`; ``params`` are the latest ones.
        state: for every group, the state of each of its parameters by its place.

    Raises:
        ValueError: `other` holds a parameter that is not among `reference_params`, or `override`
            does not fit.
    """

    def __init__(
        self,
        other: torch.optim.Optimizer,
        reference_params: Iterable[Tensor],
        fmodel: FunctionalModule | None = None,
        device: Device = None,
        override: Override | None = None,
        grad_callback: GradCallback | None = None,
        track_higher_grads: bool = True,
        **kwargs: Any,
    ) -> None:
        numbers = {id(p): i for i, p in enumerate(reference_params)}
        self._group_to_param_list = [
            [_number(p, numbers) for p in group["params"]] for group in other.param_groups
        ]
        self._moving = {i for indices in self._group_to_param_list for i in indices}
        self.param_groups: list[dict[str, Any]] = [
            {k: [None] * len(v) if k == "params" else mapped(v, _kept) for k, v in group.items()}
            for group in other.param_groups
        ]
        self.state: list[dict[int, dict[str, Any]]] = [
            defaultdict(
                dict,
                {
                    i: mapped(dict(other.state[p]), lambda x: _state(x, device))
                    for i, p in enumerate(group["params"])
                    if p in other.state
                },
            )
            for group in other.param_groups
        ]
        self._fmodel = fmodel
        self._grad_callback = grad_callback
        self._track_higher_grads = track_higher_grads
        self._apply_override(override or {})

    def step(
        self,
        loss: Tensor,
        params: Iterable[Tensor] | None = None,
        override: Override | None = None,
        grad_callback: GradCallback | None = None,
        **kwargs: Any,
    ) -> list[Tensor]:
        """The parameters after a step down the gradient of `loss`; `fmodel` receives them too.

        Args:
            loss: a scalar. Parameters that it does not depend on stay where they are.
            params: what to differentiate by, in the order of `reference_params`; the latest
                parameters of `fmodel` by default.
            override: hyper-parameters from now on: ``{"lr": [tensor]}`` for all parameter groups,
                or a list with one value for each.
            grad_callback: given the list of gradients (None where there is none), returns those to
                use: for clipping, or for **first order**:
                ``lambda gs: [None if g is None else g.detach() for g in gs]``.

        Raises:
            ValueError: no `params` where there is no `fmodel` to have them, or a wrong `override`.
            RuntimeError: the loss is no scalar that depends on anything.
        """
        self._apply_override(override or {})
        now = self._current(params)
        callback = self._grad_callback if grad_callback is None else grad_callback
        wanted = [
            i for i, p in enumerate(now) if p.requires_grad and (callback or i in self._moving)
        ]
        gradients: Gradients = [None] * len(now)
        for i, g in zip(wanted, self._differentiated(loss, [now[i] for i in wanted]), strict=True):
            gradients[i] = g
        if callback is not None:
            gradients = _called_back(callback, gradients)
        return self._moved(now, gradients)

    @abstractmethod
    def _update(self, grouped_grads: list[Gradients], **kwargs: Any) -> None:
        """Replace the entries of ``self.param_groups[i]["params"]`` by those after a step.

        Args:
            grouped_grads: for every group, the gradients of its parameters; None for those to
                leave alone.
        """

    def _moved(self, now: list[Tensor], gradients: Gradients) -> list[Tensor]:
        grouped = []
        for group, indices in zip(self.param_groups, self._group_to_param_list, strict=True):
            group["params"] = [now[i] for i in indices]
            grouped.append([gradients[i] for i in indices])
        # Without tracking nothing of this is ever differentiated, and the state must not hold on to
        # the steps before.
        with nullcontext() if self._track_higher_grads else torch.no_grad():
            self._update(grouped)
        new = list(now)
        for group, indices in zip(self.param_groups, self._group_to_param_list, strict=True):
            for i, p in zip(indices, group["params"], strict=True):
                keeps = self._track_higher_grads
                new[i] = p if keeps else p.detach().requires_grad_(now[i].requires_grad)
        if self._fmodel is not None:
            self._fmodel.update_params(new)
        return new

    def _current(self, params: Iterable[Tensor] | None) -> list[Tensor]:
        if params is not None:
            return list(params)
        latest = None if self._fmodel is None else self._fmodel.fast_params
        if latest is None:
            raise ValueError(
                "step(loss) needs params= here: this optimizer was made without a functional model "
                "that has parameters, so it cannot know what to differentiate the loss by."
            )
        return latest

    def _differentiated(self, loss: Tensor, params: list[Tensor]) -> Sequence[Tensor | None]:
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            got = type(loss).__name__
            if isinstance(loss, Tensor):
                got = f"shape {list(loss.shape)}, requires_grad={loss.requires_grad}"
            raise RuntimeError(
                f"step(loss) needs a scalar loss that depends on the fast parameters; this has "
                f"{got}. Compute it with the functional model, while gradients are enabled."
            )
        if not params:
            return []
        return torch.autograd.grad(
            loss, params, create_graph=self._track_higher_grads, allow_unused=True
        )

    def _apply_override(self, override: Override) -> None:
        for name, values in override.items():
            groups = len(self.param_groups)
            scalar = isinstance(values, float | int) or getattr(values, "ndim", 1) == 0
            if scalar or len(values) not in (1, groups):
                raise ValueError(
                    f"override[{name!r}] = {values!r}: give a list of one value for all parameter "
                    f"groups, or of one for each of the {groups}."
                )
            for i, group in enumerate(self.param_groups):
                if name not in group or name == "params":
                    known = ", ".join(k for k in group if k != "params")
                    raise ValueError(
                        f"override[{name!r}]: parameter group {i} of this optimizer has no such "
                        f"hyper-parameter; it has {known}."
                    )
                group[name] = values[0 if len(values) == 1 else i]


def _number(p: Tensor, numbers: dict[int, int]) -> int:
    if id(p) not in numbers:
        raise ValueError(
            f"the optimizer holds a parameter of shape {list(p.shape)} that is not among the "
            "model's: give an optimizer over parameters of this very model."
        )
    return numbers[id(p)]


def _kept(x: Any) -> Any:
    # A scheduler may change such a tensor in place while the graph still needs it.
    return x.clone() if isinstance(x, Tensor) else x


def _state(x: Any, device: Device) -> Any:
    if not isinstance(x, Tensor):
        return x
    copy = x.detach().clone()
    return copy if device is None else copy.to(device)


def _called_back(callback: GradCallback, gradients: Gradients) -> Gradients:
    found = list(callback(gradients))
    if len(found) != len(gradients):
        raise ValueError(
            f"grad_callback returned {len(found)} gradients for {len(gradients)}: return a list of "
            "the same length, None where there is no gradient."
        )
    return found
