"""torch.utils.checkpoint in a model of one's own, inside the meta-step, against a plain loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from language_models import METHODS, PATHS, check, hand_gradient, meta_gradient
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fastmaml as fm
from fastmaml.measure.profile import LiveMemory

WIDTH, LAYERS = 16, 3


class Block(nn.Module):
    """One of a transformer, with dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(self.norm(x)).view(n, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0), is_causal=True)
        x = x + scale * self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.mlp(x)


Call = Callable[[nn.Module, Tensor], Tensor]


def plainly(block: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = block(x)
    return found


def as_module(block: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = checkpoint(block, x, use_reentrant=False)
    return found


def as_lambda(block: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = checkpoint(lambda y: block(y, scale=1.0) * 1, x, use_reentrant=False)
    return found


def nested(block: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = checkpoint(lambda y: as_module(block, y), x, use_reentrant=False)
    return found


def reentrant(block: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = checkpoint(block, x, use_reentrant=True)
    return found


class Net(nn.Module):
    def __init__(self, call: Call, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(dropout) for _ in range(LAYERS)])
        self.head = nn.Linear(WIDTH, 3)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.call(block, x)
        return self.head(x.mean(1))


def episodes() -> fm.Episodes:
    generator = torch.Generator().manual_seed(1)

    def batch() -> fm.Batch:
        x = torch.randn(3, 4, 12, WIDTH, dtype=torch.float64, generator=generator)
        return fm.Batch({"x": x}, torch.randint(3, (3, 4), generator=generator))

    return fm.Episodes(batch(), batch())


def maml_of(model: nn.Module, **options: Any) -> fm.MAML:
    given = {"lr": 0.1, "steps": 2, "loss": F.cross_entropy, "tasks_chunk": 3, **options}
    return fm.MAML(model.double().train(), **given)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["unrolled", "checkpointed", "segments"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("call", [as_module, as_lambda, nested])
def test_modules_run_again_exactly(call: Call, dropout: float, method: str, path: str) -> None:
    batch = episodes()
    plain = Net(plainly, dropout).double().train()
    expected = hand_gradient(plain, batch, 2, 0.1, loss=F.cross_entropy)
    maml = maml_of(Net(call, dropout), gradient=METHODS[method], **PATHS[path])
    check(meta_gradient(maml, batch), expected)
    plan = maml.explain(batch)
    assert plan.batched
    assert "torch.utils.checkpoint: modules inside of it run again" in str(plan)
    assert ("executor: captured" in str(plan)) == (path != "eager")
    assert not any("forward" in vars(m) for m in maml.module.modules())


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("path", ["eager", "native"])
def test_memory_is_lower_and_known(path: str) -> None:
    batch, peaks = episodes(), {}
    for call in (plainly, as_module):
        maml = maml_of(Net(call, 0.3), gradient=METHODS["unrolled"], **PATHS[path])
        plan = maml.explain(batch)
        with LiveMemory() as memory:
            meta_gradient(maml, batch)
        peaks[call] = memory.peak_bytes
        assert abs(plan.bytes_estimate / memory.peak_bytes - 1) < 0.15
    assert peaks[as_module] < 0.6 * peaks[plainly]


class Names(TorchDispatchMode):
    """The operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found.append(func.name())
        return func(*args, **(kwargs or {}))


def test_attention_runs_on_our_kernel_there() -> None:
    maml = maml_of(Net(as_module, 0.0), executor="eager", backend="cpp")
    maml.explain(episodes())
    with Names() as names:
        meta_gradient(maml, episodes())
    # Two inner steps and the query pass; each support pass runs once more for its gradient, and
    # twice for the gradient's; the query pass once more.
    assert names.found.count("fastmaml::task_attention") >= 3 * LAYERS + 4 * LAYERS
    assert not any("scaled_dot_product" in name for name in names.found)


def test_reentrant_regions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"use_reentrant=True.*give use_reentrant=False"):
        meta_gradient(maml_of(Net(reentrant, 0.0)), episodes())


def test_forward_mode_is_refused_by_pytorch() -> None:
    with pytest.raises(fm.MissingDerivative, match=r"Use gradient=Unrolled\(\).*tensor hooks"):
        meta_gradient(maml_of(Net(as_module, 0.0), gradient=METHODS["mixed-mode"]), episodes())


class Square(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g * ctx.saved_tensors[0]


def test_what_pytorch_would_run_again_by_itself_is_refused() -> None:
    def function(block: nn.Module, x: Tensor) -> Tensor:
        return block(checkpoint(lambda y: Square.apply(y * 1), x, use_reentrant=False))

    with pytest.raises(ValueError, match="around something that is differentiated without a call"):
        meta_gradient(maml_of(Net(function, 0.0), executor="eager"), episodes())


def test_a_layer_with_a_trainable_tensor_from_elsewhere_is_refused() -> None:
    class Borrows(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.others[0].weight.mean()

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Borrows(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
            self.a.others = [self.b]  # type: ignore[assignment]  # no child: a list hides it

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = checkpoint(self.a, x, use_reentrant=False)
            return self.b(found.mean(1))

    with pytest.raises(ValueError, match=r"Borrows, uses a trainable tensor of shape \[3, 16\]"):
        meta_gradient(maml_of(Both()), episodes())


class Normed(nn.Module):
    """A region around a method, with modules that write to buffers and overwrite activations."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.again = again
        self.first = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(inplace=True), nn.Linear(8, 8))
        self.norm = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.SiLU(inplace=True))
        self.head = nn.Linear(8, 3)

    def body(self, x: Tensor) -> Tensor:
        y = self.first(x).mul(2)
        y.add_(1.0)
        y = F.relu(y, inplace=True) + y
        return self.norm(y) * y

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(1)
        return self.head(
            checkpoint(self.body, x, use_reentrant=False) if self.again else self.body(x)
        )


@pytest.mark.parametrize("statistics", ["batch", "module"])
def test_buffers_and_activations_that_layers_write_to(statistics: str) -> None:
    found = []
    for again in (False, True):
        model = Normed(again)
        maml = maml_of(model, batch_norm=statistics)
        gradients = meta_gradient(maml, episodes())
        found.append((gradients, [b.clone() for b in model.buffers()]))
    check(found[1][0], found[0][0], 1e-12)
    for a, b in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
