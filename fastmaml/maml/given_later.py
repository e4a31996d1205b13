"""The settings of a `MAML` as its attributes: what may be set on one that is made already."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Literal, NoReturn

from torch import nn

from fastmaml.engine.model.scope import Scope
from fastmaml.engine.recording.executors import ExecutorName
from fastmaml.engine.step.forward import Loss
from fastmaml.engine.step.head_layer import HeadLayer
from fastmaml.gradients import GradientMethod
from fastmaml.heads import Head
from fastmaml.maml.settings import Settings
from fastmaml.ops._load import Backend
from fastmaml.rules import Rule


def _refused(name: str, way: str) -> property:
    def refuse(maml: object, value: object) -> NoReturn:
        raise AttributeError(
            f"maml.{name} = {value!r} would change nothing: {name}= is an argument of which a MAML "
            f"makes others. Set {way}."
        )

    return property(None, refuse)


_LOSSES = ("loss", "query_loss")


def _loss(name: str) -> Any:
    """The module that is registered, if one is: it may have been exchanged there."""

    def get(maml: Any) -> Loss | None:
        found: Loss | None = maml._modules.get(name)
        return getattr(maml.settings, name) if found is None else found

    return property(get)


def _setting(name: str) -> Any:
    return property(lambda maml: getattr(maml.settings, name))


SETTINGS = frozenset(field.name for field in fields(Settings))


class GivenLater(nn.Module):
    """A learner whose settings are its attributes; one that is set is checked as when given."""

    settings: Settings
    module: nn.Module
    _head_layer: HeadLayer | None
    _anew: tuple[str, ...]
    rates: nn.ParameterDict
    _rate_names: list[str]

    rule: Rule = _setting("rule")
    gradient: GradientMethod | None = _setting("gradient")
    steps: int = _setting("steps")
    loss: Loss | None = _loss("loss")
    query_loss: Loss | None = _loss("query_loss")
    scope: Scope = _setting("scope")
    head: Head | None = _setting("head")
    executor: ExecutorName | None = _setting("executor")
    backend: Backend | None = _setting("backend")
    tasks_chunk: int | None = _setting("tasks_chunk")
    batch_norm: Literal["batch", "module"] = _setting("batch_norm")
    memory_budget: int | None = _setting("memory_budget")
    check_finite: bool = _setting("check_finite")
    spot_checks: bool = _setting("spot_checks")
    allow_unused: bool = _setting("allow_unused")
    allow_nograd: bool = _setting("allow_nograd")

    lr = _refused("lr", "maml.rule = fastmaml.rules.SGD(...)")
    first_order = _refused(
        "first_order", "maml.gradient = fastmaml.gradients.FirstOrder(), or None for an exact one"
    )

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if hidden := sorted(SETTINGS & vars(cls).keys()):
            raise TypeError(
                f"{cls.__name__}.{hidden[0]} would stand in the place of a setting: give it to "
                "the constructor."
            )

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, or a setting."""
        if name not in SETTINGS:
            super().__setattr__(name, value)
            return
        if name == "head":
            raise AttributeError(
                "maml.head is chosen when the MAML is made: make one with MAML(model, head=...)."
            )
        self.settings = replace(self.settings, **{name: value})
        if name in _LOSSES:
            self._register_losses()
        elif name in ("executor", "spot_checks"):
            self._choose_executors()

    def _register_losses(self) -> None:
        """Among the modules, where they are some, so that their buffers move with the model."""
        modules = {n: m for n, m in self._modules.items() if n not in _LOSSES}
        for name in _LOSSES:
            if isinstance(given := getattr(self.settings, name), nn.Module):
                modules[name] = given
        self.__dict__["_modules"] = modules  # not in place: a shallow copy has the same dict

    def _choose_executors(self) -> None:
        """Make those of the settings."""
        raise NotImplementedError
