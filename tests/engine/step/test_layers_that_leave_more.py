"""Checkpointed modules whose tensors leave them otherwise than as a plain result, or never do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from language_models import METHODS, PATHS, check, hand_gradient, meta_gradient
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastmaml as fm

WIDTH = 5


def region(again: bool, layer: nn.Module, *args: Any) -> Any:
    return checkpoint(layer, *args, use_reentrant=False) if again else layer(*args)


class Net(nn.Module):
    """One layer between two others; subclasses say what is done with it."""

    def __init__(self, layer: nn.Module, again: bool) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(4, WIDTH), layer, nn.Linear(WIDTH, 3)
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).tanh()
        return self.last(self.use(x, lambda *args: region(self.again, self.layer, *args)))

    def use(self, x: Tensor, layer: Callable[..., Any]) -> Tensor:
        found: Tensor = layer(x)
        return found


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Any:
        return self.inner(x).tanh()


class Attribute(Net):
    class Layer(Layer):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            self.auxiliary = y.square().mean(-1, keepdim=True)
            return y

    def use(self, x: Tensor, layer: Callable[..., Any]) -> Tensor:
        return layer(x) + self.layer.auxiliary * torch.arange(WIDTH)


class Hook(Net):
    Layer = Layer

    def __init__(self, layer: nn.Module, again: bool) -> None:
        super().__init__(layer, again)
        self.kept: list[Tensor] = []
        layer.inner.register_forward_hook(lambda m, i, output: self.kept.append(output))

    def use(self, x: Tensor, layer: Callable[..., Any]) -> Tensor:
        self.kept.clear()
        y = layer(x)
        return y + self.kept[0].square().mean(-1, keepdim=True) * torch.arange(WIDTH)


@dataclass
class Output:
    y: Tensor
    more: list[Tensor]


class Object(Net):
    class Layer(Layer):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return Output(y, [y.square()])

    def use(self, x: Tensor, layer: Callable[..., Any]) -> Tensor:
        found = layer(x)
        return found.y * found.more[0]


class AsGiven(Net):
    class Layer(Layer):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x, self.inner.weight, x.view(-1), x.detach()

    def use(self, x: Tensor, layer: Callable[..., Any]) -> Tensor:
        y, same, weight, flat, constant = layer(x)
        return y @ weight + same * flat.view_as(same).square() + constant * y


class Nothing(Net):
    """Dropout of nothing returns its argument, and so does this layer."""

    Layer = type("Drop", (nn.Dropout,), {"__init__": lambda self: nn.Dropout.__init__(self, 0.0)})

    def use(self, x: Tensor, layer: Callable[..., Any]) -> Tensor:
        return layer(x).square() + x


def episodes() -> fm.Episodes:
    generator = torch.Generator().manual_seed(1)

    def batch() -> fm.Batch:
        x = torch.randn(3, 6, 4, dtype=torch.float64, generator=generator)
        return fm.Batch({"x": x}, torch.randint(3, (3, 6), generator=generator))

    return fm.Episodes(batch(), batch())


def model_of(kind: Any, again: bool) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = kind(kind.Layer(), again)
    return model.double().train()


def maml_of(model: nn.Module, **options: Any) -> fm.MAML:
    given = {"lr": 0.3, "steps": 2, "loss": F.cross_entropy, "tasks_chunk": 3, **options}
    return fm.MAML(model.double().train(), **given)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", [Attribute, Hook, Object, AsGiven, Nothing])
def test_what_leaves_a_layer_has_its_gradient(kind: Any, path: str) -> None:
    batch = episodes()
    expected = hand_gradient(model_of(kind, again=False), batch, 2, 0.3, loss=F.cross_entropy)
    for method in ("unrolled", "checkpointed"):
        maml = maml_of(model_of(kind, again=True), gradient=METHODS[method], **PATHS[path])
        check(meta_gradient(maml, batch), expected, 1e-12)
        plan = maml.explain(batch)
        assert plan.batched
        assert ("executor: captured" in str(plan)) == (path != "eager")


@pytest.mark.parametrize("kind", [Attribute, Object])
def test_the_same_in_a_function_of_a_task_and_evaluated(kind: Any) -> None:
    found = []
    for again in (False, True):
        maml = maml_of(model_of(kind, again), executor="eager")

        @maml.per_task
        def task(learner: Any, support: fm.Batch, query: fm.Batch) -> Tensor:
            learner.adapt(F.cross_entropy(learner(**support.inputs), support.targets))
            return F.cross_entropy(learner(**query.inputs), query.targets)

        out = task(episodes())
        out.loss.backward()
        gradients = [p.grad for p in maml.module.parameters()]
        with torch.no_grad():
            found.append((gradients, maml(episodes()).loss))
    check(found[1][0], found[0][0], 1e-12)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-12, atol=0)


class Cache(Net):
    """What the first region leaves is used in the second."""

    class Layer(Layer):
        def forward(self, x: Tensor, first: bool) -> Any:
            if first:
                self.kept = self.inner(x).tanh()
            return super().forward(x) + self.kept

    def use(self, x: Tensor, layer: Callable[..., Any]) -> Tensor:
        found: Tensor = layer(layer(x, True), False)
        return found


class Overwritten(Net):
    Layer = type("Flat", (nn.ReLU,), {"__init__": lambda self: nn.ReLU.__init__(self, True)})

    def use(self, x: Tensor, layer: Callable[..., Any]) -> Tensor:
        found: Tensor = x + layer(x * 2)
        return found


class Flag(Net):
    class Layer(Layer):
        def __init__(self) -> None:
            super().__init__()
            self.settings: dict[str, Any] = {"scales": (1.0, 1.0)}

        def forward(self, x: Tensor) -> Any:
            return super().forward(x) * self.settings["scales"][1]

    def use(self, x: Tensor, layer: Callable[..., Any]) -> Tensor:
        self.layer.settings["scales"] = (1.0, 2.0)
        x = layer(x)
        self.layer.settings["scales"] = (1.0, 1.0)
        return layer(x)


class Scale(Net):
    """A constant of the batch, which the model gives to its layer beside the arguments."""

    class Layer(Layer):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) * self.scale

    def use(self, x: Tensor, layer: Callable[..., Any]) -> Tensor:
        self.layer.scale = x.detach().mean()
        x = layer(x)
        self.layer.scale = x.detach().square().mean()
        return layer(x)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Cache, r"Layer, uses a trainable tensor of shape \[6, 5\] that is neither"),
        (Overwritten, r"Flat, writes to an argument of shape \[6, 5\] in place.*inplace=False"),
        (Flag, r"its settings\['scales'\]\[1\] was 2\.0 and is 1\.0 by then.*as an argument"),
        (Scale, r"its scale is another tensor by then: give that to the layer as an argument"),
    ],
)
def test_what_a_layer_cannot_run_again_with_is_refused(kind: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        meta_gradient(maml_of(model_of(kind, again=True)), episodes())
    meta_gradient(maml_of(model_of(kind, again=False)), episodes())


class Renewed(Net):
    class Layer(Layer):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("factor", torch.ones(WIDTH))

        def forward(self, x: Tensor) -> Any:
            self.factor = self.factor * 2
            return super().forward(x) * self.factor


def test_a_layer_that_has_other_buffers_after_its_call_is_kept() -> None:
    found = [
        meta_gradient(maml_of(model_of(Renewed, again)), episodes()) for again in (False, True)
    ]
    check(found[1], found[0], 1e-12)


class Deep(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(*(m for _ in range(20) for m in (nn.Linear(WIDTH, WIDTH), nn.Tanh())))


class DeepAttribute(Deep):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.auxiliary = y.square().mean(-1, keepdim=True)
        return y


def test_what_is_kept_for_what_leaves_is_counted() -> None:
    """Of a layer of which nothing else leaves, the inputs alone."""
    kept = []
    for layer, again in ((Deep, True), (Deep, False), (DeepAttribute, True)):
        model = Attribute if layer is DeepAttribute else Net
        maml = maml_of(model(layer(), again), executor="eager")
        kept.append(maml.explain(episodes()).bytes_query)
    assert 2 * kept[0] < kept[1] <= kept[2]
