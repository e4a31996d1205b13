"""Optimizers that move every parameter by its own gradient alone."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from fastmaml.compat.higher.optim.base import DifferentiableOptimizer, Gradients

Group = dict[str, Any]
State = dict[str, Any]


class Elementwise(DifferentiableOptimizer):
    """A subclass gives `_stepped`, the move of one parameter."""

    def _update(self, grouped_grads: list[Gradients], **kwargs: Any) -> None:
        for group, states, grads in zip(self.param_groups, self.state, grouped_grads, strict=True):
            params = group["params"]
            for i, g in enumerate(grads):
                if g is None:
                    continue
                if g.is_complex():
                    raise ValueError(
                        f"{type(self).__name__}: a parameter of shape {list(g.shape)} is complex. "
                        "Hold its two parts as a real parameter (torch.view_as_real)."
                    )
                g = -g if group.get("maximize", False) else g
                params[i] = self._stepped(params[i], g, group, states[i])

    @abstractmethod
    def _stepped(self, p: Tensor, g: Tensor, group: Group, state: State) -> Tensor:
        """The parameter after a step.

        Args:
            p: the parameter, any shape.
            g: the gradient to descend, in its shape.
            group: the hyper-parameters: numbers, or scalar tensors that are learned.
            state: of this parameter, empty at first; changed in place, its tensors are not.
        """
