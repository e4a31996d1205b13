"""Carries that wait on the CPU, without a GPU: on the device "meta", and by copies on the CPU."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from outcomes import EAGER, recordings
from problems import OFFLOADED, PROBLEMS, RULES, meta_gradient
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastmaml as fm
from fastmaml.engine.step.forward import TaskForward
from fastmaml.engine.step.inner_loop import InnerLoop, Objective
from fastmaml.gradients import Checkpointed, GradientMethod, MixedMode, offload
from fastmaml.gradients.adjoint import AdjointScan
from fastmaml.gradients.base import Meta

MLP = next(problem for problem in PROBLEMS if problem.name == "mlp")


class MetaMemory(TorchDispatchMode):
    """The bytes that would be alive on the device "meta", which is copied from as if it held any.

    Attributes:
        peak: the most at any time.
        copied: bytes copied to the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.copied = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.copy_.default and args[1].device.type == "meta":
            self.copied += args[1].nbytes if args[0].device.type == "cpu" else 0
            return args[0]
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.device.type == "meta":
                self._count(x.untyped_storage())
        self.peak = max(self.peak, self.live)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            self.live += storage.nbytes()
            weakref.finalize(storage, self._forget, storage._cdata).atexit = False

    def _forget(self, key: int) -> None:
        self.live -= self.sizes.pop(key)


WIDTH, TASKS = 64, 2


def on_meta(method: GradientMethod, steps: int, rule: str) -> MetaMemory:
    """What a meta-gradient of a small network needs there."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)).to("meta")
    x = torch.empty(4, TASKS, 3, WIDTH, device="meta")
    loop = InnerLoop(
        TaskForward(model, F.mse_loss, {}, {}, False, False, batched=True),
        RULES[rule](),
        steps,
        fm.Episodes(fm.Batch(x[0], x[1]), fm.Batch(x[2], x[3])),
        torch.empty(TASKS, dtype=torch.int64, device="meta"),
        Objective(torch.ones(TASKS, device="meta"), [0.0] * steps + [1.0]),
    )
    with MetaMemory() as memory:
        method.meta_gradient(loop, Meta(dict(model.named_parameters()), {}, {}))
    return memory


COPY = TASKS * 4 * (2 * WIDTH * WIDTH + 2 * WIDTH)
"""Bytes of what adapts, for all tasks."""


@pytest.mark.parametrize("rule", ["sgd", "adam"])
@pytest.mark.parametrize("method", [Checkpointed(), MixedMode(), Checkpointed(3)], ids=str)
def test_a_devices_memory_does_not_grow_with_the_steps(method: AdjointScan, rule: str) -> None:
    def peak(own: AdjointScan, steps: int) -> int:
        return on_meta(own, steps, rule).peak

    there = type(method)(method.segments, offload=True)
    peaks = [peak(there, steps) for steps in (3, 5, 12)]
    assert peaks[0] == peaks[1] == peaks[2]
    assert peak(method, 12) - peak(method, 3) >= 3 * COPY
    assert there.held_steps(12) == 2  # what the estimates go by
    assert peaks[0] == peak(method, 2)


def test_what_waits_on_the_cpu() -> None:
    assert on_meta(Checkpointed(), 5, "sgd").copied == 0
    assert on_meta(Checkpointed(offload=True), 5, "sgd").copied == 4 * COPY  # θ stays: it is a view
    assert Checkpointed(offload=True).steps_away(5) == 4
    assert Checkpointed(3, offload=True).steps_away(9) == 4  # three begin, two more of one segment
    assert Checkpointed().steps_away(5) == 0


def test_only_what_takes_memory_of_a_device_goes_away() -> None:
    theta, here = torch.empty(3, device="meta"), torch.ones(2)
    tree = {"view": theta.expand(2, 3), "here": here, "count": 3, "empty": theta[:0]}
    assert all(a is b for a, b in zip(offload.away(tree).values(), tree.values(), strict=True))
    with MetaMemory():
        gone = offload.away([theta, (here, None)])
        assert not isinstance(gone[0], Tensor)
        assert gone[0].numbers.device.type == "cpu"
        found = offload.back(gone)
    assert found[0].device.type == "meta"
    assert found[0].shape == theta.shape
    assert found[1][0] is here


@pytest.mark.parametrize("method", OFFLOADED)
def test_copies_are_exact(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the CPU's memory were another device's."""
    own = OFFLOADED[method]
    assert isinstance(own, AdjointScan)
    kept = type(own)(own.segments)
    expected = meta_gradient(MLP.maml(RULES["adam"](), gradient=kept, **EAGER), MLP.episodes)
    made: list[Tensor] = []

    def takes_memory(x: Tensor) -> bool:
        made.append(x)
        return 0 not in x.stride()

    monkeypatch.setattr(offload, "_takes_memory", takes_memory)
    found = meta_gradient(MLP.maml(RULES["adam"](), gradient=own, **EAGER), MLP.episodes)
    assert made
    assert torch.equal(found, expected)


def test_on_the_cpu_it_changes_nothing_and_explain_says_so() -> None:
    maml = MLP.maml(RULES["sgd"](), gradient=Checkpointed(2, offload=True))
    plan = maml.explain(MLP.episodes)
    assert plan.gradient == Checkpointed(2, offload=True)
    text = str(plan)
    assert "gradient: Checkpointed(segments=2, offload=True), as asked" in text
    assert (
        "offload: nothing to do, as the model is on the CPU: it runs as Checkpointed(segments=2)"
        in text
    )
    meta_gradient(maml, MLP.episodes)
    assert recordings(maml) == 1
    other = MLP.maml(RULES["sgd"](), gradient=Checkpointed(2))
    assert other.explain(MLP.episodes).law == plan.law


def test_elsewhere_it_runs_eagerly_and_explain_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AdjointScan, "on", lambda self, device: self)
    gradient = Checkpointed(offload=True)
    text = str(MLP.maml(RULES["sgd"](), gradient=gradient).explain(MLP.episodes))
    why = "gradient=Checkpointed(segments=None, offload=True) copies what it keeps to the CPU"
    assert f"executor: eager, as this meta-step cannot be captured: {why}" in text
    assert "offload: 2 inner steps wait on the CPU, which takes 0.0 MiB of its memory" in text
    maml = MLP.maml(RULES["sgd"](), gradient=gradient, executor="captured")
    with pytest.raises(RuntimeError, match=r"cannot be captured.*Use executor='eager'"):
        maml(MLP.episodes)


def test_the_estimate_does_not_grow_with_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AdjointScan, "on", lambda self, device: self)

    def plan(gradient: GradientMethod) -> Any:
        return MLP.maml(RULES["adam"](), steps=6, gradient=gradient, **EAGER).explain(MLP.episodes)

    away, kept = plan(Checkpointed(offload=True)), plan(Checkpointed())
    assert away.law.per_step == 0 < kept.law.per_step
    steps = kept.law.per_step * MLP.episodes.tasks * 4  # of six, two are held
    assert abs(kept.bytes_estimate - away.bytes_estimate - steps) <= 2
