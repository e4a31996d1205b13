"""MAML, Meta-SGD and GBML with the verbs `clone` and `adapt`."""

from typing import NoReturn

from fastmaml.compat.learn2learn.algorithms.base_learner import BaseLearner
from fastmaml.compat.learn2learn.algorithms.gbml import GBML
from fastmaml.compat.learn2learn.algorithms.maml import MAML, maml_update
from fastmaml.compat.learn2learn.algorithms.meta_sgd import MetaSGD, meta_sgd_update

__all__ = ["GBML", "MAML", "BaseLearner", "MetaSGD", "maml_update", "meta_sgd_update"]


def __getattr__(name: str) -> NoReturn:
    hint = ""
    if name.startswith("Lightning"):
        hint = ": the Lightning modules are left out; put algorithms.MAML into a module of your own"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
