"""How large a model fits on one GPU, and is a plan's figure what a run needs?

    python -m benchmarks.programs.planned_memory [--only table | check] [--quick]

The table: plans of three sizes of Llama on one GPU of 80 GiB (`fastmaml.measure.planning`), of
which nothing is run. The check: a Llama of 300 M random parameters in float32, whose meta-step is
planned, and run on the CPU in a fresh process: the peak of resident memory over what it held
before, in the first meta-step, trials and recording included. Writes
benchmarks/results/cpu/planned_memory.json after every row.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastmaml as fm
from benchmarks.programs.language_memory import forget_peak, memory
from benchmarks.support.results import ROOT, about, place, save
from fastmaml.gradients import Checkpointed, MixedMode
from fastmaml.gradients.names import named
from fastmaml.integrations.transformers import Lora, lora
from fastmaml.integrations.transformers.adapters import with_generating_lora
from fastmaml.measure.planning import MemoryPlan, plan_memory

PLANS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("Llama-3.2-1B", "llama-3.2-1b", {}),
    ("Llama-3.2-3B", "llama-3.2-3b", {}),
    ("Llama-3-8B", "llama-3-8b", {}),
    (
        "Llama-3-8B, layers checkpointed",
        "llama-3-8b",
        {"layers": "checkpointed", "methods": [Checkpointed(), MixedMode()]},
    ),
)
"""Name, model, and what is asked for."""

SETTING: dict[str, Any] = {
    "tasks": 2,
    "steps": 5,
    "tokens": 512,
    "support": 4,
    "query": 4,
    "lora": 8,
}
CHECKED: dict[str, Any] = {
    "tasks": 2,
    "steps": 2,
    "tokens": 64,
    "support": 2,
    "query": 2,
    "lora": 8,
}
CONTESTANTS = {
    "Checkpointed": ("checkpointed", "eager"),
    "MixedMode": ("mixed-mode", "eager"),
    "Unrolled": ("unrolled", "eager"),
    "Checkpointed, recorded": ("checkpointed", "captured"),
}
"""Gradient method and executor."""

SIZES = {
    "vocab_size": 32_000, "hidden_size": 1024, "intermediate_size": 2816,
    "num_hidden_layers": 22, "num_attention_heads": 16, "num_key_value_heads": 8,
    "tie_word_embeddings": True, "use_cache": False, "pad_token_id": 0,
}  # fmt: skip
# Few layers, as what Python holds to record each is not planned, and much beside small tensors.
QUICK_SIZES = {
    **SIZES, "vocab_size": 8000, "hidden_size": 768, "intermediate_size": 2112,
    "num_hidden_layers": 4,
}  # fmt: skip


def configuration(quick: bool) -> Any:
    """The model that is run."""
    import transformers

    return transformers.LlamaConfig(**(QUICK_SIZES if quick else SIZES))


def model_of(quick: bool) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(configuration(quick))
    return with_generating_lora(model, Lora(CHECKED["lora"]), "CAUSAL_LM").train()


def episodes(vocabulary: int) -> fm.Episodes:
    """Random tokens."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for rows in (CHECKED["support"], CHECKED["query"]):
        size = (CHECKED["tasks"], rows, CHECKED["tokens"])
        tokens = torch.randint(1, vocabulary, size, generator=generator)
        parts.append(
            fm.Batch({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, tokens)
        )
    return fm.Episodes(*parts)


def point(name: str, quick: bool) -> dict[str, Any]:
    """What the process of one row measures."""
    method, executor = CONTESTANTS[name]
    how: dict[str, Any] = {"gradient": named(method), "executor": executor}
    small = fm.MAML(nn.Linear(2, 2), lr=0.1, steps=2, loss=nn.functional.mse_loss, **how)
    x = torch.zeros(2, 2, 2)
    small(fm.Episodes(fm.Batch(x, x), fm.Batch(x, x))).loss.backward()  # what torch loads late
    model = model_of(quick)
    batch = episodes(configuration(quick).vocab_size)
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    maml = fm.MAML(
        model, lr=0.1, steps=CHECKED["steps"], loss=fm.losses.causal, scope=lora(model),
        tasks_chunk=1, spot_checks=False, **how,
    )  # fmt: skip
    before = memory("VmRSS", "cpu")
    forget_peak("cpu")
    maml(batch).loss.backward()
    return {"measured_bytes": memory("VmHWM", "cpu") - before}


def measured(name: str, quick: bool) -> dict[str, Any]:
    """The same, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.programs.planned_memory", "--point", name]
    # Freed tensors go back to the system at once, so that the peak is that of live memory.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *["--quick"] * quick], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{name} failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def checked(quick: bool, keep: Any) -> None:
    """Plans beside runs."""
    for name, (method, executor) in CONTESTANTS.items():
        recorded = executor == "captured"
        plan = plan_memory(
            configuration(quick), **CHECKED, methods=[named(method)], tasks_at_once=1,
            layers="kept", dtype=torch.float32, backend="kernels" if recorded else "reference",
        )  # fmt: skip
        way = plan.ways[0]
        copied = plan.standing.weights + plan.standing.data if recorded else 0
        row = {"planned_bytes": way.step + copied, **measured(name, quick)}
        print(name, row, row["planned_bytes"] / row["measured_bytes"], flush=True)
        keep(name, row, plan)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["table", "check"])
    parser.add_argument("--quick", action="store_true", help="a small model in the check")
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.point:
        print(json.dumps(point(o.point, o.quick)))
        return
    path = place(o.json, "cpu", "planned_memory", o.quick)
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    result |= {**about("cpu"), "quick": o.quick, "setting": SETTING, "checked_setting": CHECKED}

    def keep(name: str, row: dict[str, Any], plan: MemoryPlan) -> None:
        result["checked_parameters"] = plan.standing.parameters
        result.setdefault("checked", {})[name] = row
        save(path, result)

    if o.only != "table":
        result.pop("checked", None)
        checked(o.quick, keep)
    if o.only != "check":
        result["plans"] = {}
        for name, model, more in PLANS[: 1 if o.quick else None]:
            plan = plan_memory(model, **SETTING, **more)
            result["plans"][name] = plan.as_dict()
            print(plan, flush=True)
            save(path, result)


if __name__ == "__main__":
    main()
