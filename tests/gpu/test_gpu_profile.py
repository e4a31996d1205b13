"""`fm.profile` and `fm.bench` on a CUDA device: `make gpu` runs these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.gradients import Checkpointed, FirstOrder, Unrolled
from fastmaml.measure.profile.phases import OPTIMIZER, REST, SAMPLING

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu


def learner(**options: Any) -> fm.MAML:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5))
    return fm.MAML(net.cuda(), lr=0.1, loss=F.cross_entropy, **options)


@pytest.mark.parametrize("executor", ["eager", "captured"])
def test_profile(executor: str) -> None:
    maml = learner(executor=executor, steps=2, gradient=Unrolled())
    optimizer = torch.optim.Adam(maml.parameters(), 1e-3)
    source = fm.episodes.digits(ways=5, shots=1, tasks=4, device="cuda")
    before = [p.detach().clone() for p in maml.parameters()]
    report = fm.profile(maml, source, optimizer, repeats=3, snapshot=True)
    assert all(map(torch.equal, maml.parameters(), before))
    timed = [p for p in report.phases if not isinstance(p.seconds, str)]
    assert {SAMPLING, OPTIMIZER, REST, "query", "meta-backward"} <= {p.name for p in timed}
    assert sum(float(p.share) for p in timed) == pytest.approx(1, abs=1e-6)
    assert all(float(p.seconds) >= 0 for p in timed if p.name != REST)
    assert report.peak_how == "PyTorch's allocator"
    assert int(report.peak_bytes) > 0
    assert report.resident_bytes == "none on a GPU"
    assert float(report.peak_flops) > 0
    assert "memory_snapshot.pickle" in report.files
    assert json.loads(json.dumps(report.as_dict()))["setting"]["device"].startswith("cuda")
    pytest.importorskip("rich")
    assert "cuda" in str(report)


def test_bench(tmp_path: Path) -> None:
    source = fm.episodes.digits(ways=5, shots=1, tasks=4, device="cuda")
    kept: list[fm.Sweep] = []
    found = fm.bench(
        learner(), source, methods=(Unrolled(), Checkpointed(), FirstOrder()), steps=(1, 3),
        executors=("eager", "captured"), vs="first-order", budget="1GB", repeats=3, seconds=1.0,
        changed=kept.append,
    )  # fmt: skip
    assert len(found.cells) == len(kept) == 12
    for cell in found.cells:
        assert cell.refusal == "", cell.refusal
        assert len(cell.turns) == 3
        assert not cell.in_rounds, "on a GPU turns are taken in a row"
        assert cell.peak_bytes
        assert cell.first_peak_bytes
        assert "allocated on the GPU" in cell.memory
        assert cell.error is not None
        assert cell.error < 1e-3 or not cell.configuration.gradient.exact
        assert cell.exact_in == "float64"
    for price in found.second_order:
        assert price.time is not None
        assert not price.paired
        assert price.time.least <= price.time.median <= price.time.most
    assert "turns were not taken in rounds" in str(found)
    assert found.save_numbers(tmp_path).exists()
    assert "with 1.0 GB for a meta-step" in str(found)
