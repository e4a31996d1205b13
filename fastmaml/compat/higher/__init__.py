"""higher's interface: ``import fastmaml.compat.higher as higher``, and the script stays as it is.

`innerloop_ctx` turns a model and a `torch.optim` optimizer into a model whose parameters are
exchanged and an optimizer that autograd can differentiate. docs/how_to/migrating_higher.md puts it
side by side with `fastmaml.MAML`, which does the same for all tasks at once.
"""

from fastmaml.compat.higher import optim, patch, utils
from fastmaml.compat.higher.functional_module import FunctionalModule
from fastmaml.compat.higher.inner_loop import innerloop_ctx
from fastmaml.compat.higher.optim import (
    DifferentiableOptimizer,
    create_diff_optim,
    get_diff_optim,
    register_optim,
)
from fastmaml.compat.higher.patch import make_functional, monkeypatch

__all__ = [
    "DifferentiableOptimizer",
    "FunctionalModule",
    "create_diff_optim",
    "get_diff_optim",
    "innerloop_ctx",
    "make_functional",
    "monkeypatch",
    "optim",
    "patch",
    "register_optim",
    "utils",
]
