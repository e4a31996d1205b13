"""`torch.optim`'s optimizers as functions that autograd can differentiate."""

from fastmaml.compat.higher.optim.adadelta import DifferentiableAdadelta
from fastmaml.compat.higher.optim.adagrad import DifferentiableAdagrad
from fastmaml.compat.higher.optim.adam import DifferentiableAdam, DifferentiableAdamW
from fastmaml.compat.higher.optim.adamax import DifferentiableAdamax
from fastmaml.compat.higher.optim.asgd import DifferentiableASGD
from fastmaml.compat.higher.optim.base import DifferentiableOptimizer
from fastmaml.compat.higher.optim.private import _add as _add
from fastmaml.compat.higher.optim.private import _get_mask_closure as _get_mask_closure
from fastmaml.compat.higher.optim.private import _GradCallbackType as _GradCallbackType
from fastmaml.compat.higher.optim.private import _GradClosureType as _GradClosureType
from fastmaml.compat.higher.optim.private import _GroupedGradsType as _GroupedGradsType
from fastmaml.compat.higher.optim.private import _OverrideType as _OverrideType
from fastmaml.compat.higher.optim.private import _StateType as _StateType
from fastmaml.compat.higher.optim.registry import create_diff_optim, get_diff_optim, register_optim
from fastmaml.compat.higher.optim.rmsprop import DifferentiableRMSprop
from fastmaml.compat.higher.optim.rprop import DifferentiableRprop
from fastmaml.compat.higher.optim.sgd import DifferentiableSGD
from fastmaml.compat.higher.optim.trainable import (
    apply_trainable_opt_params,
    get_trainable_opt_params,
)

__all__ = [
    "DifferentiableASGD",
    "DifferentiableAdadelta",
    "DifferentiableAdagrad",
    "DifferentiableAdam",
    "DifferentiableAdamW",
    "DifferentiableAdamax",
    "DifferentiableOptimizer",
    "DifferentiableRMSprop",
    "DifferentiableRprop",
    "DifferentiableSGD",
    "apply_trainable_opt_params",
    "create_diff_optim",
    "get_diff_optim",
    "get_trainable_opt_params",
    "register_optim",
]
