"""The adjoint scan with Hessian-vector products by forward over reverse."""

from __future__ import annotations

import functools
import importlib
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch.autograd import forward_ad
from torch.func import vjp

from fastmaml.gradients.adjoint import AdjointScan, query_back
from fastmaml.gradients.base import (
    Carry,
    Cotangents,
    Loop,
    Meta,
    MetaGradient,
    add,
    detached,
    leaves_of,
    pull_back,
)
from fastmaml.gradients.forward_check import WrongFunctions, coarsest_rounding, differ, known_wrong
from fastmaml.rules.base import Tensors


@final
@dataclass(frozen=True, repr=False)
class MixedMode(AdjointScan):
    """Exact: H·v as the forward-mode derivative of the inner gradient; no second-order graph.

    The adjoint of an inner step needs H·v with v = (∂U/∂g)ᵀ λ; the Hessian is symmetric, so it is
    also the derivative of ∇L in the direction v, and the same derivative gives the mixed term of
    every parameter that the inner loop leaves alone. Time: about 3 gradients a step (4 where the
    rule is not linear in the gradient). Memory: one copy of what adapts a step (or a segment), and
    one first-order graph with its tangents. In eager execution that is about what `Checkpointed`
    takes, and no faster: measure before you prefer it. Parameters that no loss reaches get a
    gradient of zero rather than None. Needs forward-mode derivatives of everything that the model
    calls, and a loss that is twice differentiable along the trajectory (almost everywhere is
    enough). Where PyTorch has no such derivative, or a wrong one (one H·v of a task is compared
    with reverse mode's when a kind of call is first seen), `MissingDerivative` names the function.
    A model or loss that reads values (``item()``) is refused, as it may call other functions later.
    MixFlow-MG (Kemaev et al., ICML 2025, arXiv 2505.00793).

    Args:
        segments: how many parts of the loop to keep the start of; None keeps every step's. About
            √steps need the least memory, 2·√steps copies, for one more gradient a step.
        offload: keep them in the CPU's (pinned) memory, so that that of a GPU does not grow with
            the steps: it holds the step at hand. A step's copy goes out and comes back over the
            bus, and the meta-step runs eagerly, as no recording holds that: take it for steps
            that are long against their copy. With a model on the CPU it changes nothing.

    Raises:
        ValueError: segments is not positive, or offload no bool.
    """

    tried_once: ClassVar[bool] = True

    def step_back(
        self, loop: Loop, step: int, carry: Carry, meta: Meta, cotangent: Any
    ) -> tuple[Any, MetaGradient]:
        """The rule's own vector-Jacobian product, and one H·v."""
        if loop.rule.linear:  # v is then the same at every gradient, so the H·v below can give it
            gradient = {n: p.new_zeros(()).expand_as(p) for n, p in carry.parameters.items()}
        else:
            gradient = loop.gradient(step, carry, meta, create_graph=False)
        to_carry, along, to_meta = _rule_back(loop, step, carry, gradient, meta, cotangent)
        gradient, hessian, mixed = _hessian_products(loop, step, carry, meta, along)
        if loop.rule.linear and meta.rates:
            _, _, to_meta = _rule_back(loop, step, carry, gradient, meta, cotangent)
        del gradient, along
        to_carry = to_carry._replace(parameters=add(to_carry.parameters, hessian))
        return to_carry, to_meta._replace(shared=mixed)

    def doubt(self, loop: Loop, meta: Meta) -> str:
        """What PyTorch differentiates wrongly forwards: one H·v is compared with reverse mode's."""
        return next(filter(None, (_doubt(loop, detached(meta), step) for step in loop.sets)), "")


def _doubt(loop: Loop, meta: Meta, step: int) -> str:
    """The same of an inner step's support loss."""
    # After a step: parameters that begin at zero may hide what they multiply.
    carry = loop.step(0, loop.start(meta), meta, create_graph=False)
    along = query_back(loop, loop.steps, carry, meta)[0].parameters
    _, hessian, mixed = _hessian_products(loop, step, carry, meta, along)
    with torch.enable_grad():
        parameters, shared = leaves_of(carry.parameters), leaves_of(meta.shared)
        loss = loop.support_loss(step, parameters, shared)
        name = known_wrong(loss, parameters.values())
        if name:
            return f"PyTorch's forward-mode derivative of {name} is wrong"
        leaves = [*parameters.values(), *shared.values()]
        gradient = torch.autograd.grad(
            loss, list(parameters.values()), create_graph=True, materialize_grads=True
        )
        reverse = pull_back(list(gradient), list(along.values()), leaves)
        if not differ([*hessian.values(), *mixed.values()], reverse, coarsest_rounding(loss)):
            return ""
        with WrongFunctions() as tried:
            loop.support_loss(step, parameters, shared)
    names = f" (that of {', '.join(tried.names)} is)" * bool(tried.names)
    return f"PyTorch's forward-mode derivatives of this model are wrong{names}"


def _rule_back(
    loop: Loop, step: int, carry: Carry, gradient: Tensors, meta: Meta, cotangent: Any
) -> tuple[Any, Cotangents, MetaGradient]:
    """The cotangents of the carry, the inner gradient and the rates, through the rule alone."""
    with torch.enable_grad():
        carry, gradient, meta = leaves_of(carry), leaves_of(gradient), leaves_of(meta)
        after = loop.update(step, carry, gradient, meta)
        to_carry, to_gradient, to_meta = pull_back(after, cotangent, (carry, gradient, meta))
        return to_carry, to_gradient, MetaGradient(*to_meta)


def _hessian_products(
    loop: Loop, step: int, carry: Carry, meta: Meta, along: Cotangents
) -> tuple[Tensors, Cotangents, Cotangents]:
    """The inner gradient g, H·v, and the mixed ∂²L/∂φ∂θ·v for the parameters φ left alone."""
    _load_forward_rules()
    with torch.no_grad(), forward_ad.dual_level():
        # A dual number's two halves must be laid out alike, and θ starts as an expanded view.
        primals = {name: p.contiguous() for name, p in carry.parameters.items()}
        duals = {
            name: p if (v := along[name]) is None else forward_ad.make_dual(p, v.contiguous())
            for name, p in primals.items()
        }
        # `vjp` differentiates on a level of its own: the tangents, a level below, are not recorded.
        loss, backward = vjp(lambda p, s: loop.support_loss(step, p, s), duals, meta.shared)[:2]
        to_parameters, to_shared = (
            {name: forward_ad.unpack_dual(g) for name, g in part.items()}
            for part in backward(torch.ones_like(loss), retain_graph=False, create_graph=True)
        )
    gradient = {name: dual.primal for name, dual in to_parameters.items()}
    hessian, mixed = (
        {name: dual.tangent for name, dual in part.items()} for part in (to_parameters, to_shared)
    )
    return gradient, hessian, mixed


@functools.cache
def _load_forward_rules() -> None:
    """Load what torch would load at the first dual number, without its own deprecation warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")
