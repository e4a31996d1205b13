"""What the profiler and the sweeps say of themselves is measured, and shown with its losses."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import benchmark_runs
import pytest
import torch
from benchmark_runs import result, run
from torch import nn


@pytest.fixture(autouse=True)
def process_kept() -> Iterator[None]:
    with benchmark_runs.process_kept():
        yield


@pytest.mark.slow
def test_profiles_are_held_against_plain_steps_and_resident_memory(tmp_path: Path) -> None:
    from benchmarks.tables import evidence as evidence_tables

    path = tmp_path / "profiles.json"
    run("profiles", "--quick", "--subjects", "digits", "--json", str(path))
    found = result(path)
    one = found["subjects"]["digits"]
    (times,), (memory,) = one["times"], one["memory"]
    assert times["sum_off"] == pytest.approx(
        sum(times["phases_s"].values()) / times["plain_step_s"] - 1
    )
    assert memory["peak"] > 0
    assert isinstance(memory["resident"], str) or memory["resident"] > 0
    memory["resident"] = "not measured: no such file"
    found["subjects"]["bert"] = {"absent": "needs transformers"}
    text = evidence_tables.profiles(found)
    (row,) = (line for line in text.splitlines() if line.startswith("| digits"))
    assert "not measured: no such file" in row
    assert f"{100 * times['sum_off']:+.1f}%" in row
    assert "Left out: bert (needs transformers)." in text
    assert "A quick run" in text
    shown = evidence_tables.example("profiles")({"subjects": {"omniglot": one}})
    assert one["text"].splitlines()[0] in shown


@pytest.mark.slow
def test_a_second_run_is_held_against_the_intervals_of_the_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from benchmarks.tables import evidence as evidence_tables

    run("vs_first_order", "--quick", "--steps", "1", "--point", "mlp")
    first = json.loads(capsys.readouterr().out)
    assert {p["method"] for p in first["prices"]} == {"Unrolled", "Checkpointed", "MixedMode"}
    assert all(p["interval"][0] <= p["median"] <= p["interval"][1] for p in first["prices"])
    second = copy.deepcopy(first)
    second["prices"][0]["median"] = 2 * first["prices"][0]["interval"][1]
    second["cells"][1] = {"method": "Checkpointed", "steps": 1, "missing": "out of memory"}
    subjects = {"mlp": {"title": "an MLP", "runs": [first, second]}}
    about = {"device": "a machine", "threads": 1, "torch": "2"}
    text = evidence_tables.vs_first_order({**about, "subjects": subjects})
    assert text.count("| **no** |") == 1
    assert text.count("| yes |") == 2
    assert "ratios 2 of 3 lie within" in text
    assert "times themselves 3 of 3." in text


@pytest.mark.slow
def test_what_a_fresh_process_says_when_it_fails() -> None:
    from benchmarks.support.fresh import fresh

    with pytest.raises(SystemExit, match="invalid choice: 'nothing'"):
        fresh("vs_first_order", "--point", "nothing", threads=1, environment={})


@pytest.mark.parametrize("has_jax", [False, True])
def test_who_takes_part_and_why_not(has_jax: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import contestants
    from benchmarks.support.turns import Field

    monkeypatch.setattr(contestants, "has_jax", lambda: has_jax)

    def field(
        device: str, slow: bool = False, large: bool = False, asked: list[str] | None = None
    ) -> Field:
        options = {"device": device, "slow": slow, "large": large, "contestants": asked}
        return Field(argparse.Namespace(**options, peers=None))

    for device in ("cpu", "cuda"):
        found = field(device)
        if has_jax:  # as on a machine with a GPU, in the Python at hand
            assert "JAX jit of vmap" in found.names
        else:
            assert "needs an environment of its own" in found.absent["JAX jit of vmap"]
    assert field("cpu").absent["CUDA graph of vmap"] == "not on cpu: needs a GPU"
    slow = field("cpu", slow=True)
    assert "torch.compile of vmap" in slow.names
    assert "fastmaml compiled" in slow.names
    assert {"hand-written loop", "fastmaml"} < set(slow.names)
    assert "higher" not in {*slow.names, *slow.absent}
    loops = {"hand-written loop", "hand-written loop, first order"}
    of_seconds = set(field("cpu", large=True).names)
    assert of_seconds >= {*loops, "fastmaml", "fastmaml, first order"}
    assert not of_seconds & {"higher", "torch.func vmap", "fastmaml per_task"}
    assert set(field("cpu", asked=["fastmaml"]).names) == {*loops, "fastmaml"}  # a whole name
    assert set(field("cpu", asked=["first"]).names) == {*loops, "fastmaml, first order"}


def test_workloads_that_are_not_asked_for_are_kept(tmp_path: Path) -> None:
    from benchmarks.programs.meta_step import others
    from benchmarks.support.workloads import WORKLOADS

    path = tmp_path / "meta_step_large.json"
    machine = {"device": "one", "threads": 2, "torch": "2.13.0", "tf32": False}
    assert others(path, machine, []) == []
    rows = [{"measured": machine, "workload": {"key": key}} for key in ("policy", "resnet-12")]
    old = {"workload": {"key": "images-84"}}  # of before it was noted where and when
    path.write_text(json.dumps({**machine, "workloads": [*rows, old]}))
    assert others(path, machine, [WORKLOADS["policy"]]) == rows[1:]
    assert others(path, machine | {"device": "another"}, [WORKLOADS["policy"]]) == []


@pytest.mark.parametrize("key", ["policy", "images-84-inplace", "resnet-12"])
def test_larger_workloads_are_what_they_say(key: str) -> None:
    from benchmarks.support.workloads import LARGE, WORKLOADS, arrays, network

    work = replace(WORKLOADS[key], tasks=1, support=2, query=2)
    assert key in LARGE
    model, given = network(work), arrays(work)
    found = model(torch.from_numpy(given["support.inputs"][0]))
    assert found.shape == (2, work.ways)
    assert given["support.targets"].shape == ((1, 2, 2) if work.regression else (1, 2))
    kinds = [type(module) for module in model.modules()]
    assert (nn.Tanh in kinds) == (key == "policy")
    relus = [m for m in model.modules() if isinstance(m, nn.ReLU)]
    assert all(m.inplace for m in relus)
    assert bool(relus) == (key == "images-84-inplace")


def test_op_timings_count_what_is_slower() -> None:
    from benchmarks.tables import rates as rate_tables

    def row(kind: str, plain: float, batched: float, own: float) -> dict[str, Any]:
        times = {"plain torch": plain, "reference": batched, "cpp": own}
        contestants = {n: {"median_us": us} for n, us in times.items()}
        return {"op": "task_x", "shapes": "2 x [3]", "pass": kind, "contestants": contestants}

    rows = [row("forward", 8, 2, 4), row("backward", 9, 6, 3)]
    text = rate_tables.ops({"rows": rows, "device": "a machine", "threads": 1, "torch": "2"})
    assert "| `task_x` | 2 x [3] | cpp | 4 (2.0x, 0.5x) | 3 (3.0x, 2.0x) |" in text
    assert "In 1 of 2 it is slower" in text


@pytest.mark.slow
def test_what_varies_beside_a_loop(tmp_path: Path) -> None:
    """Equal gradients, whatever is another at every call."""
    from benchmarks.tables import evidence as evidence_tables

    path = tmp_path / "varying.json"
    run("varying", "--quick", "--subjects", "shots", "in-place", "--json", str(path))
    found = result(path)
    assert [row["subject"] for row in found["rows"]] == ["shots", "in-place"]
    assert max(row["error"] for row in found["rows"]) < 1e-12
    text = evidence_tables.varying(found)
    assert "| shots: 1 to 60, new at every call |" in text
    assert "A quick run" in text


@pytest.mark.slow
def test_tasks_of_unequal_size(tmp_path: Path) -> None:
    """Equal gradients, and a row of the table."""
    from benchmarks.tables import evidence as evidence_tables

    path = tmp_path / "unequal.json"
    run("unequal", "--quick", "--subjects", "small", "--json", str(path))
    found = result(path)
    assert found["rows"][0]["error"] < 1e-12
    text = evidence_tables.unequal(found)
    assert "| model | equal sizes | mask | buckets | loop by hand |" in text
    assert "A quick run" in text


@pytest.mark.slow
def test_policies_beside_a_loop(tmp_path: Path) -> None:
    """Equal numbers, and returns of every seed."""
    from benchmarks.tables import policies as policy_tables

    path = tmp_path / "policies.json"
    run("policies", "--quick", "--environments", "navigation", "--json", str(path))
    found = result(path)
    assert [row["row"] for row in found["costs"]] == ["acting", "meta-gradient", "trpo"]
    assert max(row["error"] for row in found["costs"]) < 1e-12
    assert "| product of TRPO |" in policy_tables.costs(found)
    text = policy_tables.learned(found)
    assert "| navigation, exact |" in text
    assert "| navigation, first order |" in text
    assert "A quick run" in text


@pytest.mark.slow
def test_decoders_beside_a_loop(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from benchmarks.tables import evidence as evidence_tables

    path = tmp_path / "decoders.json"
    run("decoders", "--quick", "--subjects", "GPTNeoX", "--json", str(path))
    found = result(path)
    (row,) = found["rows"]
    assert row["error"] < 1e-6
    loop, ours = row["contestants"].values()
    assert 0 < ours["peak_bytes"] < loop["peak_bytes"]
    text = evidence_tables.decoders(found)
    assert "| GPTNeoX |" in text
    assert "1 layers, d=128" in text


@pytest.mark.slow
def test_partial_scopes_beside_loops(tmp_path: Path) -> None:
    """Equal gradients, and memory that does not grow with the steps."""
    from benchmarks.tables import evidence as evidence_tables

    path = tmp_path / "partial_scopes.json"
    given = ("--quick", "--subjects", "conv4-head", "--steps", "2", "6", "--json", str(path))
    run("partial_scopes", *given)
    found = result(path)
    two, six = found["rows"]
    for row in (two, six):
        assert row["errors"].keys() == row["contestants"].keys()
        assert max(row["errors"].values()) < 1e-12
    peaks = {n: six["contestants"][n]["peak_bytes"] / c["peak_bytes"]
             for n, c in two["contestants"].items()}  # fmt: skip
    assert peaks["fastmaml"] < 1.05
    assert peaks["loop by hand"] > 2
    text = evidence_tables.partial_scopes(found)
    assert text.count("| the head | 6 |") == 1
    assert "A quick run" in text
