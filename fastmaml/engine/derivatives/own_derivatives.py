"""Derivatives that a model or a loss takes by itself, and gradients that it looks at or changes.

For a task that runs alone PyTorch's autograd does all of this. Where a transform is active it does
not, and is not always heard: under vmap a tensor of one task has no graph, as the graph belongs to
the tensor of all tasks, and says that it requires no gradient; forward over reverse differentiates
through `torch.no_grad` and past hooks. A `TorchFunctionMode` answers for the task where that can be
answered, and raises where not: tasks then run one at a time, or the method is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import FunctionType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fastmaml.engine.base import functorch
from fastmaml.engine.base.trees import found_in
from fastmaml.engine.derivatives.taken_derivatives import ALWAYS
from fastmaml.engine.derivatives.under_forward_mode import (
    FORWARDS,
    TORCH_SAYS,
    constant,
    refuse_module_hooks,
)
from fastmaml.engine.derivatives.under_vmap import BATCHED
from fastmaml.engine.derivatives.value_reads import DOORS
from fastmaml.engine.guards.sight import root
from fastmaml.rules.base import Tensors


class NeedsGraphError(RuntimeError):
    """A derivative was taken of, or by, a tensor that requires no gradient in this pass."""


class OwnDerivatives(TorchFunctionMode):
    """Active while a user's code runs on one task, or under vmap on all of them.

    Args:
        model: whose parameters must not be used past the meta-step.
        batched: whether vmap shows the code one task.
        shared: the parameters that do not adapt, as the code sees them.
        given: what differs from task to task, parameters among it.
        native: whether layers run as ops that are not PyTorch's.
    """

    def __init__(
        self,
        model: nn.Module,
        batched: bool,
        shared: Tensors,
        given: Sequence[Tensor],
        native: bool,
    ) -> None:
        super().__init__()
        self.model, self.batched, self.native = model, batched, native
        self.shared, self.given = shared, given
        self.level = functorch.maybe_current_level()
        self.forwards = forward_ad._current_level >= 0
        self.refused: Exception | None = None
        self.own: list[Tensor] = []  # parameters that were used themselves
        self.handlers = {**ALWAYS, **(FORWARDS if self.forwards else {})}
        self.handlers |= BATCHED if batched else {}
        if self.forwards:
            refuse_module_hooks(self)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`, or what is right for it here."""
        kwargs = kwargs or {}
        handler = self.handlers.get(func)
        if handler is not None:
            return handler(self, func, *args, **kwargs)
        if self.batched and func in DOORS and any(self.below(x) is not x for x in _tensors(args)):
            self.refuse(RuntimeError(f"it calls {func.__name__}, which shows all tasks at once"))
        if self.forwards and self.off():
            return constant(func, args, kwargs)
        if isinstance(func, FunctionType) and root(func.__globals__.get("__name__")) != "torch":
            self._check_not_exchanged(func)
        result = func(*args, **kwargs)
        for x in (*args, *kwargs.values()):
            if type(x) is not Tensor and isinstance(x, nn.Parameter | tuple | list):
                self._note_own(x, result)
        return result

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raise what was refused inside, also where the user's code caught it."""
        super().__exit__(kind, error, trace)
        if self.refused is not None and error is None:
            raise self.refused
        if self.own and error is None:
            check_own(self.model, self.own)
        if self.forwards and isinstance(error, RuntimeError):
            for words, what in TORCH_SAYS.items():
                if words in str(error):
                    self.not_forwards(what)

    def below(self, x: Tensor) -> Tensor:
        """The tensor of all tasks that this one is a share of; without vmap the tensor itself."""
        batched = self.batched and functorch.is_batchedtensor(x)
        mine = batched and functorch.maybe_get_level(x) == self.level
        return functorch.get_unwrapped(x) if mine else x

    def off(self) -> bool:
        """Whether gradients are, here or where a transform of the code's own was entered."""
        if not torch.is_grad_enabled():
            return True
        if functorch.maybe_current_level() == self.level:
            return False
        return any(
            i.level() > (self.level or 0)
            and i.key() == functorch.TransformType.Grad
            and not functorch.CGradInterpreterPtr(i).prevGradMode()
            for i in functorch.get_interpreter_stack() or ()
        )

    def refuse(self, error: Exception) -> Any:
        """Raise it, and once more at the end."""
        self.refused = error
        raise error

    def alone(self, what: str) -> Any:
        """Refuse what needs a graph of each task's own."""
        return self.refuse(
            RuntimeError(f"it {what}, for which each task needs an autograd graph of its own")
        )

    def check_graph(self, what: str, given: Any) -> None:
        """Refuse a derivative through these tensors, or ask for a pass with all of their graph."""
        tensors = [x for x in tree_leaves(given) if isinstance(x, Tensor)]
        if any(self.below(x) is not x for x in tensors):
            self.alone(f"calls {what}")
        if not all(x.requires_grad for x in tensors):
            self.refuse(
                NeedsGraphError(f"{what} was called for a tensor that requires no gradient")
            )

    def hooked(self, what: str) -> None:
        """Refuse a hook, where it would see another gradient than in PyTorch.

        A second derivative passes a hook on an activation where that is what PyTorch's layer keeps
        for its derivative; another op may keep something else.
        """
        if self.batched:
            self.alone(what)
        if self.native:
            self.refuse(
                RuntimeError(
                    f"it {what}, which only PyTorch's own layers go through: leave backend= out, "
                    'or use backend="reference"'
                )
            )

    def keep_learned(self, x: Tensor, requires_grad: bool) -> None:
        """Refuse to freeze a parameter that is to get a gradient."""
        for name, p in self.shared.items():
            if p is x and x.requires_grad and not requires_grad:
                self.refuse(
                    ValueError(
                        f"the model freezes its parameter {name!r} inside forward(): call "
                        "requires_grad_(False) outside, before the meta-step."
                    )
                )

    def not_forwards(self, what: str) -> Any:
        """Refuse what forward over reverse differentiates wrongly, or not at all."""
        return self.refuse(
            ValueError(
                f"the model or the loss {what}, through which MixedMode cannot differentiate: use "
                "gradient=Unrolled() or Checkpointed(), which can."
            )
        )

    def _check_not_exchanged(self, func: FunctionType) -> None:
        """Refuse a function that was put in the place of PyTorch's, and calls that.

        PyTorch's own offers itself to modes by its name, and so the other one once more in each.
        """
        for where in (F, Tensor):
            for name, x in vars(where).items():
                if x is func:
                    self.refuse(
                        ValueError(
                            f"{where.__name__}.{name} was replaced by a function that calls the "
                            "original, which PyTorch does not allow where functions are watched "
                            "(it would run several times over). Call your function by a name of "
                            f"its own where you mean it, and leave {where.__name__} as it is."
                        )
                    )

    def _note_own(self, given: Any, result: Any) -> None:
        """Note a parameter that was given itself, if the result would be learned through it."""
        own = [x for x in found_in(given, nn.Parameter) if x.requires_grad]
        if own and any(functorch.needs_gradient(x) for x in found_in(result, Tensor)):
            self.own += own


def check_own(model: nn.Module, used: Iterable[Tensor]) -> None:
    """Raise ValueError where one of these is the model's, when it holds its parameters again."""
    ids = {id(x) for x in used}
    for name, p in model.named_parameters():
        if id(p) in ids:
            raise ValueError(
                f"the loss, or a function that the model holds, uses the parameter {name!r} "
                "itself, which stays as it is while a task adapts its own copy: it would count "
                "as a constant. Compute what needs it in forward(), from the module that holds "
                "it, and return it beside the output; or detach() it, if a constant is meant."
            )


def _tensors(given: Any) -> list[Tensor]:
    return [x for x in given if isinstance(x, Tensor)]
