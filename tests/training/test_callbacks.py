"""What is told how a run goes: callbacks, and loggers, which are callbacks too."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from sinusoid_runs import Watched, lines, trainer

from fastmaml.training.callbacks import Callback
from fastmaml.training.outer_loop import OuterLoop
from fastmaml.training.summary import Evaluation


class Diary(Callback):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_start(self, trainer: OuterLoop) -> None:
        self.told.append("start")

    def on_iteration(self, trainer: OuterLoop, line: Mapping[str, Any]) -> None:
        assert trainer.iteration == line["iteration"]
        self.told.append(line["iteration"])

    def on_validation(self, trainer: OuterLoop, line: Mapping[str, Any]) -> None:
        self.told.append(("validation", line["validation"]["loss"]))

    def on_end(self, trainer: OuterLoop, found: Evaluation | None) -> None:
        self.told.append(("end", found))


def test_what_a_callback_is_told(tmp_path: Path) -> None:
    diary = Diary()
    run = trainer(tmp_path, callbacks=[diary], iterations=4, executor="eager")
    found = run.fit()
    seen = [x["validation"]["loss"] for x in lines(tmp_path) if "validation" in x]
    first, third, fourth = (("validation", x) for x in seen)
    assert diary.told == ["start", first, 1, 2, 3, third, 4, fourth, ("end", found)]


def test_it_may_stop_the_run(tmp_path: Path) -> None:
    class Enough(Callback):
        def on_iteration(self, trainer: OuterLoop, line: Mapping[str, Any]) -> None:
            if trainer.iteration == 2:
                trainer.stop()

    run = trainer(tmp_path, callbacks=[Enough()], executor="eager")
    run.fit()
    assert run.iteration == 2
    assert (tmp_path / "result.json").exists(), "tested"
    again = trainer(tmp_path, executor="eager")  # without it, it goes on
    again.resume(tmp_path / "last.safetensors")
    again.fit()
    assert again.iteration == 10


def test_it_hears_of_the_end_however_the_run_ends(tmp_path: Path) -> None:
    def crash() -> None:
        raise OSError("the disk is gone")

    diary = Diary()
    with pytest.raises(OSError, match="the disk"):
        trainer(tmp_path, Watched(3, crash), callbacks=[diary], executor="eager").fit()
    assert diary.told[-1] == ("end", None)


class StandIn:
    """wandb and mlflow, as far as they are used."""

    def __init__(self) -> None:
        self.runs: list[SimpleNamespace] = []

    def wandb(self) -> ModuleType:
        module = ModuleType("wandb")

        def init(**given: Any) -> Any:
            logged: list[Any] = []
            run = SimpleNamespace(
                given=given,
                id=given["id"] or "abc",
                logged=logged,
                summary={},
                log=lambda values, step: logged.append((step, values)),
                finish=lambda exit_code: setattr(run, "code", exit_code),
            )
            self.runs.append(run)
            return run

        module.init = init  # type: ignore[attr-defined]
        return module

    def mlflow(self) -> ModuleType:
        stand_in, module = self, ModuleType("mlflow.tracking")

        class MlflowClient:
            def get_experiment_by_name(self, name: str) -> Any:
                return SimpleNamespace(experiment_id="7") if name == "there" else None

            def create_experiment(self, name: str) -> str:
                return name

            def create_run(self, experiment: str, run_name: str) -> Any:
                info = SimpleNamespace(run_id="m1")
                run = SimpleNamespace(
                    info=info, of=experiment, name=run_name, metrics=[], params={}
                )
                stand_in.runs.append(run)
                return run

            def update_run(self, run_id: str, status: str) -> None:
                stand_in.runs[0].again = run_id, status

            def log_param(self, run_id: str, key: str, value: Any) -> None:
                stand_in.runs[0].params[key] = value

            def log_metric(self, run_id: str, key: str, value: float, step: int) -> None:
                stand_in.runs[0].metrics.append((step, key, value))

            def set_terminated(self, run_id: str, status: str) -> None:
                stand_in.runs[0].status = run_id, status

        module.MlflowClient = MlflowClient  # type: ignore[attr-defined]
        return module


def crash() -> None:
    raise OSError("the disk is gone")


def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", stand_in.wandb())
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    named: dict[str, Any] = {"loggers": "wandb", "name": "first", "executor": "eager"}
    with pytest.raises(OSError, match="the disk"):
        trainer(tmp_path, Watched(7, crash), **named).fit()
    again = trainer(tmp_path, **named)
    again.resume(tmp_path / "last.safetensors")
    found = again.fit()
    first, second = stand_in.runs
    assert (first.given["project"], first.given["name"]) == ("fastmaml", "first")
    assert (first.given["id"], first.given["resume"], first.code) == (None, None, 1)
    assert (second.given["id"], second.given["resume"], second.code) == ("abc", "allow", 0)
    assert first.given["config"] == again.config.as_dict()
    assert first.given["dir"] == str(tmp_path)
    assert second.summary["test/loss"] == found.means[-1]
    written = {x["iteration"]: x for x in lines(tmp_path)}
    for step, values in second.logged:
        for name in ("loss", "lr"):
            assert values.get(name, written[step].get(name)) == written[step].get(name)
    shown = [values for step, values in second.logged if step == 9 and "validation/loss" in values]
    assert [x["validation/loss"] for x in shown] == [written[9]["validation"]["loss"]]


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", stand_in.mlflow())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "there")
    settings: dict[str, Any] = {"loggers": "mlflow", "executor": "eager"}
    run = trainer(tmp_path, **settings, schedule="constant", iterations=3)
    run.fit()
    (made,) = stand_in.runs
    assert (made.of, made.name, made.status) == ("7", "meta-training", ("m1", "FINISHED"))
    assert made.params["meta_lr"] == 0.01
    losses = [(step, value) for step, key, value in made.metrics if key == "loss"]
    assert losses == [(x["iteration"], x["loss"]) for x in lines(tmp_path) if "loss" in x]
    assert any(key == "test/loss" for _, key, _ in made.metrics)
    longer = trainer(tmp_path, **settings, schedule="constant", iterations=4)
    longer.resume(tmp_path / "last.safetensors")
    longer.fit()
    assert len(stand_in.runs) == 1
    assert made.again == ("m1", "RUNNING")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.tracking", None)
    with pytest.raises(
        ImportError, match=rf'{name} is not installed: pip install "fastmaml\[{name}'
    ):
        trainer(tmp_path, loggers=f"tensorboard,{name}")


def test_tensorboard_without_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    trainer(tmp_path, loggers="tensorboard", iterations=1, executor="eager").fit()
    assert list((tmp_path / "tensorboard").iterdir())
    assert not (tmp_path / "curves.png").exists()
