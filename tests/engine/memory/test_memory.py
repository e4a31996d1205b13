"""How peak memory grows with inner steps, in live bytes: exact, the same on every run."""

from __future__ import annotations

import gc
import sys
from typing import Any, NamedTuple

import pytest
import torch
from outcomes import EAGER, vectors
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.measure.profile import LiveMemory

WIDTH, LAYERS, EXAMPLES, TASKS = 48, 6, 96, 2


class Setting(NamedTuple):
    model: nn.Module
    episodes: fm.Episodes
    copies: int
    """Bytes of one copy of the adapted parameters for every task."""


@pytest.fixture
def deep_mlp() -> Setting:
    """The activations of one pass are about four copies of the parameters."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(LAYERS):
        layers += [nn.Linear(WIDTH, WIDTH), nn.Tanh()]
        nn.init.xavier_normal_(layers[-2].weight, gain=1.5)  # else curvature dies out
    model = nn.Sequential(*layers).double()
    x = torch.randn(4, TASKS, EXAMPLES, WIDTH).double()
    episodes = fm.Episodes(fm.Batch(x[0], x[1]), fm.Batch(x[2], x[3]))
    return Setting(model, episodes, TASKS * sum(p.nbytes for p in model.parameters()))


def peak(setting: Setting, gradient: fm.gradients.GradientMethod, steps: int) -> float:
    """The peak of one meta-step, in copies of the adapted parameters; leaves ``.grad``."""
    maml = fm.MAML(
        setting.model, 0.5, steps=steps, loss=F.mse_loss, gradient=gradient, tasks_chunk=TASKS
    )
    maml.zero_grad()
    maml.explain(setting.episodes)  # plans, so that only the step itself is measured
    with LiveMemory() as memory:
        maml(setting.episodes).loss.backward()
    return memory.peak_bytes / setting.copies


def growth(setting: Setting, gradient: fm.gradients.GradientMethod) -> float:
    """Copies of the adapted parameters that one more inner step adds."""
    return (peak(setting, gradient, 10) - peak(setting, gradient, 4)) / 6


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("gradient", [fm.gradients.Checkpointed(), fm.gradients.MixedMode()])
def test_a_step_more_costs_one_copy_of_the_adapted_parameters(
    deep_mlp: Setting, gradient: fm.gradients.GradientMethod
):
    assert growth(deep_mlp, gradient) <= 1.2


@pytest.mark.slow
def test_unrolled_keeps_every_steps_graph(deep_mlp: Setting):
    assert growth(deep_mlp, fm.gradients.Unrolled()) > 4


@pytest.mark.slow
@pytest.mark.parametrize("gradient", [fm.gradients.Checkpointed, fm.gradients.MixedMode])
def test_segments_keep_fewer_copies(
    deep_mlp: Setting, gradient: type[fm.gradients.Checkpointed | fm.gradients.MixedMode]
):
    # 16 steps: 16 copies kept, against 4 segments' first ones and one segment of 4.
    saved = peak(deep_mlp, gradient(), 16) - peak(deep_mlp, gradient(segments=4), 16)
    assert saved >= 7


@pytest.mark.slow
def test_what_saves_memory_gives_the_same_gradient(deep_mlp: Setting):
    def meta_gradient(gradient: fm.gradients.GradientMethod) -> torch.Tensor:
        peak(deep_mlp, gradient, 10)
        return torch.cat([p.grad.flatten() for p in deep_mlp.model.parameters()])

    exact = meta_gradient(fm.gradients.Unrolled())
    assert (meta_gradient(fm.gradients.FirstOrder()) - exact).norm() > 0.1 * exact.norm()
    for gradient in (fm.gradients.Checkpointed(), fm.gradients.MixedMode()):
        assert (meta_gradient(gradient) - exact).norm() <= 1e-9 * exact.norm()


def looks_at_nothing() -> None: ...


def looks_at_frames() -> None:
    """As `typing` does of who calls it; a frame holds all that led to it."""
    frame = sys._getframe()
    assert frame.f_back is not None


def holds_an_error() -> None:
    try:
        raise ValueError
    except ValueError as error:
        kept = error
    assert kept.__traceback__ is not None


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("how", [{}, EAGER], ids=["recorded", "eager"])
@pytest.mark.parametrize("looks", [looks_at_nothing, looks_at_frames, holds_an_error])
def test_no_activation_outlives_a_meta_step(how: dict[str, Any], looks: Any) -> None:
    """Operations that keep their own results are those that could keep themselves alive."""
    width = 773

    class Layers(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(x)
            looks()
            return y.softmax(-1).exp().sqrt()[..., :2]

    torch.manual_seed(0)
    model = Layers(nn.Linear(3, width), nn.Tanh(), nn.Sigmoid(), nn.ReLU(), nn.LayerNorm(width))
    maml = fm.MAML(model, lr=0.1, steps=2, loss=F.mse_loss, **how)
    episodes = vectors().to(torch.float32)
    for _ in range(3):
        maml(episodes).loss.backward()
    maml.zero_grad()
    gc.collect()
    of_model = {id(x) for x in (*model.parameters(), *model.buffers())}
    tensors = [x for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter)]
    left = [tuple(x.shape) for x in tensors if width in x.shape and id(x) not in of_model]
    assert not left
