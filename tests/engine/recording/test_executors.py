"""Choosing how a meta-step runs, and Inductor's way of running it."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from outcomes import EAGER, outcome, require, vectors
from torch import nn
from torch.nn import functional as F

import fastmaml as fm


def linear(**options: Any) -> fm.MAML:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return fm.MAML(**{"model": model, "lr": 0.3, "steps": 2, "loss": F.mse_loss, **options})


@pytest.mark.parametrize("small", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_compiled_equals_eager_within_rounding(small: bool) -> None:
    """Inductor's C++ compiler takes a second or more for each of its kernels."""
    if not any(shutil.which(name) for name in ("g++", "clang++")):
        pytest.skip("Inductor needs a C++ compiler, and there is neither g++ nor clang++")
    torch.manual_seed(0)
    one = nn.Linear(3, 2).double()
    how = {"steps": 1, "model": one} if small else {}
    compiled, eager = linear(executor="compiled", **how), linear(**EAGER, **how)
    for seed in (1, 4):
        found = outcome(compiled, vectors(seed=seed))
        found.check_close(outcome(eager, vectors(seed=seed)), 1e-11)


@pytest.mark.parametrize("backend", ["cpp", "cuda", "triton"])
def test_compiled_with_kernels_is_refused(backend: str) -> None:
    with pytest.raises(ValueError, match=r"Inductor makes its own kernels.*executor='captured'"):
        linear(executor="compiled", backend=backend)(vectors())


def test_compiled_refuses_what_cannot_be_captured() -> None:
    class Branching(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            return y if y.sum() > 0 else -y

    maml = fm.MAML(Branching(3, 2).double(), 0.3, loss=F.mse_loss, executor="compiled")
    with pytest.raises(RuntimeError, match=r"cannot be captured.*reads a value back"):
        maml(vectors())


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"executor='fast'.*captured"):
        linear(executor="fast")
    with pytest.raises(ValueError, match=r"backend='mkl'.*cpp"):
        linear(backend="mkl")


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("executor", [None, "captured", "eager"])
def test_a_gpus_backend_on_a_model_on_the_cpu(backend: str, executor: str | None) -> None:
    """Either the backend is not there, or the model is in the wrong place; with the way out."""
    with pytest.raises(ValueError, match=rf"backend='{backend}'.*(no CUDA|not built|move)"):
        linear(backend=backend, executor=executor)(vectors())


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("executor", [None, "captured", "eager"])
def test_the_environment_chooses(executor: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    require("cpp")
    monkeypatch.setenv("FASTMAML_BACKEND", "reference")
    assert linear(executor=executor).explain(vectors()).backend == "reference"
    monkeypatch.delenv("FASTMAML_BACKEND")
    expected = "reference" if executor == "eager" else "cpp"
    assert linear(executor=executor).explain(vectors()).backend == expected
    assert linear(executor=executor, backend="cpp").explain(vectors()).backend == "cpp"


def test_an_unknown_backend_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMAML_BACKEND", "mkl")
    with pytest.raises(ValueError, match=r"FASTMAML_BACKEND='mkl' cannot be used"):
        linear()(vectors())
