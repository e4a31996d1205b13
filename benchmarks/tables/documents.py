"""Write the tables and plots of the README and docs from the results under benchmarks/results.

    python -m benchmarks.tables            # rewrite README.md and docs
    python -m benchmarks.tables --check    # fail if they differ

A table stands between ``<!-- results: NAME -->`` and ``<!-- end -->``, once for every device whose
folder has the result; where nothing was measured it says what would do so. A plot is of the CPU and
holds the hash of the results that it shows.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from typing import Any

from benchmarks.figures import convergence as convergence_figure
from benchmarks.figures import growth as growth_figure
from benchmarks.figures import memory as memory_figure
from benchmarks.figures import omniglot as omniglot_figure
from benchmarks.figures import plots as figures
from benchmarks.figures.plots import figure_name
from benchmarks.support.origin import ROOT
from benchmarks.tables import choosing
from benchmarks.tables import evidence as evidence_tables
from benchmarks.tables import gpu as gpu_tables
from benchmarks.tables import language as language_tables
from benchmarks.tables import methods as method_tables
from benchmarks.tables import omniglot as omniglot_tables
from benchmarks.tables import peers as peer_tables
from benchmarks.tables import planned as planned_tables
from benchmarks.tables import policies as policy_tables
from benchmarks.tables import rates as rate_tables
from benchmarks.tables import times as time_tables
from benchmarks.tables import transfer as transfer_tables
from benchmarks.tables.cells import note, table

RESULTS = ROOT / "benchmarks" / "results"


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


def devices(pattern: str) -> list[str]:
    """The folders of results that have such a file, the CPU's first."""
    found = {path.parent.name for path in RESULTS.glob(f"*/{pattern}")}
    return sorted(found, key=lambda device: (device != "cpu", device))


def of_each(parts: list[tuple[str, str]]) -> str:
    """Tables of devices, whose names stand above them where there are several."""
    if len(parts) == 1:
        return parts[0][1]
    return "\n\n".join(f"On {device}:\n\n{part}" for device, part in parts)


def measured(
    name: str, make: Callable[..., str], beside: str | None = None, absent: str | None = None
) -> Callable[[], str]:
    """A table of one result for every device that has it.

    Args:
        name: of the results' files.
        make: the table of one, and of the device's result `beside` it, or None, where that is
            named.
        beside: the other.
        absent: what stands where nothing was measured; None for the command that measures it.
    """

    def written() -> str:
        parts = []
        for device in devices(f"{name}.json"):
            found = read(f"{device}/{name}.json")
            other = [] if beside is None else [read_if_there(f"{device}/{beside}.json")]
            parts.append((found["device"], make(found, *other)))
        if parts:
            return of_each(parts)
        program = f"benchmarks.programs.{PROGRAMS.get(name, name)}"
        return f"Not measured yet: `python -m {program}`." if absent is None else absent

    return written


def read_if_there(name: str) -> dict[str, Any] | None:
    """None also where the result says that its data were absent."""
    found = read(name) if (RESULTS / name).exists() else {"absent": ""}
    return None if "absent" in found else found


def learned() -> str:
    """One row a committed training run."""
    parts = []
    for device in devices("train_*.json"):
        paths = sorted((RESULTS / device).glob("train_*.json"))
        runs = {path.stem: read(f"{device}/{path.name}") for path in paths}
        rows = [learned_row(figure_name(stem, device), found) for stem, found in runs.items()]
        parts.append((next(iter(runs.values()))["device"], table(LEARNED, rows)))
    return of_each(parts)


def policy_runs() -> str:
    """One row a committed run of a policy."""
    if not devices("policy_*.json"):
        return "Not measured yet: `python -m benchmarks.programs.training`."
    parts = []
    for device in devices("policy_*.json"):
        paths = sorted((RESULTS / device).glob("policy_*.json"))
        runs = {figure_name(p.stem, device): read(f"{device}/{p.name}") for p in paths}
        parts.append((next(iter(runs.values()))["device"], policy_tables.runs(runs)))
    return of_each(parts)


LEARNED = [
    "task",
    "after adaptation, 95% interval",
    "before adaptation",
    "an untrained network, adapted alike (validation tasks)",
    "chance",
    "test",
    "meta-training",
]


def learned_row(figure: str, found: dict[str, Any]) -> list[str]:
    test, config, untrained = found["test"], found["config"], found["untrained"]
    accuracy = "accuracy" in test
    metric = "accuracy" if accuracy else "loss"

    def show(mean: float, interval: float) -> str:
        if accuracy:
            return f"{100 * mean:.1f} ± {100 * interval:.1f}%"
        return f"MSE {mean:.2f} ± {interval:.2f}"

    return [
        f"[{found['title']}](../figures/{figure})",
        f"**{show(test[metric], test['interval_95'])}**",
        show(test["no_adaptation"], test["no_adaptation_interval_95"]),
        show(untrained[metric], untrained["interval_95"]) if untrained else "not measured",
        "" if test["chance"] is None else f"{100 * test['chance']:.0f}%",
        f"{test['steps']} steps, {test['episodes']} tasks",
        f"{found['iterations']:,} x {config['tasks']} tasks, {found['seconds'] / 60:.0f} min",
    ]


def memory(found: dict[str, Any]) -> str:
    rows = [
        [
            f"`{method}`",
            f"{row['growth_copies_per_step']:.2f}",
            f"{row['peak_copies'][0]:.1f}",
            f"{row['peak_copies'][-1]:.1f}",
        ]
        for method, row in found["methods"].items()
    ]
    first, last = found["steps"][0], found["steps"][-1]
    header = ["method", "copies a step", f"peak at {first} step", f"peak at {last} steps"]
    return f"{table(header, rows)}\n\n{note(found)}"


PROGRAMS = {"suites": "run_suites", "migration": "meta_step", "intents_pooler": "intents"}
"""What measures a result that does not have its name."""

TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"headline": measured("meta_step", time_tables.headline)},
    "docs/measurements/index.md": {
        "learned": learned,
        "omniglot": measured("omniglot", omniglot_tables.runs),
        "price": measured("growth", choosing.headline, beside="convergence"),
        "gpu": measured("gpu", gpu_tables.measured, absent=gpu_tables.ABSENT),
    },
    "docs/measurements/time.md": {
        "time": measured("meta_step", time_tables.times),
        "time-slow": measured("meta_step_slow", time_tables.slow, absent=""),
        "time-large": measured("meta_step_large", time_tables.times, absent=""),
        "varying": measured("varying", evidence_tables.varying),
        "decoders": measured("decoders", evidence_tables.decoders),
    },
    "docs/measurements/memory.md": {
        "memory": measured("memory_growth", memory),
        "partial-scopes": measured("partial_scopes", evidence_tables.partial_scopes),
    },
    "docs/measurements/ops.md": {"ops": measured("ops", rate_tables.ops)},
    "docs/how_to/drop_in_to_fast.md": {"migration": measured("migration", time_tables.speed)},
    "docs/how_to/migrating.md": {
        "peers": measured("peers", peer_tables.peers, absent="Not run yet: `make peers`."),
    },
    "docs/how_to/table.md": {"unequal": measured("unequal", evidence_tables.unequal)},
    "docs/how_to/methods.md": {"methods": measured("methods", method_tables.methods)},
    "docs/how_to/rl.md": {
        "policies-costs": measured("policies", policy_tables.costs),
        "policies-learned": measured("policies", policy_tables.learned),
        "policy-runs": policy_runs,
    },
    "docs/how_to/text.md": {
        "intents": measured("intents", language_tables.intents),
        "intents-pooler": measured("intents_pooler", language_tables.intents),
        "transfer": measured("transfer", transfer_tables.study),
        "language-memory": measured("language_memory", language_tables.memory),
    },
    "docs/how_to/how_large.md": {
        "planned": measured("planned_memory", planned_tables.plans),
        "planned-checked": measured("planned_memory", planned_tables.checked),
    },
    "docs/concepts/choosing.md": {
        "price": measured("growth", choosing.price),
        "convergence": measured("convergence", choosing.convergence),
        "laws": measured("growth", choosing.laws),
        "suites": measured("suites", choosing.suites),
        "cold-start": measured("cold_start", choosing.cold_start),
    },
    "docs/how_to/profiling.md": {
        "profile-example": measured("profiles", evidence_tables.example("profiles")),
        "profiles": measured("profiles", evidence_tables.profiles),
    },
    "docs/how_to/bench.md": {
        "bench-example": measured("vs_first_order", evidence_tables.example("vs_first_order")),
        "vs-first-order": measured("vs_first_order", evidence_tables.vs_first_order),
    },
    "docs/concepts/episodes.md": {"sampling": measured("sampling", rate_tables.sampling)},
}

PLOTS: dict[str, tuple[str, figures.Draw]] = {
    "docs/figures/memory_growth.png": ("cpu/memory_growth.json", memory_figure.draw),
    "docs/figures/growth.png": ("cpu/growth.json", growth_figure.draw),
    "docs/figures/convergence.png": ("cpu/convergence.json", convergence_figure.draw),
    "docs/figures/omniglot.png": ("cpu/omniglot.json", omniglot_figure.draw),
}


def stale_plots() -> list[str]:
    """Those that do not show the results that there are."""
    return [png for png, (name, _) in PLOTS.items() if shown(png) != wanted(name)]


def shown(png: str) -> str | None:
    path = ROOT / png
    return figures.drawn_from(path) if path.exists() else None


def wanted(name: str) -> str | None:
    path = RESULTS / name
    if not path.exists() or "absent" in read(name):
        return None
    return figures.digest(path)


def filled(document: str) -> str:
    """The document's text with its tables written anew."""
    text = (ROOT / document).read_text()
    for name, make in TABLES[document].items():
        pattern = rf"(<!-- results: {name} -->\n).*?(<!-- end -->)"
        made = make()
        content = f"{made}\n" if made else ""
        text, count = re.subn(
            pattern, lambda m, c=content: m[1] + c + m[2], text, count=1, flags=re.DOTALL
        )
        if not count:
            raise SystemExit(f"{document} has no place for the table {name!r}.")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    for png in stale_plots():
        if options.check or wanted(PLOTS[png][0]) is None:
            raise SystemExit(f"{png} does not show the results: run python -m benchmarks.tables")
        figures.plot(RESULTS / PLOTS[png][0], ROOT / png, PLOTS[png][1])
    for document in TABLES:
        new = filled(document)
        if options.check and new != (ROOT / document).read_text():
            raise SystemExit(
                f"{document} differs from the results: run python -m benchmarks.tables"
            )
        if not options.check:
            (ROOT / document).write_text(new)


if __name__ == "__main__":
    main()
