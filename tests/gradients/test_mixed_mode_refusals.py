"""MixedMode through functions whose forward-mode derivatives PyTorch has wrong, or has not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hand_loop import hand_loop
from torch import Tensor, nn
from versions import differentiable_twice

import fastmaml as fm
from fastmaml.gradients import Checkpointed, MixedMode, Unrolled
from fastmaml.gradients.forward_check import differ

SIZE = 4


class Around(nn.Module):
    """A function of a well-conditioned matrix, and a layer after it."""

    def __init__(self, function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.matrix = nn.Parameter(torch.randn(SIZE, SIZE, dtype=dtype) * 0.3)
        self.head = nn.Linear(SIZE, 1, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(3 * torch.eye(SIZE, dtype=x.dtype) + self.matrix)
        return self.head(x * (1 + y.reshape(-1)[:SIZE].sum().tanh() + y.reshape(-1)[-1]))


def episodes(dtype: torch.dtype = torch.float64) -> fm.Episodes:
    generator = torch.Generator().manual_seed(1)
    sets = (
        fm.Batch(
            torch.randn(3, 5, SIZE, dtype=dtype, generator=generator),
            torch.randn(3, 5, 1, dtype=dtype, generator=generator),
        )
        for _ in range(2)
    )
    return fm.Episodes(*sets)


def meta_gradient(model: nn.Module, **settings: object) -> dict[str, Tensor | None]:
    model.zero_grad()
    maml = fm.MAML(model, lr=0.1, steps=2, loss=F.mse_loss, **settings)  # type: ignore[arg-type]
    maml(episodes(model.matrix.dtype)).loss.backward()  # type: ignore[union-attr]
    return {n: p.grad for n, p in model.named_parameters()}


def zeroed(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """With one element set to zero: `cumprod` has another formula then."""
    return lambda a: function(a * (torch.arange(SIZE * SIZE).view(SIZE, SIZE) != 5))


RIGHT = {
    "solve": lambda a: torch.linalg.solve(a, torch.ones(SIZE, SIZE, dtype=a.dtype)),
    "solve_ex": lambda a: torch.linalg.solve_ex(a, torch.ones(SIZE, dtype=a.dtype))[0],
    "solve of the right-hand side": lambda a: torch.linalg.solve(a, a.T @ a),
    "tensorsolve": lambda a: torch.linalg.tensorsolve(
        a.view(SIZE, 2, 2), torch.ones(SIZE, dtype=a.dtype)
    ),
    "det": torch.linalg.det,
    "slogdet": lambda a: torch.linalg.slogdet(a)[1],
    "logdet": torch.logdet,
    "inv": torch.linalg.inv,
    "cumprod": zeroed(lambda a: a.cumprod(0)),
    "prod": zeroed(lambda a: a.prod(1)),
    "logit": lambda a: torch.logit(a.sigmoid()),
    "solve_triangular": lambda a: torch.linalg.solve_triangular(
        a.tril(), torch.ones(SIZE, 1, dtype=a.dtype), upper=False
    ),
}


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("executor", ["eager", "captured"])
@pytest.mark.parametrize("name", RIGHT)
def test_formulas_over_saved_factors_have_their_tangents(name: str, executor: str) -> None:
    model = Around(RIGHT[name], torch.float64)
    _, expected = hand_loop(model, F.mse_loss, episodes(), 0.1, 2)
    found = meta_gradient(model, gradient=MixedMode(), executor=executor)
    for n, g in expected.items():
        torch.testing.assert_close(found[n], g, rtol=1e-9, atol=1e-10)


def spread(reduce: str) -> Callable[[Tensor], Tensor]:
    rows = torch.tensor([[0, 1, 0, 1]]).expand(SIZE, SIZE)
    return lambda a: torch.scatter_reduce(a[:2], 0, rows, a, reduce)


WRONG = {
    "cholesky_inverse": lambda a: torch.cholesky_inverse(a.tril()),
    "scatter_reduce": spread("prod"),
    "as_strided_scatter": lambda a: torch.as_strided_scatter(a * a, a[0].sin(), (SIZE,), (2,)),
}


@pytest.mark.sampled(together=1)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_forward_derivatives_are_refused_by_name(name: str, dtype: torch.dtype) -> None:
    model = Around(WRONG[name], dtype)
    with pytest.raises(fm.MissingDerivative, match=rf"{name}.* is wrong\. Use .*Unrolled\(\)"):
        meta_gradient(model, gradient=MixedMode())


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("name", WRONG)
def test_the_way_out_is_right(name: str) -> None:
    model = Around(WRONG[name], torch.float64)
    _, expected = hand_loop(model, F.mse_loss, episodes(), 0.1, 2)
    for gradient in (Unrolled(), Checkpointed()):
        found = meta_gradient(model, gradient=gradient)
        for n, g in expected.items():
            torch.testing.assert_close(found[n], g, rtol=1e-9, atol=1e-10)


def test_what_does_not_adapt_is_not_refused() -> None:
    model = Around(WRONG["cholesky_inverse"], torch.float64)
    expected = meta_gradient(model, gradient=Unrolled(), scope="head")
    found = meta_gradient(model, gradient=MixedMode(), scope="head")
    for n, g in expected.items():
        torch.testing.assert_close(found[n], g, rtol=1e-9, atol=1e-10)


class Swapped(torch.autograd.Function):
    """x², with a jvp that forgets the factor of two: nobody's list has its name."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs, output) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * g

    @staticmethod
    def jvp(ctx, t: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * t


def test_a_wrong_formula_that_no_list_has_is_found() -> None:
    model = Around(Swapped.apply, torch.float32)
    with pytest.raises(fm.MissingDerivative, match="forward-mode derivatives of this model"):
        meta_gradient(model, gradient=MixedMode())


MISSING = {
    "cholesky": lambda a: torch.cholesky(a @ a.T),
    "index_reduce": lambda a: a.index_reduce(0, torch.tensor([0, 1]), a[:2].sin(), "mean"),
    "grid_sampler_2d": lambda a: F.grid_sample(
        a.view(1, 1, SIZE, SIZE), a[:2, :2].reshape(1, 1, 2, 2).tanh(), align_corners=False
    ),
    "ormqr": lambda a: torch.ormqr(a, a[0].sin(), a.cos()),
    "scatter_reduce_": lambda a: (a * 1).scatter_reduce_(
        0, torch.tensor([[0, 1, 0, 1]]).expand(SIZE, SIZE), a, "prod"
    ),
}


@pytest.mark.sampled(at_most=1)
@pytest.mark.filterwarnings("ignore:torch.cholesky is deprecated")
@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("name", MISSING)
def test_missing_forward_derivatives_name_the_function_and_the_way_out(name: str) -> None:
    if name == "grid_sampler_2d" and not differentiable_twice("grid_sample"):
        pytest.skip("this PyTorch has no second derivative of grid_sample")
    model = Around(MISSING[name], torch.float64)
    message = (
        rf"PyTorch has none of {name}\. Use gradient=Unrolled\(\) or gradient=Checkpointed\(\)"
    )
    with pytest.raises(fm.MissingDerivative, match=message) as caught:
        meta_gradient(model, gradient=MixedMode())
    assert isinstance(caught.value.__cause__, RuntimeError)
    _, expected = hand_loop(model, F.mse_loss, episodes(), 0.1, 2)
    found = meta_gradient(model, gradient=Unrolled())
    for n, g in expected.items():
        torch.testing.assert_close(found[n], g, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_kinks_raise_no_alarm() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    for _ in range(5):
        model = nn.Sequential(*layers, nn.Linear(32, 3))
        batch = fm.Batch(torch.randn(2, 6, 1, 7, 7), torch.randint(0, 3, (2, 6)))
        batch.inputs[:, 3:] = batch.inputs[:, :3].round()  # ties in pooling
        maml = fm.MAML(model, lr=0.4, loss=F.cross_entropy, gradient=MixedMode())
        assert maml(fm.Episodes(batch, batch)).loss.isfinite()


def test_rounding_is_no_difference_and_more_is() -> None:
    g = torch.Generator().manual_seed(0)
    for dtype in (torch.float64, torch.float32):
        x, noise = (torch.randn(50, dtype=dtype, generator=g) for _ in range(2))
        step = torch.finfo(dtype).eps ** 0.5
        assert not differ([x, None], [x + step * noise, 1e-9 * x[:3] * step])
        assert differ([x], [x + 100 * step * noise])
        assert differ([x, None], [x, 0.1 * x[:20]])
        assert not differ([x], [x / 0])  # what is not finite is reported elsewhere


ACTIVATIONS = {
    "elu": lambda x: F.elu(x, 0.7),
    "celu": lambda x: F.celu(x, 1.25),
    "selu": F.selu,
    "selu in place": lambda x: F.selu(x + 0, inplace=True),
    "torch.celu": lambda x: torch.celu(x, 1.25),
    "torch.selu_": lambda x: torch.selu_(x + 0),
    "elu_": lambda x: F.elu_(x + 0, 0.7),
    "silu": F.silu,
    "mish": F.mish,
    "hardsigmoid": F.hardsigmoid,
    "softplus": F.softplus,
}


class Body(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.activation = activation
        self.matrix = nn.Parameter(torch.randn(SIZE, SIZE, dtype=torch.float64))
        self.head = nn.Linear(SIZE, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(x @ self.matrix)).tanh()


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("scope", ["all", "head"])
def test_activations_whose_input_does_not_adapt(name: str, scope: str) -> None:
    """Elu's kernel ended the interpreter there."""
    model = Body(ACTIVATIONS[name])
    if name == "hardsigmoid":  # the exact loop has no second derivative of its own
        model.activation = lambda x: F.relu6(x + 3) / 6
    expected = meta_gradient(model, gradient=Unrolled(), scope=scope, executor="eager")
    model.activation = ACTIVATIONS[name]
    found = meta_gradient(model, gradient=MixedMode(), scope=scope, executor="eager")
    for n, g in expected.items():
        torch.testing.assert_close(found[n], g, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_stand_ins_write_where_they_were_told_to() -> None:
    for function in (F.silu, F.mish, F.elu, F.celu, F.selu, F.hardsigmoid):

        def written(x: Tensor, function=function) -> Tensor:
            y = x * 1
            function(y, inplace=True)
            return y

        expected = meta_gradient(Body(function), gradient=MixedMode())
        found = meta_gradient(Body(written), gradient=MixedMode())
        for n, g in expected.items():
            torch.testing.assert_close(found[n], g, rtol=1e-9, atol=1e-11)
