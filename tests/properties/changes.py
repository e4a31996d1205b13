"""Property: whatever changes between calls, a call gives what a fresh eager `MAML` gives then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import fastmaml as fm
from fastmaml.rules import SGD, Momentum
from properties.modules import METHODS, RefusedError
from properties.readers import LOSSES, READERS

TOLERANCE = 1e-8


@dataclass(frozen=True)
class Call:
    """A verb, on episodes of this seed and number of tasks."""

    verb: str = "train"
    seed: int = 0
    tasks: int = 2


@dataclass(frozen=True)
class Change:
    """Change number `which` of a reader (-1: of the loss, -2: of the `MAML`), with a value."""

    reader: int
    which: int
    value: float


@dataclass(frozen=True)
class Case:
    """A model that reads things, a loss, how it runs, and what happens."""

    readers: tuple[str, ...]
    loss: str = "plain"
    method: str = "Unrolled()"
    executor: str | None = None
    backend: str | None = None
    steps: int = 1
    tokens: bool = False
    events: tuple[Call | Change, ...] = (Call(), Call())


class Model(nn.Module):
    """A linear layer or an embedding, the readers, a linear layer.

    The table is large enough to adapt by its rows, which is wrong once it is used as a whole.
    """

    def __init__(self, readers: list[nn.Module], tokens: bool) -> None:
        super().__init__()
        self.first = nn.Embedding(1200, 3) if tokens else nn.Linear(2, 3)
        self.readers, self.head = nn.ModuleList(readers), nn.Linear(3, 2)
        self.whole = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).tanh()
        y = y.mean(1) if y.ndim == 3 else y
        y = y + self.first.weight.square().mean() if self.whole else y
        for reads in self.readers:
            y = reads(y)
        return self.head(y)


OF_MAML = 12
"""How many changes there are of the `MAML` itself."""


def _of_maml(maml: fm.MAML) -> list[Callable[[float], object]]:
    """Changes of the `MAML` itself."""
    return [
        lambda v: setattr(maml, "rule", SGD(v / 4)),
        lambda v: setattr(maml, "rule", Momentum(v / 8)),
        lambda v: setattr(maml, "scope", "head" if v > 1 else "body"),
        lambda v: setattr(maml, "steps", int(v)), lambda v: maml.train(v > 1),
        lambda v: setattr(maml, "loss", lambda a, b: (a - b).pow(2).mean() * v),
        lambda v: setattr(maml, "tasks_chunk", int(2 * v)),
        lambda v: maml.module.requires_grad_(True),
        lambda v: maml.module.first.requires_grad_(v > 1),
        lambda v: setattr(maml.module, "whole", v > 1),
        lambda v: setattr(maml, "batch_norm", "module" if v > 1 else "batch"),
    ]  # fmt: skip


def check(case: Case) -> None:
    """Every call against a `MAML` made for it."""
    torch.manual_seed(0)
    made = [READERS[name]() for name in case.readers]
    loss, of_loss = LOSSES[case.loss]()
    model = Model([reads for reads, _ in made], case.tokens).double()
    maml = fm.MAML(
        model, lr=0.2, steps=case.steps, loss=loss, gradient=METHODS[case.method],
        executor=case.executor, backend=case.backend,
    )  # fmt: skip
    changes = [changes for _, changes in made]
    try:
        for i, event in enumerate(case.events):
            if isinstance(event, Call):
                _compare(f"call {i} ({event.verb})", maml, event, case.tokens)
            else:
                own = {-1: of_loss, -2: _of_maml(maml)}.get(event.reader)
                table = changes[event.reader % len(changes)] if own is None else own
                if table:
                    with torch.no_grad():
                        table[event.which % len(table)](event.value)
    finally:
        for reads, _ in made:
            getattr(reads, "cleanup", lambda: None)()


def _compare(what: str, maml: fm.MAML, call: Call, tokens: bool) -> None:
    episodes = _episodes(call, tokens)
    buffers = {n: b.clone() for n, b in maml.module.named_buffers()}
    found = _attempt(maml, call, episodes)
    after = {n: b.clone() for n, b in maml.module.named_buffers()}
    for name, b in maml.module.named_buffers():
        b.copy_(buffers[name])
    fresh = fm.MAML(
        maml.module, rule=maml.rule, steps=maml.steps, loss=maml.loss, gradient=maml.gradient,
        scope=maml.scope, executor="eager", backend="reference", batch_norm=maml.batch_norm,
    )  # fmt: skip
    expected = _attempt(fresh, call, episodes)
    if isinstance(expected, Exception):
        # No number is right where plain execution fails; an error is.
        assert isinstance(found, Exception), f"{what}: a number, where eager raises {expected!r}"
        return
    if isinstance(found, Exception):
        raise AssertionError(f"{what}: {found!r}, where eager gives numbers") from found
    expected |= {f"buffer {n}": b.clone() for n, b in maml.module.named_buffers()}
    found |= {f"buffer {n}": b for n, b in after.items()}
    assert found.keys() == expected.keys(), f"{what}: {found.keys() ^ expected.keys()}"
    for name, y in expected.items():
        x = found[name].double()
        assert x.shape == y.shape, f"{what}, {name}: {list(x.shape)}, not {list(y.shape)}"
        error, size = float((x - y.double()).norm()), float(y.double().norm())
        whole = max(size, 1e-3) if "gradient" not in name else max(size, _norm(expected))
        assert error <= TOLERANCE * whole, f"{what}, {name}: wrong by {error:.3g} of {size:.3g}"


def _norm(numbers: dict[str, Tensor]) -> float:
    return float(sum(g.square().sum() for n, g in numbers.items() if "gradient" in n) ** 0.5)


def _attempt(maml: fm.MAML, call: Call, episodes: fm.Episodes) -> Any:
    """The call's numbers by name, or its error."""
    torch.manual_seed(7)
    maml.zero_grad()
    try:
        if call.verb == "train":
            out = maml(episodes)
            out.loss.backward()
            named = maml.module.named_parameters()
            grads = {f"gradient {n}": _grad(p) for n, p in named if p.requires_grad}
            return {"loss": out.loss.detach(), "outputs": out.outputs.detach(), **grads}
        if call.verb == "evaluate":
            out = maml.evaluate(episodes)
            return {"losses": out.losses, "outputs": out.outputs}
        if call.verb == "per_task":
            return _per_task(maml, episodes)
        learner = maml.adapt_to(episodes[0].support.map(lambda x: x.squeeze(0)))
        return {n: p.detach() for n, p in learner.named_parameters()}
    except Exception as error:
        return error


def _per_task(maml: fm.MAML, episodes: fm.Episodes) -> dict[str, Tensor]:
    function = maml.__dict__.get("own_function")
    if function is None:

        @maml.per_task
        def function(learner: Any, support: fm.Batch, query: fm.Batch) -> Tensor:
            learner.adapt(maml.loss(learner(support.inputs), support.targets))
            return maml.loss(learner(query.inputs), query.targets)

        maml.__dict__["own_function"] = function  # as a user keeps one
    out = function(episodes)
    out.loss.backward()
    named = maml.module.named_parameters()
    grads = {f"gradient {n}": _grad(p) for n, p in named if p.requires_grad}
    return {"losses": out.losses.detach(), **grads}


def _grad(p: nn.Parameter) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad.clone()


def _episodes(call: Call, tokens: bool) -> fm.Episodes:
    generator = torch.Generator().manual_seed(call.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(call.tasks, *shape, dtype=torch.float64, generator=generator)

    def inputs(n: int) -> Tensor:
        return (normal(n, 2).abs() * 300).long() % 1200 if tokens else normal(n, 2)

    return fm.Episodes(fm.Batch(inputs(4), normal(4, 2)), fm.Batch(inputs(3), normal(3, 2)))


CALLS = st.builds(
    Call,
    verb=st.sampled_from(["train", "train", "train", "evaluate", "per_task", "adapt_to"]),
    seed=st.integers(0, 2),
    tasks=st.sampled_from([2, 2, 2, 1, 3]),
)
VALUES = st.sampled_from([0.5, 1.5, 2.0, 3.0])
CHANGES = st.builds(
    Change, reader=st.sampled_from([0, 0, 1, 2, -1, -2]), which=st.integers(0, 15), value=VALUES
)


@st.composite
def cases(draw: Callable[..., Any]) -> Case:
    """Any of them; they begin and end with a call."""
    events: list[Call | Change] = [draw(CALLS)]
    for _ in range(draw(st.integers(1, 4))):
        events += draw(st.lists(CHANGES, min_size=1, max_size=2))
        events.append(draw(st.sampled_from([events[0], events[0]]) | CALLS))
    return Case(
        readers=tuple(draw(st.lists(st.sampled_from(sorted(READERS)), min_size=1, max_size=3))),
        loss=draw(st.sampled_from(["plain", "plain", *sorted(LOSSES)])),
        method=draw(st.sampled_from(list(METHODS))),
        executor=draw(st.sampled_from([None, None, "eager"])),
        backend=draw(st.sampled_from([None, "reference"])),
        steps=draw(st.sampled_from([1, 1, 2])),
        tokens=draw(st.sampled_from([False, False, True])),
        events=tuple(events),
    )


__all__ = ["Call", "Case", "Change", "RefusedError", "cases", "check"]
