"""higher's interface: each differentiable optimizer against torch.optim and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizers import OPTIMIZERS, initial, loss_of, stepped
from problems import tensor
from torch import Tensor

import fastmaml.compat.higher as higher

SMOOTH = [name for name in OPTIMIZERS if name != "rprop"]


def unrolled(diffopt: higher.DifferentiableOptimizer, params: list[Tensor], steps: int) -> Any:
    for _ in range(steps):
        params = diffopt.step(loss_of(params), params=params)
    return params


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 3], ids=["new", "half-trained"])
@pytest.mark.parametrize("tracks", [True, False], ids=["tracked", "detached"])
def test_the_same_steps_as_torch(name: str, before: int, tracks: bool) -> None:
    kind, options = OPTIMIZERS[name]
    params = initial()
    opt = kind(params, **options)
    stepped(opt, params, before)
    diffopt = higher.get_diff_optim(opt, params, track_higher_grads=tracks)
    fast = [p.detach().clone().requires_grad_() for p in params]
    for _ in range(6):
        fast = diffopt.step(loss_of(fast), params=fast)
        stepped(opt, params, 1)
        for mine, theirs in zip(fast, params, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
            assert mine.requires_grad
            assert mine.is_leaf is not tracks


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_with_their_own_hyper_parameters(name: str) -> None:
    kind, options = OPTIMIZERS[name]
    params = initial()
    groups = [{"params": [params[1]], "lr": 3 * options["lr"]}, {"params": [params[0]]}]
    opt = kind(groups, **options)
    diffopt = higher.get_diff_optim(opt, params)
    fast = unrolled(diffopt, [p.detach().clone().requires_grad_() for p in params], 4)
    stepped(opt, params, 4)
    for mine, theirs in zip(fast, params, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SMOOTH)
def test_the_derivative_by_the_initial_parameters(name: str) -> None:
    kind, options = OPTIMIZERS[name]

    def end(a: Tensor, b: Tensor) -> Tensor:
        params = [a, b]
        return loss_of(unrolled(higher.create_diff_optim(kind, options, params), params, 3))

    assert torch.autograd.gradcheck(end, initial())


@pytest.mark.parametrize("name", SMOOTH)
def test_the_second_derivative(name: str) -> None:
    kind, options = OPTIMIZERS[name]

    def end(b: Tensor) -> Tensor:
        params = [initial()[0], b]
        return loss_of(unrolled(higher.create_diff_optim(kind, options, params), params, 2))

    assert torch.autograd.gradgradcheck(end, (initial()[1],))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_derivative_by_every_hyper_parameter(name: str) -> None:
    kind, options = OPTIMIZERS[name]
    params = initial()
    opt = kind(params, **options)
    override = higher.optim.get_trainable_opt_params(opt)
    learned = {n: v for n, v in override.items() if n not in ("t0", "initial_accumulator_value")}
    names = [n for n, v in learned.items() for _ in higher.utils.flatten(v)]
    leaves = [
        x.detach().double().requires_grad_() for x in higher.utils.flatten([*learned.values()])
    ]
    if name == "asgd":
        opt.param_groups[0]["t0"] = 1e6  # a number, not learned

    def end(*values: Tensor) -> Tensor:
        grouped: dict[str, Any] = {}
        for n, x in zip(names, values, strict=True):
            grouped.setdefault(n, []).append(x)
        override = {n: [x[0] if len(x) == 1 else tuple(x)] for n, x in grouped.items()}
        diffopt = higher.get_diff_optim(opt, params, override=override)
        return loss_of(unrolled(diffopt, params, 3))

    assert {"lr"} <= set(names)
    assert torch.autograd.gradcheck(end, leaves)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gradient_of_zero_gives_no_nan(name: str) -> None:
    """A dead unit: its gradient is exactly zero at every step, and so are its moments."""
    kind, options = OPTIMIZERS[name]
    params = [tensor(4, seed=3).requires_grad_()]
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    options = {k: v for k, v in options.items() if k != "weight_decay"}
    fast, start = params, params
    diffopt = higher.create_diff_optim(
        kind, {**options, "weight_decay": 0.0} if name != "rprop" else options, params
    )
    for _ in range(3):
        fast = diffopt.step(((fast[0] * mask) ** 2).sum(), params=fast)
    (gradient,) = torch.autograd.grad((fast[0] ** 2).sum(), start)
    assert torch.isfinite(gradient).all()
    if kind is not torch.optim.ASGD:  # it decays what has no gradient too
        assert torch.equal(fast[0][1::2], start[0][1::2])
        torch.testing.assert_close(gradient[1::2], 2 * start[0][1::2].detach())


def test_the_slope_of_adam_where_everything_is_zero() -> None:
    """p₁ = p − lr·g/(|g| + eps), and the derivative of the loss's gradient is 1 there."""
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    diffopt = higher.create_diff_optim(torch.optim.Adam, {"lr": 0.1, "eps": 0.5}, [p])
    (after,) = diffopt.step((p**2 / 2).sum(), params=[p])
    assert torch.autograd.grad(after, p)[0].item() == pytest.approx(1 - 0.1 / 0.5, rel=1e-12)


def test_overrides_for_each_group_and_at_a_step() -> None:
    params = initial()
    opt = torch.optim.SGD([{"params": [p]} for p in params], lr=1.0)
    rates = [torch.tensor(r, dtype=torch.float64, requires_grad=True) for r in (0.1, 0.3)]
    diffopt = higher.get_diff_optim(opt, params, override={"lr": rates})
    gradients = torch.autograd.grad(loss_of(params), params)
    fast = diffopt.step(loss_of(params), params=params)
    for p, g, rate, new in zip(params, gradients, (0.1, 0.3), fast, strict=True):
        torch.testing.assert_close(new, p - rate * g)
    derivative = torch.autograd.grad(fast[0].sum() + 2 * fast[1].sum(), rates)
    torch.testing.assert_close(derivative[0], -gradients[0].sum())
    torch.testing.assert_close(derivative[1], -2 * gradients[1].sum())
    for _ in range(2):  # what a step overrides stays so
        fast = diffopt.step(loss_of(params), params=params, override={"lr": [0.7]})
        torch.testing.assert_close(fast[1], params[1] - 0.7 * gradients[1])
    assert opt.param_groups[0]["lr"] == 1.0


def test_a_learned_coefficient_at_zero_has_a_gradient() -> None:
    params = initial()
    zero = {
        n: torch.zeros((), dtype=torch.float64, requires_grad=True)
        for n in ("weight_decay", "momentum")
    }
    opt = torch.optim.SGD(params, lr=0.1)
    diffopt = higher.get_diff_optim(opt, params, override={n: [x] for n, x in zero.items()})
    gradients = torch.autograd.grad(loss_of(unrolled(diffopt, params, 2)), list(zero.values()))
    assert all(g.abs() > 1e-4 for g in gradients)


def test_a_rate_of_the_optimizer_itself_can_be_learned() -> None:
    params = initial()
    rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    diffopt = higher.get_diff_optim(torch.optim.SGD(params, lr=rate), params)
    end = loss_of(unrolled(diffopt, params, 1))
    with torch.no_grad():
        rate.fill_(5.0)  # as a scheduler does; the graph has its own copy
    assert torch.autograd.grad(end, rate)[0].abs() > 1e-3


def test_neither_the_optimizer_nor_its_state_changes() -> None:
    params = initial()
    opt = torch.optim.Adam(params, lr=0.1)
    stepped(opt, params, 2)
    before = {k: v.clone() for k, v in opt.state[params[0]].items()}
    values = [p.detach().clone() for p in params]
    unrolled(higher.get_diff_optim(opt, params), params, 3)
    assert all(torch.equal(opt.state[params[0]][k], v) for k, v in before.items())
    assert all(torch.equal(p, v) for p, v in zip(params, values, strict=True))
    assert opt.param_groups[0]["params"][0] is params[0]


def test_hyper_parameters_to_tensors_and_back() -> None:
    params = initial()
    opt = torch.optim.Adam([{"params": [params[0]], "lr": 1}, {"params": [params[1]]}], lr=0.5)
    override = higher.optim.get_trainable_opt_params(opt)
    assert set(override) == {"lr", "betas", "eps", "weight_decay"}  # switches are not learned
    assert [x.item() for x in override["lr"]] == [1.0, 0.5]
    assert all(x.requires_grad for x in higher.utils.flatten(override))
    with torch.no_grad():
        override["lr"][0].fill_(0.25)
        override["betas"][1][0].fill_(0.5)
    higher.optim.apply_trainable_opt_params(opt, override)
    assert opt.param_groups[0]["lr"] == 0.25
    assert opt.param_groups[1]["betas"] == (0.5, pytest.approx(0.999))
    assert isinstance(opt.param_groups[1]["betas"][0], float)
    higher.optim.apply_trainable_opt_params(opt, {"lr": [torch.tensor(0.75)]})
    assert [g["lr"] for g in opt.param_groups] == [0.75, 0.75]
    tensors = torch.optim.Adam(params, lr=torch.tensor(0.5))
    higher.optim.apply_trainable_opt_params(tensors, {"lr": [torch.tensor(0.75)]})
    assert tensors.param_groups[0]["lr"] == torch.tensor(0.75)


class SignDescent(torch.optim.Optimizer):
    """An optimizer that torch does not have."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})


class DifferentiableSignDescent(higher.optim.DifferentiableOptimizer):
    def _update(self, grouped_grads: Any, **kwargs: Any) -> None:
        for group, grads in zip(self.param_groups, grouped_grads, strict=True):
            for i, g in enumerate(grads):
                group["params"][i] = group["params"][i] - group["lr"] * g.sign()


def test_an_optimizer_of_ones_own() -> None:
    params = initial()
    opt = SignDescent(params, lr=0.1)
    with pytest.raises(ValueError, match=r"SignDescent .*register_optim\(SignDescent, "):
        higher.get_diff_optim(opt, params)
    with pytest.raises(ValueError, match="register_optim"):
        higher.create_diff_optim(torch.optim.LBFGS, {}, params)
    with pytest.raises(TypeError, match="DifferentiableOptimizer"):
        higher.register_optim(SignDescent, SignDescent)  # type: ignore[arg-type]
    higher.register_optim(SignDescent, DifferentiableSignDescent)
    gradients = torch.autograd.grad(loss_of(params), params)
    fast = higher.get_diff_optim(opt, params).step(loss_of(params), params=params)
    for p, g, new in zip(params, gradients, fast, strict=True):
        assert torch.equal(new, p - 0.1 * g.sign())


def test_create_with_groups_of_a_models_parameters() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).double()
    fmodel = higher.monkeypatch(model, copy_initial_weights=False)
    before = list(fmodel.parameters())
    groups = [{"params": fmodel[1].parameters(), "lr": 0.5}, {"params": fmodel[0].weight}]
    diffopt = higher.create_diff_optim(torch.optim.SGD, {"lr": 0.1}, groups, fmodel=fmodel)
    loss = fmodel(tensor(5, 3)).square().mean()
    gradients = torch.autograd.grad(loss, before, retain_graph=True)
    diffopt.step(loss)
    rates = (0.1, 0.0, 0.5, 0.5)  # the bias of the first layer is in no group
    for p, g, rate, new in zip(before, gradients, rates, fmodel.parameters(), strict=True):
        torch.testing.assert_close(new, p - rate * g)


def wrong_override(values: Any, name: str = "lr") -> Callable[[], Any]:
    params = initial()
    opt = torch.optim.SGD([{"params": [p]} for p in params], lr=0.1)
    return lambda: higher.get_diff_optim(opt, params, override={name: values})


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="one for each of the 2"):
        wrong_override([0.1, 0.2, 0.3])()
    for value in (torch.tensor(0.1), 0.1):
        with pytest.raises(ValueError, match="give a list"):
            wrong_override(value)()
    with pytest.raises(ValueError, match="it has lr, momentum"):
        wrong_override([0.1], "learning_rate")()
    params, others = initial(), initial()
    with pytest.raises(ValueError, match=r"shape \[3, 4\] that is not among"):
        higher.get_diff_optim(torch.optim.SGD(others, lr=0.1), params)
    diffopt = higher.get_diff_optim(torch.optim.SGD(params, lr=0.1), params)
    with pytest.raises(ValueError, match="needs params="):
        diffopt.step(loss_of(params))
    with pytest.raises(RuntimeError, match="requires_grad=False"):
        diffopt.step(loss_of(params).detach(), params=params)
    with pytest.raises(RuntimeError, match=r"shape \[4\]"):
        diffopt.step(params[1] * 2, params=params)
    with pytest.raises(ValueError, match="returned 1 gradients for 2"):
        diffopt.step(loss_of(params), params=params, grad_callback=lambda gs: gs[:1])
    with pytest.raises(ValueError, match="what is it to move"):
        higher.create_diff_optim(torch.optim.SGD, {"lr": 0.1})
    z = torch.ones(2, dtype=torch.complex128, requires_grad=True)
    diffopt = higher.create_diff_optim(torch.optim.Adam, {"lr": 0.1}, [z])
    with pytest.raises(ValueError, match="complex"):
        diffopt.step(z.abs().sum(), params=[z])
