"""Which parameters the inner loop adapts."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import is_lazy

Scope = str | Callable[[str, nn.Parameter], bool]
"""``"all"``, ``"head"``, ``"body"``, a name pattern, or a predicate of (name, parameter)."""


def adapted_names(model: nn.Module, scope: Scope) -> list[str]:
    """The names of the trainable parameters that adapt, in the model's order.

    Args:
        model: the module; tied parameters count once, under their first name.
        scope: "all"; "head", the last sub-module that has parameters of its own (ANIL, Raghu et
            al., 2020); "body", everything else (BOIL, Oh et al., 2021); a shell pattern such as
            ``"layers.*.bias"``; or a predicate.

    Raises:
        ValueError: the model has nothing to train, or the scope selects nothing that can be.
    """
    if not callable(scope) and not isinstance(scope, str):
        raise ValueError(
            f"scope={scope!r}: give 'all', 'head', 'body', a name pattern or a predicate."
        )
    if any(is_lazy(p) for p in model.parameters()):
        raise ValueError(
            f"{type(model).__name__} has lazy parameters without a shape: run it once on an "
            "example before you give it to MAML."
        )
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        frozen = sum(1 for _ in model.parameters())
        state = f"all of its {frozen} parameters are frozen" if frozen else "it has no parameters"
        raise ValueError(
            f"{type(model).__name__} cannot be meta-learned: {state}. "
            "Give a model with at least one parameter whose requires_grad is True."
        )
    chosen = [n for n, p in trainable.items() if _selects(model, scope, n, p)]
    if not chosen:
        names = ", ".join(list(trainable)[:8]) + (", ..." if len(trainable) > 8 else "")
        raise ValueError(
            f"scope={scope!r} selects no trainable parameter. Choose 'all', 'head', 'body', a name "
            f"pattern such as '*.bias' or a predicate; the names are: {names}."
        )
    return chosen


def _selects(model: nn.Module, scope: Scope, name: str, parameter: nn.Parameter) -> bool:
    if callable(scope):
        return bool(scope(name, parameter))
    if scope == "all":
        return True
    if scope in {"head", "body"}:
        return (_owner(name) == _head(model)) == (scope == "head")
    return fnmatchcase(name, scope)


def _head(model: nn.Module) -> str:
    """The name of the last sub-module that has trainable parameters of its own."""
    return [_owner(n) for n, p in model.named_parameters() if p.requires_grad][-1]


def _owner(name: str) -> str:
    """The sub-module that a parameter belongs to, also through a parametrisation of it."""
    return (
        name.partition(".parametrizations.")[0]
        if ".parametrizations." in name
        else (name.rpartition(".")[0])
    )
