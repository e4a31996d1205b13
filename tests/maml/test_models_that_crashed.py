"""Models whose tensors or modules are of an unusual kind: right, or refused with a way out."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from every_way import METHODS, between, episodes, held_to_loop, maml
from hand_loop import hand_loop
from outcomes import vectors
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import utils
from torch.nn.utils import prune

import fastmaml as fm
from fastmaml.engine.routing.decompositions import weight_norm
from fastmaml.gradients import FirstOrder, MixedMode


def of(function: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """What the loop gives with this function in the place of another."""
    return hand_loop(between(function), F.mse_loss, episodes(), 0.3, 2)


# ---------------------------------------------------------------------- tensors without memory


@pytest.mark.slow
@pytest.mark.parametrize(
    "function",
    [
        lambda h, v: h * h.sgn(),
        lambda h, v: torch.complex(h, h.cos()).sgn().imag * h,
        lambda h, v: h + v.round() * h.sign(),
        lambda h, v: h * (v + torch._efficientzerotensor((4,), dtype=h.dtype)),
    ],
)
def test_stand_ins_for_zero(function: Any) -> None:
    held_to_loop(between(function), episodes(), executors=[None])


class Rows8(Tensor):
    """int8 numbers with a scale for each row, as libraries for quantization have them."""

    numbers: Tensor
    scales: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor, scales: Tensor) -> Rows8:
        made: Rows8 = Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scales.dtype)
        return made

    def __init__(self, numbers: Tensor, scales: Tensor) -> None:
        self.numbers, self.scales = numbers, scales

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func in (aten.detach.default, aten.clone.default, aten.alias.default):
            return cls(func(args[0].numbers), func(args[0].scales))
        plain = [x.numbers * x.scales if isinstance(x, Rows8) else x for x in args]
        return func(*plain, **(kwargs or {}))


class Told8(Rows8):
    """The same, telling what it is made of."""

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["numbers", "scales"], None


class Adapter(nn.Module):
    """A frozen weight, and beside it one of low rank."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.down, self.up = nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False)
        for layer in (self.down, self.up):
            layer.double()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) + self.up(self.down(x).tanh())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Rows8, Told8])
def test_quantized_weights_beside_adapters(kind: type[Rows8]) -> None:
    torch.manual_seed(0)
    numbers = torch.randint(-9, 9, (2, 3), dtype=torch.int8)
    weight = kind(numbers, torch.tensor([[0.1], [0.05]], dtype=torch.float64))
    given = episodes()
    dense = Adapter(numbers * weight.scales)
    expected = hand_loop(dense, F.mse_loss, given, 0.3, 2)
    model = Adapter(weight)
    model.down.load_state_dict(dense.down.state_dict())
    model.up.load_state_dict(dense.up.state_dict())
    for executor in ("eager", None):
        for method in METHODS:
            model.zero_grad()
            out = maml(model, gradient=method, executor=executor)(given)
            out.loss.backward()
            torch.testing.assert_close(out.loss.detach(), expected[0])
            for name in ("down.weight", "up.weight"):
                torch.testing.assert_close(
                    model.get_parameter(name).grad, expected[1][name], rtol=1e-9, atol=1e-12
                )
    learner = maml(model).adapt_to(given.support.map(lambda x: x[0]))
    torch.testing.assert_close(
        learner(given.query.inputs[0]).detach(), maml(model).evaluate(given).outputs[0]
    )


# ------------------------------------------------------------------------------------ functions


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize(
    ("norm", "plain"),
    [
        (lambda h, v: F.layer_norm(h, (4,), None, v), lambda h, v: F.layer_norm(h, (4,)) + v),
        (lambda h, v: F.layer_norm(h, [4], bias=v), lambda h, v: F.layer_norm(h, (4,)) + v),
        (lambda h, v: F.group_norm(h, 2, None, v), lambda h, v: F.group_norm(h, 2) + v),
        (
            lambda h, v: F.batch_norm(h, None, None, bias=v, training=True),
            lambda h, v: F.batch_norm(h, None, None, training=True) + v,
        ),
        (
            lambda h, v: F.instance_norm(torch.stack([h, h.cos(), 2 * h], -1), bias=v).amax(-1),
            lambda h, v: F.instance_norm(torch.stack([h, h.cos(), 2 * h], -1)).amax(-1) + v,
        ),
    ],
)
@pytest.mark.parametrize("backend", ["reference", None])
def test_normalisation_with_a_bias_alone(norm: Any, plain: Any, backend: Any) -> None:
    methods = METHODS if backend is None else METHODS[-1:]
    held_to_loop(
        between(norm), episodes(), methods=methods, executors=[None], expected=of(plain),
        backend=backend,
    )  # fmt: skip


@pytest.mark.slow
def test_what_is_computed_without_gradients_is_a_constant() -> None:
    """Forwards as well."""

    def no_grad(h: Tensor, v: Tensor) -> Tensor:
        with torch.no_grad():
            scale = h.norm() * v.sum()
        return h * scale

    def data(h: Tensor, v: Tensor) -> Tensor:
        return h * (h.data.norm() * v.data.sum())

    expected = of(lambda h, v: h * (h.norm() * v.sum()).detach())
    for function in (no_grad, data):
        held_to_loop(between(function), episodes(), expected=expected)


# -------------------------------------------------------------------------------------- modules


def weight_of(layer: nn.Module) -> Tensor:
    """Of a layer with weight normalisation, by the formula."""
    return weight_norm(layer.weight_v, layer.weight_g)


class ByFormula(nn.Module):
    """A linear layer with weight normalisation, and another one."""

    def __init__(self, normalised: nn.Module) -> None:
        super().__init__()
        named = dict(normalised.named_parameters())
        self.weight_g, self.weight_v = named["0.weight_g"], named["0.weight_v"]
        self.bias, self.last = named["0.bias"], normalised[2]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(x, weight_of(self), self.bias).tanh())


def normalised(function: Any, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layer = function(nn.Linear(3, 4).double(), **options)
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 2).double())


@pytest.mark.slow
def test_weight_norm_by_a_hook() -> None:
    model, given = normalised(utils.weight_norm), episodes()
    loss, gradient = hand_loop(ByFormula(model), F.mse_loss, given, 0.3, 2)
    renamed = {n.replace("last", "2") if "last" in n else f"0.{n}": g for n, g in gradient.items()}
    held_to_loop(model, given, expected=(loss, renamed))


@pytest.mark.slow
def test_verify_copies_them() -> None:
    """And its own loop differentiates weight normalisation rightly."""
    for model in (
        normalised(utils.weight_norm),
        normalised(utils.parametrizations.weight_norm),
        Keeps().double(),
    ):
        model(episodes().query.inputs[0])
        assert fm.verify(maml(model), episodes()).agrees


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_spectral_norm_by_a_hook(training: bool) -> None:
    held_to_loop(normalised(utils.spectral_norm).train(training), episodes(), executors=[None])


class Keeps(nn.Module):
    """Keeps its activations, in an attribute and in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.kept: Any = None
        self.more: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.a(x).tanh()
        self.more["twice"] = [2 * self.kept]
        return self.b(self.kept)


@pytest.mark.slow
def test_pruned_again_after_a_meta_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    for _ in range(2):
        prune.l1_unstructured(model[0], "weight", amount=0.3)  # type: ignore[no-untyped-call]
        held_to_loop(model, episodes())
        assert model[0].weight.sum().isfinite()


@pytest.mark.slow
def test_kept_activations() -> None:
    torch.manual_seed(0)
    model, given = Keeps().double(), episodes()
    held_to_loop(model, given)
    model(given.query.inputs[0])
    learner = maml(model).adapt_to(given.support.map(lambda x: x[0]))
    assert torch.equal(learner.kept, model.kept)
    assert learner.kept is not model.kept
    assert learner.kept.is_leaf


def with_statistics() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()


def test_state_of_a_learner_with_batch_norm() -> None:
    given, learning = episodes(), maml(with_statistics())
    learner = learning.adapt_to(given.support.map(lambda x: x[0])).eval()
    x, state = given.query.inputs[0], learner.state_dict()

    other = learning.adapt_to(given.support.map(lambda x: x[1])).eval()
    other.load_state_dict(state)
    assert torch.equal(other(x), learner(x))

    fresh = with_statistics().eval()
    fm.forget_running_statistics(fresh)
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), learner(x))

    other.load_state_dict(with_statistics().state_dict())  # whose running statistics are left out
    for twin in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        twin.load_state_dict(with_statistics().state_dict())
        assert torch.equal(twin(x), other(x))


def test_state_of_a_learner_that_keeps_running_statistics() -> None:
    given, learning = episodes(), maml(with_statistics(), batch_norm="module")
    learner = learning.adapt_to(given.support.map(lambda x: x[0])).eval()
    fresh = with_statistics().eval()
    fresh.load_state_dict(learner.state_dict())
    assert torch.equal(fresh(given.query.inputs[0]), learner(given.query.inputs[0]))


def test_state_of_a_clone() -> None:
    learning = maml(with_statistics())
    learner = learning.clone()
    learner.adapt(F.mse_loss(learner(episodes().support.inputs[0]), episodes().support.targets[0]))
    fresh = maml(with_statistics())
    fresh.load_state_dict(learner.state_dict())
    x = episodes().query.inputs[0]
    torch.testing.assert_close(fresh(x), learner(x))


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("gradient", [FirstOrder(), MixedMode()])
def test_memory_of_quantized_weights_is_counted(gradient: Any) -> None:
    weight = Told8(torch.ones(2, 3, dtype=torch.int8), torch.ones(2, 1, dtype=torch.float64))
    plan = maml(Adapter(weight), gradient=gradient).explain(episodes())
    assert 0 < plan.bytes_estimate < plan.bytes_budget


class Ragged(nn.Module):
    """A nested tensor in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).tanh()
        nested = torch.nested.as_nested_tensor([h[:1], h[1:]], layout=torch.strided)
        return self.b(torch.cat((nested * 2.0).unbind()))


@pytest.mark.slow
def test_nested_tensors() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors", UserWarning)
        torch.manual_seed(0)
        held_to_loop(Ragged().double(), episodes(), methods=METHODS[:2])


def test_what_cannot_be_copied_says_so() -> None:
    class Streaming(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.rows = (i for i in range(9))

    maml = fm.MAML(Streaming().double(), lr=0.1, loss=F.mse_loss)
    maml(vectors()).loss.backward()
    support = vectors().support
    with pytest.raises(TypeError, match=r"deepcopy .*outside of the model.*clone\(\)"):
        maml.adapt_to(fm.Batch(support.inputs[0], support.targets[0]))
