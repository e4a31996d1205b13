"""Keep a finished training run among the results.

    fastmaml train omniglot --out runs/omniglot
    python -m benchmarks.programs.training runs/omniglot

Writes benchmarks/results/DEVICE/train_DATA.json (result, configuration, the learning curve at up to
100 points, the evaluation of the untrained network) and docs/figures/train_DATA.png (of another
device than the CPU, docs/figures/train_DATA_DEVICE.png); of a policy policy_ENVIRONMENT in place of
train_DATA.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.figures.plots import figure_name
from benchmarks.support.results import ROOT, about, folder

MEASURES = ("return", "accuracy", "loss")


def thinned(lines: list[dict[str, Any]], key: str, points: int = 100) -> list[list[float]]:
    """``[iteration, mean of the iterations since the last point]``."""
    known = [(line["iteration"], line[key]) for line in lines if line.get(key) is not None]
    size = max(1, len(known) // points)
    groups = [known[i : i + size] for i in range(0, len(known), size)]
    return [[g[-1][0], round(sum(v for _, v in g) / len(g), 5)] for g in groups]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    result = json.loads((options.run / "result.json").read_text())
    lines = [json.loads(x) for x in (options.run / "metrics.jsonl").read_text().splitlines()]
    first = lines[0].get("validation") if lines[0]["iteration"] == 0 else None
    policy = "return" in lines[-1]
    curves = ("return", "no_adaptation") if policy else ("loss", "accuracy")
    name = f"{'policy' if policy else 'train'}_{result['config']['dataset']}"
    kept = {
        **{k: v for k, v in about(options.device).items() if k in {"device", "torch", "python"}},
        "kept_at": {k: about(options.device)[k] for k in ("commit", "date")},
        **{k: v for k, v in result.items() if k not in {"device", "versions"}},
        "untrained": first,
        "learning_curve": {k: thinned(lines, k) for k in curves},
        "validation_curve": [
            [x["iteration"], next(x["validation"][k] for k in MEASURES if k in x["validation"])]
            for x in lines
            if x.get("validation")
        ],
    }
    kept["config"] = {k: v for k, v in kept["config"].items() if k not in {"out", "root"}}
    (folder(options.device) / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    figure = ROOT / "docs" / "figures" / figure_name(name, options.device)
    shutil.copy(options.run / "curves.png", figure)


if __name__ == "__main__":
    main()
