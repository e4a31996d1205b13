"""Plans of memory become tables, and the program that checks one with a run works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_runs import run

from benchmarks.tables import planned

GIB = 2**30


def way(**more: Any) -> dict[str, Any]:
    return {
        "method": "Checkpointed(segments=None)", "tasks_at_once": 1, "layers_checkpointed": True,
        "held": 2**20, "step": 3 * GIB, "eager": 79 * GIB, "recorded": 95 * GIB,
        "memory": 80 * GIB, **more,
    }  # fmt: skip


SETTING = {"tasks": 2, "support": 4, "query": 4, "tokens": 512, "steps": 5, "lora": 8}
ABOUT = {"device": "a machine", "torch": "2", "setting": SETTING, "checked_setting": SETTING}


def test_a_plan_is_bold_where_it_fits() -> None:
    plans = {"Big, layers checkpointed": {"weights": 15 * GIB, "ways": [way()]}}
    (row,) = (
        line for line in planned.plans({**ABOUT, "plans": plans}).splitlines() if "| Big" in line
    )
    assert row == (
        "| Big | `Checkpointed` | 1 | checkpointed | 15.0 | 0.00 | 3.0 | **79.0** | 95.0 |"
    )
    assert "Not planned yet" in planned.plans(ABOUT)
    assert "Not measured yet" in planned.checked(ABOUT)


def test_a_plan_beside_a_run_says_by_how_much_it_is_off() -> None:
    checked = {"Unrolled": {"planned_bytes": 3 * GIB, "measured_bytes": 4 * GIB}}
    text = planned.checked({**ABOUT, "checked": checked, "checked_parameters": 3e8})
    assert "| Unrolled | 3.0 | 4.0 | -25% |" in text


@pytest.mark.slow
def test_the_program_plans_and_runs_a_small_model(tmp_path: Path) -> None:
    out = tmp_path / "planned.json"
    run("planned_memory", "--quick", "--only", "check", "--json", str(out))
    for name, row in json.loads(out.read_text())["checked"].items():
        assert row["planned_bytes"] == pytest.approx(row["measured_bytes"], rel=0.25), name
