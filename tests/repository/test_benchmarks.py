"""The programs under benchmarks/ run, check before they time, and write what the tables read."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import benchmark_runs
import pytest
from benchmark_runs import result, run
from places import BENCHMARKS, data_beside

PROGRAMS = [p for p in sorted(BENCHMARKS.glob("programs/*.py")) if "parse_args()" in p.read_text()]
COMMANDS = [BENCHMARKS / name for name in ("gpu.py", "rehearsal.py", "tables/__main__.py")]


@pytest.fixture(autouse=True)
def process_kept() -> Iterator[None]:
    with benchmark_runs.process_kept():
        yield


@pytest.mark.parametrize("path", [*PROGRAMS, *COMMANDS], ids=lambda p: p.stem)
def test_every_program_says_what_it_does(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "triton" in path.stem:
        pytest.importorskip("triton")
    with pytest.raises(SystemExit) as ended:
        run(path, "--help")
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


@pytest.fixture(scope="module")
def growth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("matplotlib")
    path = tmp_path_factory.mktemp("growth") / "growth.json"
    methods = ("--methods", "Unrolled", "Checkpointed", "FirstOrder")
    common = ("--quick", "--threads", "1", "--json", str(path), "--png", f"{path}.png")
    run("growth", *common, *methods)
    return path


@pytest.mark.slow
def test_growth_measures_every_method_along_every_size(growth: Path) -> None:
    (one,) = result(growth)["workloads"]
    assert set(one["axes"]) == {"steps", "tasks", "width"}
    # Four sizes of steps, three of tasks and of width, where the middle of two is the workload's.
    for name, method in one["methods"].items():
        assert len({(p["steps"], p["tasks"], p["width"]) for p in method["points"]}) == 8, name
        assert all(p["peak_bytes"] > 0 < p["median_ms"] for p in method["points"])
        assert method["from_the_loop"] <= 1e-9
    exact = {n for n, m in one["methods"].items() if m["from_the_exact"] <= 1e-9}
    assert exact == {"Unrolled", "Checkpointed"}
    memory = {n: m["fits"]["steps"]["memory_bytes"]["rate"] for n, m in one["methods"].items()}
    assert memory["Checkpointed"] < memory["Unrolled"]


@pytest.mark.slow
def test_a_plot_says_which_results_it_shows(growth: Path) -> None:
    from benchmarks.figures import plots as figures

    png = Path(f"{growth}.png")
    assert figures.drawn_from(png) == figures.digest(growth)
    other = growth.with_name("other.json")
    other.write_text(growth.read_text() + "\n")
    assert figures.drawn_from(png) != figures.digest(other)


@pytest.mark.slow
def test_the_tables_hold_the_measured_figures(growth: Path) -> None:
    from benchmarks.tables import choosing

    found = json.loads(growth.read_text())
    (one,) = found["workloads"]
    middle = choosing.middle_of(one["methods"]["Unrolled"], one["workload"])
    first = choosing.middle_of(one["methods"]["FirstOrder"], one["workload"])
    times = f"{middle['median_ms'] / first['median_ms']:.2f}x"
    row = next(r for r in choosing.price(found).splitlines() if r.startswith("| `Unrolled`"))
    assert row.split(" | ")[2] == times
    assert row.split(" | ")[5] == "0 (to rounding)"
    copies = one["methods"]["Checkpointed"]["fits"]["steps"]["memory_bytes"]["rate"]
    row = next(r for r in choosing.laws(found).splitlines() if r.startswith("| `Checkpointed`"))
    assert row.split(" | ")[3] == f"{copies / middle['copy_bytes']:.2f}"
    assert "A quick run" in choosing.laws(found)
    failed = copy.deepcopy(found)
    for method in failed["workloads"][0]["methods"].values():
        method["points"] = [{**p, "error": "out of memory"} for p in method["points"]]
        method["fits"] = {a: {"time_ms": None, "memory_bytes": None} for a in method["fits"]}
    for text in (choosing.price(failed), choosing.laws(failed), choosing.headline(failed, None)):
        assert "x |" not in text


def test_a_table_without_results_says_what_measures_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.tables import documents as tables

    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    others = {"learned", "gpu", "time-slow", "time-large", "peers"}
    for name, make in (row for rows in tables.TABLES.values() for row in rows.items()):
        if name not in others:
            assert make().startswith("Not measured yet: `python -m benchmarks."), name
            script = make().split("benchmarks.")[1].split("`")[0].replace(".", "/")
            assert (BENCHMARKS / f"{script}.py").exists()
    for name in ("time-slow", "time-large"):
        assert tables.TABLES["docs/measurements/time.md"][name]() == ""
    assert tables.wanted("cpu/growth.json") is None


def test_every_device_with_results_has_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.tables import documents as tables

    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    own = BENCHMARKS / "results" / "cpu"
    shutil.copytree(own, tmp_path / "cpu")
    before = tables.filled("docs/concepts/choosing.md")
    (tmp_path / "cuda").mkdir()
    for name in ("growth", "train_digits"):
        found = json.loads((own / f"{name}.json").read_text()) | {"device": "a GPU"}
        (tmp_path / "cuda" / f"{name}.json").write_text(json.dumps(found))
    after = tables.filled("docs/concepts/choosing.md")
    assert before.count("a GPU") == 0 < after.count("On a GPU:")
    assert after.count("`Truncated(last=1)` |") == 2 * before.count("`Truncated(last=1)` |")
    # Its accuracy is that of its own training runs, of which it has none here.
    headline = tables.TABLES["docs/measurements/index.md"]["price"]()
    assert headline.split("On a GPU:")[1].count("accuracy,") == 0 < headline.count("accuracy,")
    assert "(../figures/train_digits.png)" in tables.learned()
    assert "(../figures/train_digits_cuda.png)" in tables.learned()


@pytest.mark.slow
def test_documents_and_plots_follow_the_results(
    growth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.tables import documents as tables

    for name in (*tables.TABLES, *tables.PLOTS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name in tables.TABLES or (tables.ROOT / name).exists():  # a plot may wait for results
            shutil.copy(tables.ROOT / name, tmp_path / name)
    results = tmp_path / "results"
    shutil.copytree(tables.RESULTS, results)
    shutil.copy(growth, results / "cpu" / "growth.json")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", results)

    def main(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["tables", *arguments])
        tables.main()

    with pytest.raises(SystemExit, match=r"does not show the results|differs from the results"):
        main("--check")
    main()
    main("--check")
    assert "| `Checkpointed` |" in (tmp_path / "docs" / "concepts" / "choosing.md").read_text()
    found = json.loads(growth.read_text())
    found["workloads"][0]["methods"]["Unrolled"]["points"][0]["median_ms"] *= 2
    (results / "cpu" / "growth.json").write_text(json.dumps(found))
    with pytest.raises(SystemExit, match=r"docs/figures/growth\.png does not show the results"):
        main("--check")


@pytest.mark.slow
def test_convergence_learns_from_the_same_episodes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.tables import choosing

    path = tmp_path / "convergence.json"
    exact = ("--methods", "Unrolled", "MixedMode", "FirstOrder")
    common = ("--quick", "--threads", "1", "--json", str(path), "--png", str(tmp_path / "x.png"))
    run("convergence", "--data", "digits", *common, *exact)
    found = result(path)
    (one,) = found["settings"]
    curves = {n: m["curves"][0] for n, m in one["methods"].items()}
    assert [iterations for iterations, _, _ in curves["Unrolled"]] == [0, 2, 4]
    accuracies = {n: [accuracy for _, _, accuracy in curve] for n, curve in curves.items()}
    # Both are exact; of a hundred answers rounding may turn two.
    assert accuracies["Unrolled"] == pytest.approx(accuracies["MixedMode"], abs=0.02)
    assert len({a[0] for a in accuracies.values()}) == 1  # they begin with the same weights
    cosines = {n: m["cosines"][0] for n, m in one["methods"].items()}
    assert cosines["MixedMode"] == pytest.approx([1, 1], abs=1e-3)
    assert all(c < 0.999 for c in cosines["FirstOrder"])
    assert "| `FirstOrder` |" in choosing.convergence(found)


@pytest.mark.slow
def test_omniglot_runs_are_kept_beside_each_other(tmp_path: Path) -> None:
    from benchmarks.tables import omniglot

    data_beside("omniglot28.npz")
    path = tmp_path / "omniglot.json"
    for which in ("5-way/MAML/0", "5-way/MAML++/1", "5-way/MAML++/2"):
        run("omniglot", "--quick", "--only", which, "--json", str(path))
    methods = result(path)["settings"]["5-way"]
    assert {name: list(kept["runs"]) for name, kept in methods.items()} == {
        "MAML": ["0"],
        "MAML++": ["1", "2"],
    }
    assert methods["MAML++"]["setting"]["per_step_batch_norm"]
    assert "| 5-way, MAML++ |" in omniglot.runs(result(path))


@pytest.mark.slow
def test_methods_learn_from_the_same_tasks(tmp_path: Path) -> None:
    from benchmarks.tables import methods

    path = tmp_path / "methods.json"
    run("methods", "--quick", "--json", str(path))
    found = result(path)
    assert found["seeds"] == 1
    assert all(0 < row["error"] < 20 for row in found["methods"].values())
    text = methods.methods(found)
    assert "| CAVIA |" in text
    assert "A quick run" in text


def test_convergence_without_its_data_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.tables import choosing

    monkeypatch.setenv("FASTMAML_DATA", str(tmp_path))
    path = tmp_path / "convergence.json"
    with pytest.raises(SystemExit) as ended:
        run("convergence", "--quick", "--json", str(path))
    assert ended.value.code == 0
    assert "omniglot28.npz" in result(path)["absent"]
    assert "Not measured here: no omniglot28.npz" in choosing.convergence(result(path))


@pytest.mark.slow
def test_cold_start_in_fresh_processes(tmp_path: Path) -> None:
    from benchmarks.tables import choosing

    path, names = tmp_path / "cold.json", ("hand-written loop", "fastmaml", "fastmaml compiled")
    run("cold_start", "--quick", "--threads", "1", "--json", str(path), "--names", *names)
    found = result(path)
    rows = found["workloads"][0]["rows"]
    assert rows["fastmaml compiled"] == {"skipped": "takes minutes to begin: runs with --slow"}
    for name in names[:2]:
        assert rows[name]["first_call_s"] > 0
        assert rows[name]["difference_float32"] < 1e-3
        assert rows[name]["import_torch_s"] > rows[name]["import_fastmaml_s"] > 0
    assert "ahead_after" in rows["fastmaml"]
    assert "Left out: fastmaml compiled (takes minutes" in choosing.cold_start(found)


def test_ahead_counts_the_begin_and_the_gain() -> None:
    from benchmarks.programs.cold_start import ahead

    loop = {"import_fastmaml_s": 9.0, "build_s": 0.0, "first_call_s": 1.0, "later_call_s": 1.0}
    own = {"import_fastmaml_s": 1.0, "build_s": 0.5, "first_call_s": 4.0, "later_call_s": 0.5}
    # 4.5 s later with the import, and half a second gained by each call after the first.
    assert ahead("fastmaml", own, loop) == 1 + 9
    assert ahead("torch.func vmap", own, loop) == 1 + 7
    assert ahead("fastmaml", own, loop | {"later_call_s": 0.5}) is None
    assert ahead("fastmaml", own, loop | {"first_call_s": 9.0}) == 1


def test_the_suites_check_and_time(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    path = tmp_path / "suites.json"
    command = [
        *(sys.executable, "-m", "benchmarks.programs.run_suites", "--quick", "--threads", "1"),
        *("--suites", "meta_step", "--only", "sinusoid and Unrolled", "--json", str(path)),
    ]
    # Beside another process nothing is timed, and these tests may be.
    alone = {n: x for n, x in os.environ.items() if not n.startswith("PYTEST_XDIST")}
    subprocess.run(command, check=True, capture_output=True, cwd=BENCHMARKS.parent, env=alone)
    found = result(path)
    assert {"eager", "captured"} == {row["executor"] for row in found["rows"]}
    assert all(row["suite"] == "meta_step" for row in found["rows"])
    assert all(row["difference"]["float64"] <= 1e-9 for row in found["rows"])
    assert found["failed"] == {}
    assert any("compiled" in name and "minutes" in why for name, why in found["absent"].items())


def test_the_converter_keeps_rows_and_leaves_the_machines_name(tmp_path: Path) -> None:
    from benchmarks.tables import choosing

    stats = {"median": 2e-3, "q1": 1.5e-3, "q3": 2.25e-3, "rounds": 7, "iterations": 3}
    given = {"workload": "conv4", "method": "Unrolled", "steps": 5}
    parameters = {**given, "executor": "captured", "backend": "cpp"}
    raw = tmp_path / "raw.json"
    one = {
        "fullname": "benchmarks/suites/bench_meta_step.py::test_meta_step[x]",
        "params": parameters,
        "stats": {**stats, "data": [2e-3] * 21},
        "extra_info": {"title": "a network"},
    }
    raw.write_text(json.dumps({"machine_info": {"node": "its-name"}, "benchmarks": [one]}))
    path = tmp_path / "suites.json"
    run("run_suites", "--convert", str(raw), "--json", str(path))
    found = result(path)
    (row,) = found["rows"]
    assert row == {
        "suite": "meta_step",
        **parameters,
        "median_us": 2000.0,
        "quartiles_us": [1500.0, 2250.0],
        "rounds": 7,
        "calls_a_round": 3,
        "title": "a network",
    }
    assert "its-name" not in path.read_text()
    assert "| `Unrolled` | captured, cpp | 2 |" in choosing.suites(found)


def test_fits_find_the_law_and_how_far_it_is_off() -> None:
    from benchmarks.support.growth_fits import line, power

    x = [1, 2, 4, 8]
    found = line(x, [3 + 2 * v for v in x])
    assert found is not None
    assert (found.start, found.rate, found.residual) == pytest.approx((3, 2, 0))
    found = power(x, [5 * v**1.5 for v in x])
    assert found is not None
    assert (found.start, found.rate, found.residual) == pytest.approx((5, 1.5, 0))
    assert found.at(16) == pytest.approx(320)
    steep = line([1, 2, 3], [1.0, 4.0, 9.0])
    assert steep is not None
    assert steep.start == 0  # nothing costs less than nothing
    falling = line([1, 2, 3], [3.0, 2.0, 1.0])
    assert falling is not None
    assert (falling.rate, falling.residual) == (0, pytest.approx(18 / 11 - 1))
    assert line([1, 2], [1.0, 2.0]) is None
    assert math.isclose(found.residual, 0, abs_tol=1e-12)


def test_quick_results_lie_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.support import results

    monkeypatch.setattr(results, "ROOT", tmp_path)
    quick = results.place(None, "cpu", "growth", quick=True)
    assert quick == tmp_path / "runs" / "bench-quick" / "growth.json"
    assert results.place(None, "cpu", "growth") == (
        tmp_path / "benchmarks" / "results" / "cpu" / "growth.json"
    )
    assert results.place(quick, "cpu", "growth") == quick
