"""Models and losses that take derivatives themselves: the plain loop's numbers, or an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from outcomes import EAGER
from potential import LR, STEPS, Field, by_hand, episodes, learner, loss
from problems import meta_gradient, relative
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import fastmaml as fm
from fastmaml.gradients import Checkpointed, FirstOrder, MixedMode, Truncated, Unrolled

# What torch loads at the first dual number.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


def total(m: Field, x: Tensor) -> Tensor:
    return m.u(x).sum()


def func_grad(m: Field, x: Tensor) -> Tensor:
    return m.u(x) + grad(lambda t: m.u(t).square().sum())(x)


def func_vjp(m: Field, x: Tensor) -> Tensor:
    y, back = vjp(m.u, x)
    return y + back(y)[0]


def func_jvp(m: Field, x: Tensor) -> Tensor:
    y, along = jvp(m.u, (x,), (x.cos(),))
    return y * along


def func_jacrev(m: Field, x: Tensor) -> Tensor:
    return vmap(jacrev(lambda t: m.u(t)))(x).squeeze(1)


def func_jacfwd(m: Field, x: Tensor) -> Tensor:
    return vmap(jacfwd(lambda t: m.u(t)))(x).squeeze(1)


def func_hessian(m: Field, x: Tensor) -> Tensor:
    laplace = vmap(hessian(lambda t: m.u(t).squeeze(0)))(x)
    return m.u(x) + laplace.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)


def func_grad_of_parameters(m: Field, x: Tensor) -> Tensor:
    """A step of its own on its own parameters, as a model that adapts inside has it."""
    own = dict(m.net.named_parameters())
    steps = grad(lambda p: functional_call(m.net, p, (x,)).square().mean())(own)
    return functional_call(m.net, {n: p - 0.1 * steps[n] for n, p in own.items()}, (x,)) * m.scale


def autograd_grad(m: Field, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(total(m, x), x, create_graph=True)[0]


def autograd_grad_of_clone(m: Field, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    return m.u(x) + torch.autograd.grad(total(m, x), x, create_graph=True)[0]


def autograd_grad_in_place(m: Field, x: Tensor) -> Tensor:
    x.requires_grad_()
    return torch.autograd.grad(total(m, x), x, create_graph=True)[0]


def autograd_grad_by_attribute(m: Field, x: Tensor) -> Tensor:
    x = x.detach()
    x.requires_grad = True
    return torch.autograd.grad([total(m, x)], [x], create_graph=True)[0]


def autograd_grad_enabled(m: Field, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return -torch.autograd.grad(total(m, x), x, create_graph=True)[0]


def autograd_grad_twice(m: Field, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    first = torch.autograd.grad(total(m, x), x, create_graph=True)[0]
    return torch.autograd.grad(first.square().sum(), x, create_graph=True)[0] + first


def autograd_grad_as_a_constant(m: Field, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return m.u(x) * torch.autograd.grad(total(m, x), x)[0]


def autograd_grad_of_parameters(m: Field, x: Tensor) -> Tensor:
    w = m.net[0].weight
    return m.u(x) + torch.autograd.grad(total(m, x), w, create_graph=True)[0].square().sum()


def unused(m: Field, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    found = torch.autograd.grad(
        total(m, x), (x, m.scale.new_ones(1).requires_grad_()), create_graph=True,
        allow_unused=True, materialize_grads=True,
    )  # fmt: skip
    return found[0] + found[1]


def backward(m: Field, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    total(m, x).backward(inputs=[x])
    assert x.grad is not None
    return m.u(x) * x.grad


def functional_jacobian(m: Field, x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(lambda t: m.u(t).sum(), x, create_graph=True)


def functional_vjp(m: Field, x: Tensor) -> Tensor:
    return torch.autograd.functional.vjp(m.u, x, torch.ones_like(x[:, :1]), create_graph=True)[1]


def functional_hvp(m: Field, x: Tensor) -> Tensor:
    square = lambda t: m.u(t).square().sum()  # noqa: E731
    return torch.autograd.functional.hvp(square, x, x.cos(), create_graph=True)[1] + m.u(x)


def functional_constant(m: Field, x: Tensor) -> Tensor:
    return m.u(x) * torch.autograd.functional.jacobian(lambda t: m.u(t).sum(), x)


def without_gradient(m: Field, x: Tensor) -> Tensor:
    with torch.no_grad():
        fixed = m.u(x).exp()
    return m.u(x) * fixed


def by_data(m: Field, x: Tensor) -> Tensor:
    return m.u(x) * m.u(x).data.exp()


def func_grad_without_gradient(m: Field, x: Tensor) -> Tensor:
    with torch.no_grad():
        fixed = grad(lambda t: total(m, t))(x)
    return m.u(x) * fixed


ALL = [
    func_grad, func_vjp, func_jvp, func_jacrev, func_jacfwd, func_hessian,
    func_grad_of_parameters, autograd_grad, autograd_grad_of_clone, autograd_grad_in_place,
    autograd_grad_by_attribute, autograd_grad_enabled, autograd_grad_twice,
    autograd_grad_as_a_constant, autograd_grad_of_parameters, unused, backward,
    functional_jacobian, functional_vjp, functional_hvp, functional_constant, without_gradient,
    by_data, func_grad_without_gradient,
]  # fmt: skip
BATCHED = {f for f in ALL if f.__name__.startswith("func_")} | {without_gradient}
NOT_FORWARDS = {backward, func_jvp, func_jacfwd, func_hessian}


def gradients(model: nn.Module) -> Tensor:
    """Zero where there is none."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([g.flatten() for g in found])


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("method", [Unrolled(), Checkpointed(), MixedMode()], ids=str)
@pytest.mark.parametrize("function", ALL)
def test_inside_the_model(function: Callable[[Field, Tensor], Tensor], method: Any) -> None:
    model = Field(function)
    maml = learner(model, gradient=method, **EAGER)
    if isinstance(method, MixedMode) and function in NOT_FORWARDS:
        with pytest.raises(ValueError, match=r"MixedMode cannot differentiate: use gradient=Unr"):
            maml(episodes())
        return
    value, gradient = by_hand(model)
    assert relative(by_hand(model, first_order=True)[1], gradient) > 1e-3
    found = meta_gradient(maml, episodes())
    assert relative(found, gradient) < 1e-10
    torch.testing.assert_close(maml(episodes()).loss.detach(), value, rtol=1e-12, atol=0)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("method", [Unrolled(), MixedMode()], ids=str)
@pytest.mark.parametrize(
    "function", [func_grad, func_hessian, autograd_grad, functional_hvp, without_gradient]
)
def test_recorded(function: Callable[[Field, Tensor], Tensor], method: Any) -> None:
    if isinstance(method, MixedMode) and function in NOT_FORWARDS:
        return
    model = Field(function)
    gradient = by_hand(model)[1]
    maml = learner(model, gradient=method, executor="captured")
    for _ in range(3):
        assert relative(meta_gradient(maml, episodes()), gradient) < 1e-10


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("function", ALL)
def test_approximate_methods_evaluation_and_adaptation(
    function: Callable[[Field, Tensor], Tensor],
) -> None:
    model = Field(function)
    value, first = by_hand(model, first_order=True)
    for method in (FirstOrder(), Truncated(0)):
        found = meta_gradient(learner(model, gradient=method, executor="eager"), episodes())
        assert relative(found, first) < 1e-10
    maml = learner(model)
    assert maml.explain(episodes()).batched is (function in BATCHED), str(maml.explain(episodes()))
    evaluated = maml.evaluate(episodes())
    assert not evaluated.loss.requires_grad
    torch.testing.assert_close(evaluated.loss, value, rtol=1e-12, atol=0)
    task = episodes()[0]
    adapted = maml.adapt_to(task.support.map(lambda x: x.squeeze(0)))
    x, y = task.query.inputs.squeeze(0), task.query.targets.squeeze(0)
    torch.testing.assert_close(loss(adapted(x), y).detach(), evaluated.losses[0])
    assert all(p.grad is None for p in adapted.parameters()) or function is backward
    reptile = learner(model, gradient=fm.gradients.Reptile(), executor="eager")(episodes())
    torch.testing.assert_close(reptile.loss.detach(), value, rtol=1e-12, atol=0)


# ------------------------------------------------------------------ in the loss, and per task


def penalty(m: Field, output: Tensor, target: Tensor) -> Tensor:
    """A gradient penalty of the loss's own, by the inputs that forward() kept."""
    slope = torch.autograd.grad(output.sum(), m.kept, create_graph=True)[0]
    return loss(output, target) + slope.square().mean()


def keep(m: Field, x: Tensor) -> Tensor:
    m.kept = x.detach().requires_grad_()  # type: ignore[assignment]
    return m.u(m.kept)


def returned(m: Field, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    return m.u(x), x


def penalty_of_returned(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    y, x = output
    slope = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
    return loss(y, target) + slope.square().mean()


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("method", [Unrolled(), Checkpointed(), MixedMode()], ids=str)
@pytest.mark.parametrize("kind", ["kept", "returned"])
def test_in_the_loss(kind: str, method: Any) -> None:
    model = Field(keep if kind == "kept" else returned)
    given: Any = (lambda o, y: penalty(model, o, y)) if kind == "kept" else penalty_of_returned
    value, gradient = by_hand(model, given)
    maml = learner(model, gradient=method, loss=given, **EAGER)
    assert relative(meta_gradient(maml, episodes()), gradient) < 1e-10
    torch.testing.assert_close(maml.evaluate(episodes()).loss, value, rtol=1e-12, atol=0)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("executor", ["eager", None])
@pytest.mark.parametrize("function", [func_hessian, autograd_grad, backward, functional_jacobian])
def test_per_task(function: Callable[[Field, Tensor], Tensor], executor: Any) -> None:
    model = Field(function)
    value, gradient = by_hand(model)
    maml = learner(model, executor=executor)

    @maml.per_task
    def run(own: Any, support: fm.Batch, query: fm.Batch) -> Tensor:
        for _ in range(STEPS):
            own.adapt(loss(own(support.inputs), support.targets))
        return loss(own(query.inputs), query.targets)

    for _ in range(2):
        maml.zero_grad()
        out = run(episodes())
        out.loss.backward()
        assert relative(gradients(model), gradient) < 1e-10
    with torch.no_grad():
        torch.testing.assert_close(run(episodes()).loss, value, rtol=1e-12, atol=0)


def test_per_task_function_with_a_derivative_of_its_own() -> None:
    model = Field(lambda m, x: m.u(x))
    given = penalty_of_returned
    hand = Field(returned)
    gradient = by_hand(hand, given)[1]
    maml = learner(model)

    @maml.per_task
    def run(own: Any, support: fm.Batch, query: fm.Batch) -> Tensor:
        def penalised(batch: fm.Batch) -> Tensor:
            x = batch.inputs.detach().requires_grad_()
            return given((own(x), x), batch.targets)

        for _ in range(STEPS):
            own.adapt(penalised(support))
        return penalised(query)

    run(episodes()).loss.backward()
    assert relative(gradients(model), gradient) < 1e-10


def test_the_reason_is_told() -> None:
    plan = learner(Field(autograd_grad)).explain(episodes())
    assert "it calls torch.autograd.grad(), for which each task needs" in str(plan)


def with_norm(m: Field, x: Tensor) -> Tensor:
    w = m.net[0].weight.detach().requires_grad_()
    h = (x @ w.T + m.net[0].bias).tanh() @ m.net[2].weight.T * m.scale
    return h + torch.autograd.grad(h.sum(), w, create_graph=True)[0].square().sum()


def by_features(m: Field, x: Tensor) -> Tensor:
    h = m.net[0](x).tanh()
    y = m.net[2](h)
    return y * m.scale + torch.autograd.grad(y.square().sum(), h, create_graph=True)[0].sum()


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("method", [Unrolled(), Checkpointed(), MixedMode(), FirstOrder()], ids=str)
@pytest.mark.parametrize("function", [autograd_grad, with_norm, by_features])
def test_parts_that_do_not_adapt(function: Callable[[Field, Tensor], Tensor], method: Any) -> None:
    """They are constants to some passes of some methods, and still have derivatives."""
    model, batch = Field(function), episodes()
    theta = dict(model.named_parameters())
    losses = []
    for task in batch:
        scale = theta["scale"]
        x, y = task.support.inputs[0], task.support.targets[0]
        for _ in range(STEPS):
            support = loss(functional_call(model, {**theta, "scale": scale}, (x,)), y)
            second = not isinstance(method, FirstOrder)
            scale = scale - LR * torch.autograd.grad(support, scale, create_graph=second)[0]
        output = functional_call(model, {**theta, "scale": scale}, (task.query.inputs[0],))
        losses.append(loss(output, task.query.targets[0]))
    mean = torch.stack(losses).mean()
    expected = torch.autograd.grad(mean, list(theta.values()), materialize_grads=True)
    maml = learner(model, scope="scale", gradient=method, **EAGER)
    found = meta_gradient(maml, batch)
    assert relative(found, torch.cat([g.flatten() for g in expected])) < 1e-10
    torch.testing.assert_close(maml.evaluate(batch).loss, mean.detach(), rtol=1e-12, atol=0)


def test_a_derivative_by_a_parameter_that_does_not_adapt() -> None:
    for method in (Unrolled(), Checkpointed()):
        maml = learner(Field(autograd_grad_of_parameters), scope="scale", gradient=method)
        with pytest.raises(
            ValueError, match=r"called for the parameter 'net.0.weight', which does"
        ):
            maml(episodes())
