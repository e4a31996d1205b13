"""Which parameters the inner loop adapts."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import final

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Scope = str | Callable[[str, nn.Parameter], bool]
"""``"all"``, ``"head"``, ``"body"``, a name pattern, or a predicate of (name, parameter)."""


@final
@dataclass(frozen=True)
class AllBut:
    """The scope of all parameters but these.

    Attributes:
        names: of those that do not adapt; they are meta-learned all the same.
    """

    names: tuple[str, ...]

    def __call__(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether it adapts."""
        return name not in self.names


def adapted_names(model: nn.Module, scope: Scope) -> list[str]:
    """The names of the parameters that adapt, in the model's order: see `select`.

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
    named = dict(model.named_parameters())
    trainable = [n for n, p in named.items() if p.requires_grad]
    if not trainable:
        frozen = sum(1 for _ in model.parameters())
        state = f"all of its {frozen} parameters are frozen" if frozen else "it has no parameters"
        raise ValueError(
            f"{type(model).__name__} cannot be meta-learned: {state}. "
            "Give a model with at least one parameter whose requires_grad is True."
        )
    anew = begun_anew(model)
    chosen = select(named, scope, anew)
    if not chosen:
        trainable = [n for n, p in named.items() if p.requires_grad or n in anew]
        names = ", ".join(trainable[:8]) + (", ..." if len(trainable) > 8 else "")
        raise ValueError(
            f"scope={scope!r} selects no trainable parameter. Choose 'all', 'head', 'body', a name "
            f"pattern such as '*.bias' or a predicate; the names are: {names}."
        )
    return chosen


def begun_anew(model: nn.Module) -> tuple[str, ...]:
    """The names of frozen parameters that may adapt all the same, each task's from their value.

    A module's class names its own in ``begins_anew`` (`models.WithContext`).

    Raises:
        ValueError: one that is not frozen, and so would be learned as well.
    """
    found = tuple(
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        for name in getattr(type(module), "begins_anew", ())
    )
    check_anew(dict(model.named_parameters()), found)
    return found


def check_anew(parameters: Mapping[str, Tensor], anew: Iterable[str]) -> None:
    """Raise ValueError where one of `anew` is trainable; a clone's, which moved, is no leaf."""
    for name in anew:
        if (p := parameters.get(name)) is not None and p.requires_grad and p.is_leaf:
            raise ValueError(
                f"{name} begins anew for every task, so it is not meta-learned: freeze it with "
                f"model.get_parameter({name!r}).requires_grad_(False)."
            )


def select(
    parameters: Mapping[str, nn.Parameter], scope: Scope, anew: Container[str] = ()
) -> list[str]:
    """The names that `scope` selects, if any, of what is trainable or in `anew`."""
    candidates = [n for n, p in parameters.items() if p.requires_grad or n in anew]
    trainable = [n for n in candidates if parameters[n].requires_grad]
    if callable(scope):
        return [n for n in candidates if scope(n, parameters[n])]
    if scope == "all" or not trainable:
        return candidates
    if scope in {"head", "body"}:
        head = _owner(trainable[-1])
        return [n for n in candidates if (_owner(n) == head) == (scope == "head")]
    return [n for n in candidates if fnmatchcase(n, scope)]


def _owner(name: str) -> str:
    """The sub-module that a parameter belongs to, also through a parametrisation of it."""
    return (
        name.partition(".parametrizations.")[0]
        if ".parametrizations." in name
        else (name.rpartition(".")[0])
    )
