"""What Omniglot is learned to within an hour of one core: 5 and 20 ways, MAML and MAML++.

    python -m benchmarks.programs.omniglot [--only 5-way/MAML/0 ...] [--quick]

Plain training runs, as of ``fastmaml train omniglot`` with the flags of `SETTINGS`, from three
seeds: 1,100 characters to train on, also turned (protocol "random"), validation on 100 others, test
on the last 423. Runs lie in runs/omniglot and go on where they were stopped; each finished one is
put into benchmarks/results/DEVICE/omniglot.json with its curve, beside those that are there. Each
keeps one core busy: on more, start several with runs of their own.

Omniglot is looked for in FASTMAML_DATA, else in ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.programs.training import thinned
from benchmarks.support.results import ROOT, about, place
from fastmaml._files import write_whole
from fastmaml.training.config import RunConfig
from fastmaml.training.presets import PRESETS, mamlpp_defaults
from fastmaml.training.recipes import build_trainer

COMMON: dict[str, Any] = {
    "protocol": "random",
    "pool": "stride",
    "filters": 64,
    "shots": 1,
    "schedule": "cosine",
    "evaluate_every": 500,
    "validation_episodes": 96,
    "test_episodes": 600,
    "checkpoint_every": 100,
    "plots": False,
    "threads": 1,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "5-way": {
        "ways": 5,
        "queries": 1,
        "meta_lr": 1e-3,
        "tasks": 32,
        "inner_lr": 0.4,
        "inner_steps": 1,
        "eval_steps": 3,
        "iterations": 10_000,
    },
    "20-way": {
        "ways": 20,
        "queries": 5,
        "meta_lr": 2e-3,
        "tasks": 4,
        "inner_lr": 0.1,
        "inner_steps": 5,
        "eval_steps": None,
        "iterations": 6_000,
    },
}
"""The MAML paper's network and inner loops (Finn et al., 2017, appendix A.1) with less of the outer
loop: a sixth of its iterations; for 20 ways a tenth, of a quarter of its tasks, but of five times
as many query examples, which cost little beside five inner steps, and at twice its rate."""
SHORTER: dict[str, dict[str, Any]] = {"5-way": {"tasks": 16, "iterations": 5_000}}
"""For MAML++, whose five inner steps cost as much as more iterations."""
METHODS = ("MAML", "MAML++")
SEEDS = (0, 1, 2)


def values_of(name: str, method: str, quick: bool) -> dict[str, Any]:
    """The settings that a run changes of the preset's."""
    values = COMMON | SETTINGS[name]
    if method == "MAML++":
        values |= SHORTER.get(name, {})
        values |= mamlpp_defaults("omniglot", values["iterations"])
    if quick:
        values |= {"iterations": 4, "tasks": 2, "filters": 8, "evaluate_every": 2}
        values |= {"validation_episodes": 4, "test_episodes": 4, "inner_steps": 1}
        values |= {"first_order_until": 0, "multi_step_until": 0}
    return values


def run(config: RunConfig) -> dict[str, Any]:
    """Train, or go on, and test; what is kept."""
    trainer = build_trainer(config)
    checkpoint = config.folder / "last.safetensors"
    if checkpoint.exists():
        trainer.resume(checkpoint)
    trainer.fit()
    result = json.loads((config.folder / "result.json").read_text())
    lines = [json.loads(x) for x in (config.folder / "metrics.jsonl").read_text().splitlines()]
    validated = [
        (x["iteration"], x["seconds"], x["validation"]) for x in lines if "validation" in x
    ]
    return {
        **{k: v for k, v in about().items() if k in {"commit", "date"}},
        "test": result["test"],
        "tested": result["tested"],
        "seconds": result["seconds"],
        "loss": thinned(lines[1:], "loss", 50),
        "validation": [[at, s, round(found["accuracy"], 4)] for at, s, found in validated],
    }


def keep(path: Path, where: dict[str, Any], key: tuple[str, str, int], quick: bool) -> None:
    """Train, and put the run's row into the file."""
    name, method, seed = key
    data = Path(os.environ.get("FASTMAML_DATA") or ROOT.parent / "shared" / "data")
    values = values_of(name, method, quick)
    out = path.parent / "omniglot" / f"{name}-{method}-{seed}"
    if not quick:
        out = ROOT / "runs" / "omniglot" / out.name
    changed = {"seed": seed, "root": str(data), "download": False, "out": str(out)}
    row = run(PRESETS["omniglot"].updated(values | changed, "omniglot.py"))
    found = {"settings": {}, **(json.loads(path.read_text()) if path.exists() else {}), **where}
    at = found["settings"].setdefault(name, {}).setdefault(method, {"runs": {}})
    at["setting"] = values
    at["runs"][str(seed)] = row
    write_whole(path, (json.dumps(found, indent=1) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", help="such as 5-way/MAML/0")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    path = place(options.json, "cpu", "omniglot", options.quick)
    torch.set_num_threads(COMMON["threads"])
    where = about()
    for key in [(n, m, s) for s in SEEDS for m in METHODS for n in SETTINGS]:
        if not options.only or "/".join(map(str, key)) in options.only:
            keep(path, where, key, options.quick)


if __name__ == "__main__":
    main()
