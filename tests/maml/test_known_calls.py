"""What was found out about one meta-step is not taken for another that differs."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import relative, tensor
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.maml import known_calls
from fastmaml.rules import SGD, MetaSGD


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 2)
    return nn.Sequential(*layers).double()


def episodes(tasks: int = 3, shots: int = 4) -> fm.Episodes:
    sets = (
        fm.Batch(tensor(tasks, shots, 3, seed=s), tensor(tasks, shots, 2, seed=s + 1))
        for s in (1, 3)
    )
    return fm.Episodes(*sets)


def make(model: nn.Module | None = None, **options: Any) -> fm.MAML:
    given: dict[str, Any] = {"rule": MetaSGD(0.1), "steps": 2, "loss": F.mse_loss, **options}
    return fm.MAML(network() if model is None else model, **given)


def gradients(maml: fm.MAML, data: fm.Episodes) -> dict[str, Tensor]:
    maml.zero_grad()
    torch.manual_seed(5)
    maml(data).loss.backward()
    return {n: p.grad for n, p in maml.named_parameters() if p.grad is not None}


def anew(maml: fm.MAML) -> fm.MAML:
    """The same as one that has seen nothing, and runs eagerly."""
    names = ("rule", "steps", "loss", "scope", "batch_norm")
    found = make(copy.deepcopy(maml.module), **{n: getattr(maml, n) for n in names})
    found.executor = "eager"
    for name in found.rates:
        with torch.no_grad():
            found.rates[name].copy_(maml.rates[name])
    return found


def same(maml: fm.MAML, data: fm.Episodes) -> None:
    found, expected = gradients(maml, data), gradients(anew(maml), data)
    assert found.keys() == expected.keys()
    joined = [torch.cat([x[name].flatten() for name in found]) for x in (found, expected)]
    assert relative(*joined) < 1e-9


def _set(maml: fm.MAML, **settings: Any) -> None:
    for name, value in settings.items():
        setattr(maml, name, value)


def _body(maml: fm.MAML) -> Any:
    return maml.module


def _other_data(maml: fm.MAML) -> None:
    _body(maml)[0].weight.data = tensor(6, 3, seed=9).t().contiguous().t()


def _other_rate(maml: fm.MAML) -> None:
    name = next(iter(maml.rates))
    maml.rates[name] = nn.Parameter(maml.rates[name].detach() * 3)


CHANGES: dict[str, Callable[[fm.MAML], object]] = {
    "frozen": lambda m: _body(m)[0].weight.requires_grad_(False),
    "another parameter": lambda m: setattr(
        _body(m)[4], "weight", nn.Parameter(tensor(2, 6, seed=8))
    ),
    "other memory": _other_data,
    "another layer": lambda m: _body(m).__setitem__(2, nn.Softplus()),
    "evaluation": lambda m: m.eval(),
    "of a layer": lambda m: _body(m)[3].eval(),
    "a rate": _other_rate,
    "steps": lambda m: _set(m, steps=1),
    "loss": lambda m: _set(m, loss=F.l1_loss),
    "scope": lambda m: _set(m, scope="head"),
    "rule": lambda m: _set(m, rule=SGD(0.3)),
    "running statistics": lambda m: _set(m, batch_norm="module"),
    "a buffer": lambda m: _body(m)[1].register_buffer("running_mean", tensor(6, seed=7)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_noticed(name: str) -> None:
    maml, data = make(), episodes()
    for _ in range(2):
        same(maml, data)
    CHANGES[name](maml)
    for _ in range(2):
        same(maml, data)


def test_a_scope_of_the_user_s_is_asked_every_time() -> None:
    wanted = {"0.weight"}
    maml, data = make(rule=SGD(0.1), scope=lambda name, p: name in wanted), episodes()
    same(maml, data)
    before = gradients(maml, data)
    wanted.add("4.weight")
    same(maml, data)
    name = "module.4.weight"
    assert relative(gradients(maml, data)[name], before[name]) > 1e-6


def test_nothing_is_found_out_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    program_of = known_calls.program_of

    def counted(*given: Any, **keywords: Any) -> Any:
        found.append(given)
        return program_of(*given, **keywords)

    monkeypatch.setattr(known_calls, "program_of", counted)
    maml = make()
    for _ in range(3):
        for shots in (4, 5):
            maml(episodes(shots=shots)).loss.backward()
            maml.evaluate(episodes(shots=shots))
    assert len(found) == 2


def test_copies_begin_empty_and_old_parameters_are_let_go() -> None:
    maml = make()
    for shots in (4, 5):
        maml(episodes(shots=shots))
    assert len(maml._known._kept) == 2
    for other in (copy.deepcopy(maml), pickle.loads(pickle.dumps(maml))):
        assert not other._known._kept
    old = weakref.ref(_body(maml)[0].weight)
    _body(maml)[0].weight = nn.Parameter(tensor(6, 3, seed=2))
    maml(episodes(shots=6))
    assert len(maml._known._kept) == 1
    gc.collect()
    assert old() is None or not any(
        old() is p for _, known in maml._known._kept.values() for p in known.meta.tensors()
    )


def test_what_does_not_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_calls, "MAX_KNOWN", 3)
    maml = make(executor="eager")
    for shots in range(2, 8):
        maml(episodes(shots=shots))
    assert len(maml._known._kept) == 3
