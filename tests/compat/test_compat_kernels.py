"""Learners on the kernels, beside the same loop on PyTorch's own operations."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from kernel_models import MODELS, WAYS, block, head, made
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import fastmaml as fm
from fastmaml import ops
from fastmaml.compat import higher
from fastmaml.compat import learn2learn as l2l
from fastmaml.engine.routing import one_task as calls
from fastmaml.ops import one_task

pytestmark = pytest.mark.skipif(
    ops.default_backend("cpu") == "reference", reason="the native module is not built"
)
LR = 0.3


@pytest.fixture(autouse=True)
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls are large enough."""
    monkeypatch.setattr(calls, "LEAST", dict.fromkeys(calls.LEAST, 0))


def episode(seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    x, query = torch.randn(2, 6, 2, 6, 6).double()
    return x, torch.arange(6) % WAYS, query, torch.arange(6) % WAYS


def with_clones(model: nn.Module, first_order: bool = False) -> list[Tensor]:
    """The outputs of two inner steps and of the query, the gradients and buffers."""
    maml = l2l.algorithms.MAML(model, LR, first_order, allow_nograd=True)
    learner, seen = maml.clone(), []
    x, y, query, labels = episode()
    for _ in range(2):
        seen.append(learner(x))
        learner.adapt(F.cross_entropy(seen[-1], y))
    seen.append(learner(query))
    F.cross_entropy(seen[-1], labels).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [*(s.detach() for s in seen), *gradients, *model.buffers()]


def by_higher(model: nn.Module) -> list[Tensor]:
    learned = [p for p in model.parameters() if p.requires_grad]
    inner = torch.optim.SGD(learned, LR)
    x, y, query, labels = episode()
    with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (fmodel, diffopt):
        for _ in range(2):
            diffopt.step(F.cross_entropy(fmodel(x), y))
        F.cross_entropy(fmodel(query), labels).backward()
    return [p.grad for p in learned if p.grad is not None]


def graph(y: Tensor) -> set[Any]:
    """The nodes of a result's graph."""
    found, waiting = set[Any](), [y.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [n for n, _ in node.next_functions]
    return found


def native_nodes(y: Tensor) -> set[str]:
    """The kernels' nodes among them."""
    names = {type(node).__name__ for node in graph(y)}
    return names & {"Conv2dBackward", "NormBackward", "ActBackward", "AttentionBackward"}


@pytest.mark.parametrize("loop", ["second order", "first order", "higher"])
@pytest.mark.parametrize("name", MODELS)
def test_a_loop_on_the_kernels_is_the_loop_on_pytorch(
    name: str, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: dict[str, Callable[[nn.Module], list[Tensor]]] = {
        "second order": with_clones,
        "first order": lambda model: with_clones(model, first_order=True),
        "higher": by_higher,
    }
    found = run[loop](made(name))
    monkeypatch.setenv("FASTMAML_BACKEND", "reference")
    expected = run[loop](made(name))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        assert a.stride() == b.stride()


def test_convolutions_that_are_not_normalised_stay_with_pytorch() -> None:
    """What the kernel's layout costs alone is more than it saves."""
    plain = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
    y = l2l.algorithms.MAML(plain.double(), LR).clone()(episode()[0])
    nodes = [type(n).__name__ for n in graph(y)]
    assert nodes.count("Conv2dBackward") == nodes.count("ConvolutionBackward0") == 1


AS_FUNCTIONS = ("functions", "alone", "behind", "residual")
"""Whose results are seen one by one."""

OTHERS = ("frozen", "evaluating", "backwards", "inherits", "its own forward", "hooked")
OTHERS += ("a row with its own forward",)


@pytest.mark.parametrize("name", [n for n in MODELS if n not in AS_FUNCTIONS + OTHERS])
def test_the_kernels_are_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = l2l.algorithms.MAML(made(name), LR).clone()
    x = episode()[0]
    assert native_nodes(learner(x))
    monkeypatch.setenv("FASTMAML_BACKEND", "reference")
    assert not native_nodes(learner(x))


def test_layouts_are_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of inputs and weights of any layout."""
    model = made("pooled")[0]
    found = []
    for backend in ("", "reference"):
        monkeypatch.setenv("FASTMAML_BACKEND", backend)
        for last in (False, True):
            layout = torch.channels_last if last else torch.contiguous_format
            learner = l2l.algorithms.MAML(model.to(memory_format=layout), LR).clone()
            for x in (episode()[0], episode()[0].to(memory_format=torch.channels_last)):
                found.append(learner(x))
    for a, b in zip(found[:4], found[4:], strict=True):
        torch.testing.assert_close(a, b)
        assert a.stride() == b.stride()


@pytest.mark.parametrize("name", AS_FUNCTIONS)
def test_results_that_are_seen_are_pytorchs(name: str) -> None:
    """Hooks, `retain_grad` and derivatives by them are as ever."""
    learner = l2l.algorithms.MAML(made(name), LR).clone()
    assert not native_nodes(learner(episode()[0]))


def test_autocast_inside_of_a_forward_is_obeyed() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row = block(2, nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu"):
                return self.row(x)

    y = l2l.algorithms.MAML(Cast(), LR).clone()(episode()[0].float())
    assert y.dtype == torch.bfloat16
    assert not native_nodes(y)


def test_gradients_are_dense() -> None:
    """A user flattens them by view."""
    learner = l2l.algorithms.MAML(made("pooled"), LR).clone()
    x = episode()[0].requires_grad_()
    loss = learner(x).square().sum()
    for g in torch.autograd.grad(loss, [x, *learner.parameters()], create_graph=True):
        assert g.is_contiguous()


@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4, 0.0])
def test_running_variances_keep_their_digits(spread: float) -> None:
    model = nn.Sequential(nn.BatchNorm2d(6, momentum=1.0, eps=1e-3), nn.ReLU())
    x = spread * torch.randn(4, 6, 5, 5) + 0.1
    l2l.algorithms.MAML(model, LR).clone()(x)
    expected = x.double().var((0, 2, 3))
    torch.testing.assert_close(model[0].running_var.double(), expected, rtol=1e-5, atol=1e-14)


def test_a_clone_in_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as PyTorch's own modules go: running statistics aside."""
    model = nn.Sequential(block(2, nn.ReLU(), track_running_stats=False), head(216)).double()
    learner = l2l.algorithms.MAML(model, LR).clone()
    inputs = [torch.randn(3 + i, 2, 6, 6).double() for i in range(8)]
    expected = [learner(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            for y, z in zip(pool.map(learner, inputs), expected, strict=True):
                torch.testing.assert_close(y, z)
    assert all("forward" not in vars(m) for m in learner.module.modules())


def test_a_block_is_two_calls() -> None:
    """Nothing is normalised three times where nobody sees what is between."""
    learner = l2l.algorithms.MAML(made("pooled"), LR).clone()
    counted: list[str] = []
    run = one_task._of_one

    def counting(raw: Any, *arguments: Any) -> Any:
        counted.append(raw.__name__ if hasattr(raw, "__name__") else str(raw))
        return run(raw, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_task, "_of_one", counting)
        learner(episode()[0])
    assert len(counted) == 4, counted


@pytest.mark.parametrize(("backend", "native"), [(None, True), ("cpp", True), ("reference", False)])
def test_a_clone_obeys_its_backend(backend: Any, native: bool) -> None:
    learner = fm.MAML(made("pooled"), LR, backend=backend).clone()
    assert bool(native_nodes(learner(episode()[0]))) is native


def test_verify_holds_the_kernels_against_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loop of one task after another is on PyTorch's operations."""
    maml = fm.MAML(made("without statistics"), LR)

    @maml.per_task
    def run(learner: Any, x: Tensor, y: Tensor, query: Tensor, labels: Tensor) -> Tensor:
        learner.adapt(F.cross_entropy(learner(x), y))
        return F.cross_entropy(learner(query), labels)

    monkeypatch.setattr(one_task, "_of_one", None)  # what would be called
    assert fm.verify(run, *(x[None] for x in episode())).agrees


def test_small_calls_stay_with_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    learner = l2l.algorithms.MAML(made("pooled"), LR).clone()
    assert not native_nodes(learner(episode()[0][:2]))


def test_a_batch_on_pytorch_and_one_on_the_kernels() -> None:
    """PyTorch's BatchNorm saves the running statistics that a later batch writes to."""
    for size in (6, 60):
        calls.LEAST["rows"] = 1500  # which is undone with the rest
        model = made("pooled")
        learner = l2l.algorithms.MAML(model, LR).clone()
        x, y, _, _ = episode()
        learner.adapt(F.cross_entropy(learner(x), y))
        query = torch.randn(size, 2, 6, 6).double()
        F.cross_entropy(learner(query), torch.arange(size) % WAYS).backward()


def test_who_watches_functions_sees_them_all() -> None:
    class Watching(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen: list[Any] = []
    learner = l2l.algorithms.MAML(made("pooled"), LR).clone()
    with Watching():
        y = learner(episode()[0])
    assert {F.conv2d, F.batch_norm, F.relu} <= set(seen)
    assert not native_nodes(y)


def test_other_tensors_stay_with_pytorch() -> None:
    model = made("pooled").bfloat16()
    x, y, _, _ = episode()
    learner = l2l.algorithms.MAML(model, LR).clone()
    learner.adapt(F.cross_entropy(learner(x.bfloat16()), y))
    assert not native_nodes(learner(x.bfloat16()))
    learner = l2l.algorithms.MAML(made("pooled").float(), LR).clone()
    with torch.autocast("cpu"):
        assert not native_nodes(learner(x.float()))


def test_an_error_is_pytorchs() -> None:
    learner = l2l.algorithms.MAML(made("pooled"), LR).clone()
    with pytest.raises(RuntimeError, match="channels"):
        learner(torch.randn(2, 3, 6, 6).double())
    with pytest.raises(RuntimeError, match="too small"):
        learner(torch.randn(2, 2, 1, 1).double())


def test_other_arguments_are_pytorchs_to_refuse() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.conv.weight, speed=1)

    with pytest.raises(TypeError, match="conv2d"):
        l2l.algorithms.MAML(Wrong().double(), LR).clone()(episode()[0])


def test_a_learner_under_vmap_is_one_alone() -> None:
    """Transforms of a user's own go through PyTorch."""
    learner = l2l.algorithms.MAML(made("pooled").eval(), LR).clone()
    x = torch.randn(3, 6, 2, 6, 6).double()
    torch.testing.assert_close(torch.vmap(learner)(x), torch.stack([learner(y) for y in x]))


def curvature(model: nn.Module) -> Tensor:
    """The square of the meta-gradient."""
    learner = l2l.algorithms.MAML(model, LR).clone()
    x, y, query, labels = episode()
    learner.adapt(F.cross_entropy(learner(x), y))
    loss = F.cross_entropy(learner(query), labels)
    first = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    return torch.stack([g.square().sum() for g in first]).sum()


@pytest.mark.parametrize("name", ["pooled", "in place", "attends"])
def test_third_derivatives(name: str) -> None:
    """Against central differences: PyTorch's own, through BatchNorm, are off (seen in 2.13)."""
    model, step = made(name), 1e-6
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(curvature(model), parameters)
    torch.manual_seed(5)
    along = [torch.randn_like(p) for p in parameters]
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, along, strict=True))

    def at(t: float) -> float:
        moved = made(name)
        with torch.no_grad():
            for p, d in zip(moved.parameters(), along, strict=True):
                p.add_(d, alpha=t)
        return float(curvature(moved).detach())

    assert slope == pytest.approx((at(step) - at(-step)) / (2 * step), rel=1e-6)


def test_a_clone_is_copied_and_pickled_as_what_it_is() -> None:
    model = made("pooled")
    clone = l2l.clone_module(model)
    l2l.detach_module(clone, keep_requires_grad=True)
    x = episode()[0]
    for copied in (copy.deepcopy(clone), pickle.loads(pickle.dumps(clone))):
        assert [type(m) for m in copied.modules()] == [type(m) for m in model.modules()]
        torch.testing.assert_close(copied(x), model(x))
    assert isinstance(clone, nn.Sequential)
    assert str(clone) == str(model)
    assert len(clone[:1]) == 1


def test_a_graph_can_be_used_again() -> None:
    model = made("pooled")
    learner = l2l.algorithms.MAML(model, LR).clone()
    x, y, _, _ = episode()
    loss = F.cross_entropy(learner(x), y)
    leaves = list(model.parameters())
    once = torch.autograd.grad(loss, leaves, retain_graph=True)
    again = torch.autograd.grad(loss, leaves)
    assert all(map(torch.equal, once, again))
    copy.deepcopy(model)  # nothing of a pass stays with it
    assert all("forward" not in vars(m) for m in model.modules())
