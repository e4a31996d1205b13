"""learn2learn's two verbs, `clone` and `adapt`, and the model's attributes, on a `MAML`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastmaml.engine.base.turns import Turns, in_turn
from fastmaml.engine.model.inventory import Stock
from fastmaml.engine.model.refused_models import is_sharded
from fastmaml.engine.model.scope import select
from fastmaml.engine.routing.called_by_hand import attribute, called_on, is_original
from fastmaml.engine.routing.cloning import clone_module, replace_parameters
from fastmaml.gradients import FirstOrder
from fastmaml.maml.given_later import GivenLater
from fastmaml.maml.plan import meta_of
from fastmaml.models.per_step import set_inner_step
from fastmaml.rules import Rule
from fastmaml.rules.base import Tensors

M = TypeVar("M", bound="Clones")


@dataclass(frozen=True)
class Progress:
    """How far a clone has adapted.

    Attributes:
        step: how many times it did.
        state: the rule's state, with a ``tasks`` dimension of 1; None before the first time.
    """

    step: int = 0
    state: Any = None


class Clones(GivenLater):
    """A learner that is copied for every task, and adapted by hand."""

    _progress: Progress
    _stock: Stock
    _turns: Turns

    @in_turn
    def clone(
        self: M,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> M:
        """A learner whose parameters are differentiable copies of this one's (learn2learn's verb).

        Call it on inputs, adapt it with `adapt`, and the query loss's ``backward()`` reaches the
        original. Buffers are shared with the original. A clone of a clone stays connected. For
        speed use ``maml(episodes)``, which runs all tasks at once.
        """
        if self.settings.head is not None:
            raise ValueError(
                f"clone() cannot make a task's own head ({self.settings.head}), as it is not told "
                "the support set: use maml(episodes) or adapt_to(support), or leave head= out."
            )
        if is_sharded(self):
            raise ValueError(
                "clone() goes past the hooks by which FSDP gathers this learner's parameters: use "
                "maml(episodes), or give fully_shard a module whose forward() clones and adapts."
            )
        given = {"allow_nograd": allow_nograd, "allow_unused": allow_unused}
        changes: dict[str, Any] = {name: x for name, x in given.items() if x is not None}
        if first_order is not None:
            changes["gradient"] = FirstOrder() if first_order else None
        learner = self._twin()  # `_progress` goes on from here
        learner._modules["module"] = clone_module(self.module)
        set_inner_step(learner.module, self._progress.step)
        self._begin_anew(learner.module)
        learner.settings = replace(self.settings, **changes) if changes else self.settings
        learner._forget()
        return learner

    def _begin_anew(self, clone: nn.Module) -> None:
        """Let what adapts though it is frozen adapt in a clone, without a way to the original."""
        named = dict(self.module.named_parameters())
        chosen = select(named, self.settings.scope, self._anew) if self._anew else ()
        copies: dict[str, Tensor] = dict(clone.named_parameters())
        new = {
            copies[n]: named[n].detach().requires_grad_().clone()
            for n in chosen
            if not named[n].requires_grad
        }
        replace_parameters(clone, new)

    def adapt(
        self,
        loss: Tensor,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> None:
        """One inner step on `loss`, in place (learn2learn's verb); only on a `clone`.

        Args:
            loss: scalar, computed with this clone.
            first_order: take the inner gradient as a constant.
            allow_unused: leave parameters that the loss does not reach as they are.
            allow_nograd: leave frozen parameters as they are.

        Raises:
            RuntimeError: the loss cannot be differentiated with respect to every parameter; the
                message says which argument allows it. The loss's graph is left intact.
        """
        if first_order is None:
            first_order = self._first_order
        meta = meta_of(self, self._stock.take(self.module))
        self._progress = adapt_in_place(
            self.module,
            list(meta.adapted),
            self.rule,
            meta.rates,
            loss,
            self._progress,
            second_order=not first_order,
            allow_unused=self.allow_unused if allow_unused is None else allow_unused,
            allow_nograd=self.allow_nograd if allow_nograd is None else allow_nograd,
        )
        set_inner_step(self.module, self._progress.step)

    def __getattr__(self, name: str) -> Any:
        """The model's attributes are this object's too, as in learn2learn."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module" or "module" not in self.__dict__.get("_modules", {}):
                raise
            if is_original(self.module):
                return getattr(self.module, name)
            return attribute(self.module, name, self._called)

    def _called(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The model, or a method of it; of a clone as is needed for what moves."""
        if is_original(self.module):
            return function(*args, **kwargs)
        second_order = not self._first_order
        return called_on(self.backend, self.module, second_order, function, *args, **kwargs)

    @property
    def _first_order(self) -> bool:
        """Whether an inner gradient of a step by hand is a constant, unless told otherwise."""
        method = self.gradient
        return method is not None and method.one_graph and not method.second_order(1)

    def _twin(self: M) -> M:
        """The same learner with the same parameters, whose attributes may be set apart."""
        found = copy.copy(self)
        found.__dict__ = {**self.__dict__, "_modules": dict(self._modules)}
        return found


def adapt_in_place(
    module: nn.Module,
    adapted: list[str],
    rule: Rule,
    rates: Tensors,
    loss: Tensor,
    progress: Progress,
    *,
    second_order: bool,
    allow_unused: bool,
    allow_nograd: bool,
) -> Progress:
    """One inner step on `loss` for a module made by `clone_module`, and how far it is then."""
    named = dict(module.named_parameters())
    adapted = [n for n in adapted if named[n].requires_grad]
    if not adapted or named[adapted[0]].is_leaf:
        raise RuntimeError(
            "adapt() changes a learner in place, so it is for clones made while gradients are "
            "enabled: learner = maml.clone(); learner.adapt(loss)."
        )
    # As in learn2learn, a frozen parameter is an error unless allow_nograd says that it is meant.
    trainable_only = allow_nograd or len(adapted) < sum(p.requires_grad for p in named.values())
    wanted = {n: p for n, p in named.items() if n in adapted or not trainable_only}
    gradients = _gradients(loss, wanted, second_order, allow_unused)
    moving = {n: named[n].unsqueeze(0) for n in adapted}
    # The rule sees all of them, so that its state stays whole; unreached ones stay where they are.
    seen = {n: torch.zeros_like(p) for n, p in moving.items()}
    seen.update({n: g.unsqueeze(0) for n in moving if (g := gradients[n]) is not None})
    state = rule.init(moving) if progress.state is None else progress.state
    updates, state = rule.update(progress.step, seen, state, moving, rates)
    reached = [n for n in moving if gradients[n] is not None]
    replace_parameters(module, {named[n]: named[n] + updates[n].squeeze(0) for n in reached})
    return Progress(progress.step + 1, state)


def _gradients(
    loss: Tensor, parameters: Mapping[str, Tensor], second_order: bool, allow_unused: bool
) -> dict[str, Tensor | None]:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise RuntimeError(f"adapt(loss) needs a scalar loss; this one has {got}.")
    frozen = [n for n, p in parameters.items() if not p.requires_grad]
    if frozen:
        raise RuntimeError(
            f"adapt() cannot differentiate frozen parameters ({', '.join(frozen[:5])}): pass "
            "allow_nograd=True to leave them as they are."
        )
    gradients = torch.autograd.grad(
        loss,
        list(parameters.values()),
        create_graph=second_order,
        # Kept while this call may still fail, so that the caller can try again with the same loss.
        retain_graph=second_order or not allow_unused,
        allow_unused=True,
    )
    found: dict[str, Tensor | None] = dict(zip(parameters, gradients, strict=True))
    unused = [n for n, g in found.items() if g is None]
    if unused and not allow_unused:
        raise RuntimeError(
            f"the loss given to adapt() does not depend on {', '.join(unused[:5])}: pass "
            "allow_unused=True to leave such parameters as they are."
        )
    return found
