"""The same contract on a CUDA device: `make gpu` runs these."""

from __future__ import annotations

import pytest
import torch
from like_the_cpu import RULES_THERE, assert_like_the_cpu, paths
from problems import EXACT, OFFLOADED, PROBLEMS, Problem, meta_gradient, relative
from torch import nn
from torch.nn import functional as F

import fastmaml as fm

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("path", paths("cuda"), ids="-".join)
@pytest.mark.parametrize("method", [*EXACT, *OFFLOADED])
@pytest.mark.parametrize("rule", RULES_THERE)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_cuda_equals_the_cpu(
    problem: Problem, rule: str, method: str, path: tuple[str, str]
) -> None:
    assert_like_the_cpu(problem, rule, method, path, "cuda")


@pytest.mark.parametrize("path", paths("cuda"), ids="-".join)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_cuda_in_float32_is_near_the_cpu(problem: Problem, path: tuple[str, str]) -> None:
    assert_like_the_cpu(problem, "sgd", "unrolled", path, "cuda", torch.float32)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_have_second_derivatives(kind: type[nn.RNNBase]) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = kind(3, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(x)[0][:, -1]

    torch.manual_seed(0)
    model, x, y = Last(), torch.randn(2, 5, 6, 3), torch.randn(2, 5, 4)
    episodes = fm.Episodes(fm.Batch(x, y), fm.Batch(x, y))
    gradients = []
    for device in ("cpu", "cuda"):
        maml = fm.MAML(model, 0.3, steps=2, loss=F.mse_loss).double().to(device)
        gradients.append(meta_gradient(maml, episodes.to(device, torch.float64)).cpu())
    assert relative(gradients[1], gradients[0]) < 1e-9


def test_episodes_are_sampled_on_the_device_and_errors_name_devices() -> None:
    sampler = fm.episodes.digits(ways=5, shots=1, tasks=4, device="cuda")
    episodes = sampler.sample()
    assert all(x.device.type == "cuda" for x in episodes.support.tensors())
    model = fm.models.conv4(5, filters=8, image_size=8)
    with pytest.raises(ValueError, match="on cuda:0 and the model on cpu"):
        fm.MAML(model, 0.1, loss=F.cross_entropy)(episodes)
    maml = fm.MAML(model.cuda(), 0.1, loss=F.cross_entropy)
    scaler = torch.amp.GradScaler("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        out = maml(episodes)
    scaler.scale(out.loss).backward()
    assert all(p.grad.isfinite().all() for p in maml.parameters())


@pytest.mark.parametrize("method", OFFLOADED)
def test_offloaded_steps_take_no_memory_of_the_device(method: str) -> None:
    """The peak is that of two steps, and the meta-gradient that of steps kept on the device."""
    gradient = OFFLOADED[method]
    model = nn.Sequential(nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 512)).cuda()
    x = torch.randn(4, 8, 4, 512, device="cuda")
    episodes = fm.Episodes(fm.Batch(x[0], x[1]), fm.Batch(x[2], x[3]))
    copy = 8 * sum(p.nbytes for p in model.parameters())

    def run(gradient: fm.gradients.GradientMethod, steps: int) -> tuple[int, torch.Tensor, str]:
        maml = fm.MAML(model, 0.1, steps=steps, loss=F.mse_loss, gradient=gradient)
        plan = maml.explain(episodes)
        for _ in range(2):  # in the second run the allocator has what it keeps
            torch.cuda.reset_peak_memory_stats()
            found = meta_gradient(maml, episodes)
        return torch.cuda.max_memory_allocated(), found, str(plan)

    few, _, _ = run(gradient, 3)
    many, found, explained = run(gradient, 23)
    assert many - few < copy / 2
    assert "executor: eager" in explained
    assert f"offload: {gradient.steps_away(23)} inner steps wait on the CPU" in explained
    kept = type(gradient)(gradient.segments)  # type: ignore[attr-defined]
    assert relative(found, run(kept, 23)[1]) < 1e-4
