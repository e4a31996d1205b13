"""Steps that autograd can look through."""

from fastmaml.compat.learn2learn.optim.update_rules.differentiable_sgd import DifferentiableSGD

__all__ = ["DifferentiableSGD"]
