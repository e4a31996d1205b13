"""Calls and FLOPs of a profile, against those counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fits import episodes, make
from outcomes import require
from problems import tensor
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fastmaml as fm
from fastmaml import ops
from fastmaml.gradients import Checkpointed, FirstOrder, MixedMode, Unrolled
from fastmaml.measure.profile.phases import INSIDE
from fastmaml.measure.profile.watch import Watch

EXECUTORS = ("eager", "captured")
TASKS, SUPPORT, QUERY, INPUTS, OUTPUTS = 3, 6, 4, 3, 2


def squared(y: Tensor, t: Tensor) -> Tensor:
    return (y - t).square().mean()


def linear(loss: Any = squared, **options: Any) -> fm.MAML:
    """One layer, no bias: every product of a meta-step can be written down."""
    torch.manual_seed(0)
    model = nn.Linear(INPUTS, OUTPUTS, bias=False).double()
    return fm.MAML(model, 0.3, loss=loss, **options)


def vectors(tasks: int = TASKS) -> fm.Episodes:
    sizes = ((SUPPORT, 1), (QUERY, 2))
    batches = (
        fm.Batch(tensor(tasks, n, INPUTS, seed=s), tensor(tasks, n, OUTPUTS, seed=s + 2))
        for n, s in sizes
    )
    return fm.Episodes(*batches)


def cells(report: fm.Report, field: str) -> dict[str, Any]:
    return {phase.name: getattr(phase, field) for phase in report.phases}


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_flops_are_those_counted_by_hand(executor: str, backend: str) -> None:
    require(backend)
    maml = linear(gradient=Unrolled(), executor=executor, backend=backend)
    flops = cells(fm.profile(maml, vectors(), repeats=1), "flops")
    support, query = (2 * TASKS * n * INPUTS * OUTPUTS for n in (SUPPORT, QUERY))
    assert flops["support forward"] == support  # x W
    assert flops["inner backward"] == support  # g x; no gradient of x is wanted
    assert flops["update"] == flops["rest"] == 0
    assert flops["query"] == query
    assert flops["meta-backward"] == query + 2 * support  # the query's gradient, and H·v


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("method", [FirstOrder(), Checkpointed(), MixedMode()])
def test_flops_of_an_mlp_by_gradient_method(method: Any, executor: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    maml = fm.MAML(model, 0.1, steps=2, gradient=method, executor=executor, loss=squared)
    x, y = tensor(5, 7, 3), tensor(5, 7, 4)
    data = fm.Episodes(fm.Batch(x, y), fm.Batch(x, y))
    flops = cells(fm.profile(maml, data, repeats=1), "flops")
    first, last = 2 * 5 * 7 * 3 * 8, 2 * 5 * 7 * 8 * 4
    forward, backward = first + last, first + 2 * last  # nothing wants the gradient of x
    assert flops["support forward"] == 2 * forward
    assert flops["inner backward"] == 2 * backward
    assert flops["query"] == forward
    if isinstance(method, FirstOrder):
        assert flops["meta-backward"] == backward
        assert flops["recomputation"] == "this gradient method runs no inner step again"
    elif isinstance(method, Checkpointed):
        again = 2 * (forward + backward)  # a recording keeps what is there anyway
        assert (flops["recomputation"] == again) or (executor == "captured")
        assert 0 < flops["recomputation"] <= again
    else:
        # Each H·v runs the loss once more, with the tangents of parameters and hidden units;
        # PyTorch multiplies those of the inputs too, which are zero and not in a recording.
        zeros = first if executor == "eager" else 0
        assert flops["recomputation"] == 2 * (forward + first + 2 * last + zeros)


def test_calls_are_those_counted_by_hand() -> None:
    """Of one task, recorded: views do not count, and nothing is left that nobody uses."""
    maml = linear(
        lambda y, t: (y - t).square().sum(),
        gradient=FirstOrder(),
        executor="captured",
        backend="reference",
    )
    calls = cells(fm.profile(maml, vectors(1), repeats=1), "calls")
    assert calls["support forward"] == 5  # product, difference, square, sum, sum over tasks
    assert calls["inner backward"] == 5  # one, y - t to the power of 1, times 2, times one, product
    assert calls["update"] == 2  # -lr g, sum
    assert calls["query"] == 4 + 3  # as above; times weights, sum over tasks, times step's weight
    handed_out = 2  # by `backward()`: one, and the gradient times it
    assert calls["meta-backward"] == 5 + 2 + handed_out  # as above, and back through the weights
    assert calls["sampling"] == "not measured: a fixed meta-batch was given"
    assert calls["optimizer"] == "not measured: no optimizer was given"


def test_captured_calls_are_those_of_the_recording() -> None:
    maml = make(executor="captured", tasks_chunk=2)
    report = fm.profile(maml, episodes(), repeats=1)
    calls = cells(report, "calls")
    recording = next(iter(maml._execute._kept.values()))  # type: ignore[union-attr]
    inside = sum(calls[name] for name in INSIDE if name not in ("recomputation", "meta-backward"))
    chunks = episodes().tasks // 2
    handed_out, after = 2, 1  # `backward()`, as above; the losses times the last step's weight
    assert inside + calls["meta-backward"] == chunks * (recording.operations - after) + handed_out
    assert f"captured, {recording.operations} operations" in report.setting["executor"]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_flops_of_convolutions(groups: int, transposed: bool) -> None:
    """Of any number of groups, as each group is a convolution of its own."""
    layer = nn.ConvTranspose2d if transposed else nn.Conv2d
    whole = layer(6, 12, 3, groups=groups, bias=False)
    part = layer(6 // groups, 12 // groups, 3, bias=False)

    def counted(model: nn.Module, channels: int) -> int:
        watch = Watch()
        x = torch.randn(2, channels, 8, 8, requires_grad=True)
        with watch.step():
            watch.switch("query")
            model(x).sum().backward()
        return watch.counts["query"].flops

    assert counted(whole, 6) == groups * counted(part, 6 // groups)
    x = torch.randn(2, 6, 8, 8, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(6, 12, 3, bias=False)(x).sum().backward()
    ungrouped = layer(6, 12, 3, bias=False)
    assert counted(ungrouped, 6) == counter.get_total_flops()


@pytest.mark.parametrize("order", [0, 1, 2])
def test_flops_of_the_native_ops_are_the_definitions(order: int) -> None:
    require("cpp")
    torch.manual_seed(0)

    def counted(backend: str, op: Any, *shapes: tuple[int, ...]) -> int:
        x = [torch.randn(s, dtype=torch.float64).requires_grad_() for s in shapes]
        watch = Watch()
        with watch.step():
            watch.switch("query")
            y = op(*x, backend=backend)
            if order:
                y = torch.autograd.grad(y.square().sum(), x, create_graph=order == 2)
            if order == 2:
                torch.autograd.grad(sum(g.square().sum() for g in y), x)
        assert not watch.counts["query"].unknown
        return watch.counts["query"].flops

    linear = (ops.task_linear, (2, 5, 3), (2, 4, 3), (2, 4))
    conv = (ops.task_conv2d, (2, 5, 3, 6, 6), (2, 4, 3, 3, 3), (2, 4))
    for case in (linear, conv):
        assert counted("cpp", *case) == counted("reference", *case) > 0
    if order < 2:  # PyTorch's second derivative of the definition shares fewer products
        attention = (ops.task_attention, *[(2, 3, 2, 5, 4)] * 3)
        assert counted("cpp", *attention) == counted("reference", *attention) > 0


def test_what_has_no_formula_says_so() -> None:
    def loss(y: Tensor, t: Tensor) -> Tensor:
        return torch.fft.rfft(y - t).abs().square().mean()

    maml = linear(loss, executor="eager", gradient=FirstOrder())
    report = fm.profile(maml, vectors(), repeats=1)
    assert "no formula for aten::_fft_r2c" in report.phase("query").flops  # type: ignore[operator]
    assert report.phase("query").of_peak == report.phase("query").flops
    assert isinstance(report.phase("update").flops, int)
    assert any("_fft_r2c" in note for note in report.notes)
