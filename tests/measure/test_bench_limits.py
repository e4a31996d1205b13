"""`fastmaml.bench` where memory ends: in a process that the operating system gives only so much."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from outcomes import require

from fastmaml.engine.base.attempt import attempted, is_out_of_memory

MIB = 2**20

CHILD = """
import json, re, resource, sys
from pathlib import Path
import torch, fastmaml as fm
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)
torch.manual_seed(0)

def learner(width):
    ends = nn.Linear(64, width), nn.Linear(width, 8)
    net = nn.Sequential(ends[0], nn.ReLU(), nn.Linear(width, width), nn.ReLU(), ends[1])
    return fm.MAML(net, 0.1, loss=F.cross_entropy, backend=sys.argv[1],
                   executor=sys.argv[2], tasks_chunk=8)

x, y = torch.randn(2, 8, 64, 64), torch.randint(8, (2, 8, 64))
episodes = fm.Episodes(fm.Batch(x[0], y[0]), fm.Batch(x[1], y[1]))
quick = {"methods": (fm.gradients.Unrolled(),), "repeats": 1, "seconds": 0.01}
fm.bench(learner(8), episodes, steps=(1,), **quick)  # what PyTorch loads once is not to count
status = Path("/proc/self/status").read_text()
size = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", status)[1])
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (size + 512 * 2**20, before[1]))
found = fm.bench(learner(256), episodes, steps=(1, 150), **quick)
resource.setrlimit(resource.RLIMIT_AS, before)
print(json.dumps([[c.refusal, c.peak_bytes, c.explanation] for c in found.cells]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits need Linux")
@pytest.mark.parametrize(("backend", "executor"), [("reference", "eager"), ("cpp", "captured")])
def test_memory_that_runs_out_on_the_cpu_is_no_refusal(backend: str, executor: str) -> None:
    require(backend)
    run = [sys.executable, "-c", CHILD, backend, executor]
    # Otherwise every thread of malloc's reserves addresses of its own, which count as well, and
    # tensors that the large one let go stay addresses of the process, in pieces that now and then
    # are of no use to the small one.
    malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    environment = os.environ | malloc | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=environment)
    small, large = json.loads(done.stdout.splitlines()[-1])
    assert small[0] == ""
    assert small[1] < 50 * MIB
    assert "8 of 8 at a time under vmap" in small[2][0]
    assert large[0] == "out of memory"


def test_memory_that_runs_out_in_a_trial_is_no_refusal() -> None:
    with pytest.raises(RuntimeError, match="allocate"):
        attempted(lambda: torch.empty(2**60))
    refusal, _ = attempted(lambda: torch.ones(2) @ torch.ones(3))
    assert "RuntimeError" in refusal


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("the loss of DefaultCPUAllocator: can't allocate memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Any, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
