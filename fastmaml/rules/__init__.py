"""How parameters move in the inner loop: a value that one chooses, or composes with `chain`."""

from fastmaml.rules.adam import Adam, AdamW
from fastmaml.rules.alfa import ALFA
from fastmaml.rules.base import Rule
from fastmaml.rules.chain import Chain, chain
from fastmaml.rules.clip import ClipNorm, ClipValue
from fastmaml.rules.kfo import KFO
from fastmaml.rules.lslr import LSLR
from fastmaml.rules.meta_curvature import MetaCurvature
from fastmaml.rules.meta_sgd import MetaSGD
from fastmaml.rules.momentum import Momentum
from fastmaml.rules.proximal import Proximal
from fastmaml.rules.scheduled import Scheduled
from fastmaml.rules.sgd import SGD
from fastmaml.rules.weight_decay import WeightDecay

__all__ = [
    "ALFA",
    "KFO",
    "LSLR",
    "SGD",
    "Adam",
    "AdamW",
    "Chain",
    "ClipNorm",
    "ClipValue",
    "MetaCurvature",
    "MetaSGD",
    "Momentum",
    "Proximal",
    "Rule",
    "Scheduled",
    "WeightDecay",
    "chain",
]
