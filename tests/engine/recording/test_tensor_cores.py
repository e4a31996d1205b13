"""One rule for TF32, on every backend."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from problems import relative
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.engine.base.tensor_cores import ONE_RULE, allows_tf32
from fastmaml.engine.guards.plans import environment


@pytest.fixture
def switches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Any]]]:
    """Sets PyTorch's switches, and tells them; a CPU build has them, too."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter

    def switched(**to: str) -> dict[str, Any]:
        for kind, value in to.items():
            put("cuda", kind, value)
        found = {kind: get("cuda", kind) for kind in ("matmul", "conv", "rnn")}
        try:
            return found | {"older": torch._C._get_cudnn_allow_tf32()}
        except RuntimeError:
            return found | {"older": "set apart"}

    yield switched
    torch._C._set_cudnn_allow_tf32(True)
    switched(matmul="none")


@pytest.mark.parametrize(
    ("asked", "tf32"),
    [
        ({}, False),  # PyTorch's defaults: TF32 for convolutions, and none for products
        ({"matmul": "tf32"}, True),
        ({"matmul": "tf32", "conv": "ieee"}, False),
        ({"conv": "ieee"}, False),
        ({"rnn": "ieee"}, False),
    ],
    ids=str,
)
def test_tf32_is_used_where_both_switches_allow_it(
    switches: Callable[..., dict[str, Any]], asked: dict[str, str], tf32: bool
) -> None:
    before = switches(**asked)
    with ONE_RULE:
        assert allows_tf32() == tf32
        inside = switches()
        with ONE_RULE:
            assert switches() == inside
        assert switches() == inside
        assert {inside["matmul"] == "tf32", inside["conv"] == "tf32"} == {tf32}
        if before["older"] != "set apart":  # models read it, by torch.backends.cudnn.flags
            assert inside["older"] == tf32
    assert switches() == before


def test_whatever_stands_above_both_switches(switches: Callable[..., dict[str, Any]]) -> None:
    """Both inherit from one for CUDA, and that from one for all."""
    put = torch._C._set_fp32_precision_setter
    try:
        for generic, all_of_cuda, matmul, conv, older in itertools.product(
            *4 * [("none", "ieee", "tf32")], (True, False)
        ):
            torch._C._set_cudnn_allow_tf32(older)
            put("generic", "all", generic)
            put("cuda", "all", all_of_cuda)
            before = switches(matmul=matmul, conv=conv)
            both = before["matmul"] == before["conv"] == "tf32"
            with ONE_RULE:
                inside = switches()
            assert {inside["matmul"] == "tf32", inside["conv"] == "tf32"} == {both}
            if before["older"] != "set apart" and inside["rnn"] != "tf32":  # which has no rule
                assert inside["older"] != "set apart"
            assert switches() == before
    finally:
        put("generic", "all", "none")
        put("cuda", "all", "none")


def test_a_meta_step_keeps_the_rule(switches: Callable[..., dict[str, Any]]) -> None:
    before = switches()
    assert before["conv"] == "tf32"
    seen = []

    class Looking(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(switches()["conv"])
            return super().forward(x)

    x = torch.randn(2, 3, 4)
    episodes = fm.Episodes(fm.Batch(x, x[..., :2]), fm.Batch(x, x[..., :2]))
    maml = fm.MAML(Looking(4, 2), 0.1, loss=F.mse_loss, executor="eager")
    out = maml(episodes)
    assert "tf32" not in seen
    assert switches() == before
    out.losses.square().sum().backward()  # runs again, outside of the call
    maml.adapt_to(fm.Batch(x[0], x[0, :, :2]))
    assert "tf32" not in seen
    assert switches() == before


@pytest.mark.parametrize("backend", ["reference", "cuda", "triton"])
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_float32_is_float32_on_every_backend(backend: str) -> None:
    """By default cuDNN's convolutions are TF32; a meta-step's are not."""
    torch.manual_seed(0)
    model = fm.models.conv4(5, filters=32, image_size=16)
    x, y = torch.randn(2, 2, 10, 1, 16, 16), torch.arange(10).expand(2, 10) % 5
    episodes = fm.Episodes(fm.Batch(x[0], y), fm.Batch(x[1], y))
    exact = fm.MAML(model, 0.1, loss=F.cross_entropy, executor="eager").double()
    expected = exact(episodes.to("cpu", torch.float64)).outputs
    maml = fm.MAML(model.float().to("cuda"), 0.1, loss=F.cross_entropy, backend=backend)
    found = maml(episodes.to("cuda")).outputs.cpu().double()
    assert relative(found, expected) < 2e-5


def test_what_chooses_kernels_is_part_of_a_plans_key() -> None:
    """A CUDA graph keeps those that it was captured with."""
    cuda, raw = torch.backends.cuda, torch._C  # whose cuDNN switches are never frozen
    matmul = {
        name: (functools.partial(setattr, cuda.matmul, name), getattr(cuda.matmul, name))
        for name in (
            "allow_fp16_accumulation",
            "allow_fp16_reduced_precision_reduction",
            "allow_bf16_reduced_precision_reduction",
        )
    }
    seen = {environment("cuda")}
    for put, before in (
        (raw._set_cudnn_enabled, raw._get_cudnn_enabled()),
        (raw._set_cudnn_deterministic, raw._get_cudnn_deterministic()),
        *matmul.values(),
        (cuda.enable_flash_sdp, cuda.flash_sdp_enabled()),
        (cuda.enable_mem_efficient_sdp, cuda.mem_efficient_sdp_enabled()),
        (cuda.enable_math_sdp, cuda.math_sdp_enabled()),
        (cuda.enable_cudnn_sdp, cuda.cudnn_sdp_enabled()),
        (cuda.allow_fp16_bf16_reduction_math_sdp, cuda.fp16_bf16_reduction_math_sdp_allowed()),
    ):
        put(not before)
        try:
            seen.add(environment("cuda"))
        finally:
            put(before)
    assert len(seen) == 11, "each is another key"
