"""Settings of the process and functions of libraries that a user exchanges: a change counts."""

from __future__ import annotations

import decimal
import logging
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from hand_loop import hand_loop
from outcomes import outcome, vectors
from settings import Kind, a_change_counts
from torch import Tensor, get_float32_matmul_precision, nn
from torch.backends import cudnn
from torch.nn import functional as F
from torch.nn.modules import module as every_module

import fastmaml as fm

set_benchmark = torch._C._set_cudnn_benchmark  # which some of PyTorch's own tools let nobody do
LOG = logging.getLogger("fastmaml.tests.settings")


def matmul_precision() -> Kind:
    return (
        lambda: {"highest": 1.0, "high": 3.0}[torch.get_float32_matmul_precision()],
        partial(torch.set_float32_matmul_precision, "high"),
    )


def matmul_precision_by_name() -> Kind:
    return (
        lambda: {"highest": 1.0, "high": 3.0}[get_float32_matmul_precision()],
        partial(torch.set_float32_matmul_precision, "high"),
    )


def cudnn_flag() -> Kind:
    return lambda: 1.0 + torch.backends.cudnn.benchmark, partial(set_benchmark, True)


def cudnn_flag_by_name() -> Kind:
    return lambda: 1.0 + cudnn.benchmark, partial(set_benchmark, True)


def tf32() -> Kind:
    where = torch.backends.cuda.matmul
    return (
        lambda: 1.0 + torch.backends.cuda.matmul.allow_tf32,
        lambda: setattr(where, "allow_tf32", True),
    )


def attention_flag() -> Kind:
    return (
        lambda: 2.0 - torch.backends.cuda.flash_sdp_enabled(),
        partial(torch.backends.cuda.enable_flash_sdp, False),
    )


def recursion_limit() -> Kind:
    now = sys.getrecursionlimit()
    return lambda: sys.getrecursionlimit() / now, partial(sys.setrecursionlimit, 2 * now)


def decimal_precision() -> Kind:
    return lambda: decimal.getcontext().prec / 28, partial(setattr, decimal.getcontext(), "prec", 9)


def print_options() -> Kind:
    numpy = pytest.importorskip("numpy")
    return (
        lambda: numpy.get_printoptions()["precision"] / 8,
        partial(numpy.set_printoptions, precision=3),
    )


def level_of_a_logger() -> Kind:
    return lambda: LOG.level / 30, partial(LOG.setLevel, 20)


def whether_a_logger_listens() -> Kind:
    name = LOG.name
    return (
        lambda: 1.0 + logging.getLogger(name).isEnabledFor(20),
        partial(LOG.setLevel, 10),
    )


def level_of_the_root() -> Kind:
    LOG.setLevel(logging.NOTSET)
    name, above = LOG.name, logging.getLogger("fastmaml")
    return (
        lambda: logging.getLogger(name).getEffectiveLevel() / 30,
        partial(above.setLevel, 20),
    )


KINDS = [matmul_precision, matmul_precision_by_name, cudnn_flag, cudnn_flag_by_name, tf32]
KINDS += [attention_flag, recursion_limit, decimal_precision, print_options, level_of_a_logger]
KINDS += [whether_a_logger_listens, level_of_the_root]


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    above, limit = logging.getLogger("fastmaml"), sys.getrecursionlimit()
    levels = above.level, LOG.level
    LOG.setLevel(30)
    with decimal.localcontext():
        yield
    above.setLevel(levels[0])
    LOG.setLevel(levels[1])
    sys.setrecursionlimit(limit)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    set_benchmark(False)
    torch.backends.cuda.enable_flash_sdp(True)
    if numpy := sys.modules.get("numpy"):
        numpy.set_printoptions(precision=8)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("where", ["loss", "model"])
def test_a_change_counts(kind: Callable[[], Kind], where: str) -> None:
    a_change_counts(kind, where)


def larger_after(module: nn.Module, x: Any, y: Any) -> Any:
    return 1.1 * y if isinstance(module, nn.Linear) else None


def larger_before(module: nn.Module, x: Any) -> Any:
    return (1.1 * x[0],) if isinstance(module, nn.Linear) else None


GLOBAL_HOOKS: dict[str, Callable[[], Any]] = {
    "forward": lambda: every_module.register_module_forward_hook(larger_after),
    "before": lambda: every_module.register_module_forward_pre_hook(larger_before),
}


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("kind", GLOBAL_HOOKS)
@pytest.mark.parametrize("executor", [None, "eager"])
def test_hooks_of_every_module(kind: str, executor: str | None) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    options: dict[str, Any] = {"lr": 0.3, "steps": 2, "loss": F.mse_loss, "spot_checks": False}
    maml = fm.MAML(net, executor=executor, **options)

    def both() -> tuple[Tensor, Tensor]:
        return outcome(maml, vectors()).gradient, maml.evaluate(vectors()).losses

    def expected() -> Tensor:
        found = hand_loop(net, F.mse_loss, vectors(), 0.3, 2)[1]
        return torch.cat([g.flatten() for g in found.values()])

    without = [both() for _ in range(3)][-1]
    hook = GLOBAL_HOOKS[kind]()
    try:
        for _ in range(2):
            gradient, losses = both()
            torch.testing.assert_close(gradient, expected(), rtol=1e-9, atol=1e-12)
            assert not torch.allclose(losses, without[1])
    finally:
        hook.remove()
    for x, y in zip(both(), without, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=0)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("executor", [None, "eager"])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_function_of_torch_that_is_exchanged(
    executor: str | None, backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No code of the user's has its name: the layer is PyTorch's."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    options: dict[str, Any] = {"executor": executor, "backend": backend, "spot_checks": False}
    maml = fm.MAML(net, lr=0.3, steps=2, loss=F.mse_loss, **options)
    before = [outcome(maml, vectors()).gradient for _ in range(3)][-1]
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: 2 * torch.relu(x))
    expected = hand_loop(net, F.mse_loss, vectors(), 0.3, 2)[1]
    whole = torch.cat([g.flatten() for g in expected.values()])
    assert not torch.allclose(before, whole)
    torch.testing.assert_close(outcome(maml, vectors()).gradient, whole, rtol=1e-9, atol=1e-12)


def test_one_that_calls_the_original_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch would run it once more in each mode that is active."""
    relu: Callable[..., Tensor] = F.relu
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: 2 * relu(x))
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with pytest.raises(ValueError, match=r"torch.nn.functional.relu was replaced"):
        fm.MAML(net, lr=0.3, loss=F.mse_loss)(vectors())
