"""MAML, Meta-SGD and GBML with the verbs `clone` and `adapt`, and modules of Lightning."""

import importlib
from typing import Any

from fastmaml.compat.learn2learn.algorithms.base_learner import BaseLearner
from fastmaml.compat.learn2learn.algorithms.gbml import GBML
from fastmaml.compat.learn2learn.algorithms.maml import MAML, maml_update
from fastmaml.compat.learn2learn.algorithms.meta_sgd import MetaSGD, meta_sgd_update

__all__ = ["GBML", "MAML", "BaseLearner", "MetaSGD", "maml_update", "meta_sgd_update"]

LIGHTNING = (
    "LightningANIL",
    "LightningEpisodicModule",
    "LightningMAML",
    "LightningMetaOptNet",
    "LightningPrototypicalNetworks",
)


def __getattr__(name: str) -> Any:
    if name == "lightning" or name in LIGHTNING:  # which need Lightning: imported where used
        home = importlib.import_module(f"{__name__}.lightning")
        return home if name == "lightning" else getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
