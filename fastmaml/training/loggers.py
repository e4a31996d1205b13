"""Metrics to Weights & Biases and MLflow, as callbacks; each is imported where it is used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from fastmaml.training.callbacks import Callback
from fastmaml.training.config import LoopConfig
from fastmaml.training.config.checks import logger_names
from fastmaml.training.run_folder import numbers

if TYPE_CHECKING:
    from fastmaml.training.outer_loop import OuterLoop
    from fastmaml.training.summary import Evaluation

PROJECT = "fastmaml"


def loggers_of(config: LoopConfig) -> list[Callback]:
    """Those that a configuration names; TensorBoard's files belong to the run's folder.

    Raises:
        ImportError: what one needs is not installed.
    """
    kinds = {"wandb": WeightsAndBiases, "mlflow": MLflow}
    return [kinds[name]() for name in logger_names(config.loggers) if name in kinds]


@final
class WeightsAndBiases(Callback):
    """Metrics to Weights & Biases (the extra ``wandb``), in the project "fastmaml".

    Its own variables say where they go, such as ``WANDB_PROJECT`` and ``WANDB_MODE=offline``. A
    resumed run goes on with the same one there.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(_missing("wandb")) from error
        self._wandb: Any = wandb
        self._run: Any = None
        self._id: str | None = None

    def on_start(self, trainer: OuterLoop) -> None:
        """Begin a run there, or go on with it."""
        config = trainer.config
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=config.name or config.title,
            config=config.as_dict(),
            dir=str(trainer.folder),
            id=self._id,
            resume=None if self._id is None else "allow",
        )
        self._id = self._run.id

    def on_iteration(self, trainer: OuterLoop, line: Mapping[str, Any]) -> None:
        """Log the iteration's numbers."""
        self._log(line)

    def on_validation(self, trainer: OuterLoop, line: Mapping[str, Any]) -> None:
        """Log the validation's numbers."""
        self._log({"iteration": line["iteration"], "validation": line["validation"]})

    def on_end(self, trainer: OuterLoop, found: Evaluation | None) -> None:
        """Say how the test went, and close the run."""
        if found is not None:
            for name, value in numbers({"test": found.as_dict()}):
                self._run.summary[name] = value
        self._run.finish(exit_code=int(found is None))

    def _log(self, line: Mapping[str, Any]) -> None:
        self._run.log(dict(numbers(line)), step=line["iteration"])

    def state_dict(self) -> dict[str, Any]:
        """Which run it is there."""
        return {"id": self._id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with that run."""
        self._id = state["id"]


@final
class MLflow(Callback):
    """Metrics to MLflow (the extra ``mlflow``), in the experiment "fastmaml".

    Its own variables say where they go, such as ``MLFLOW_TRACKING_URI`` and
    ``MLFLOW_EXPERIMENT_NAME``. A resumed run goes on with the same one there.

    Raises:
        ImportError: mlflow is not installed.
    """

    def __init__(self) -> None:
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise ImportError(_missing("mlflow")) from error
        self._client: Any = None
        self._new: Any = MlflowClient
        self._id: str | None = None

    def on_start(self, trainer: OuterLoop) -> None:
        """Begin a run there, or go on with it."""
        client, config = self._new(), trainer.config
        self._client = client
        if self._id is not None:
            client.update_run(self._id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = client.get_experiment_by_name(name)
        place = client.create_experiment(name) if experiment is None else experiment.experiment_id
        self._id = client.create_run(place, run_name=config.name or config.title).info.run_id
        for key, value in config.as_dict().items():
            client.log_param(self._id, key, value)

    def on_iteration(self, trainer: OuterLoop, line: Mapping[str, Any]) -> None:
        """Log the iteration's numbers."""
        self._log(line, line["iteration"])

    def on_validation(self, trainer: OuterLoop, line: Mapping[str, Any]) -> None:
        """Log the validation's numbers."""
        self._log({"validation": line["validation"]}, line["iteration"])

    def on_end(self, trainer: OuterLoop, found: Evaluation | None) -> None:
        """Say how the test went, and close the run."""
        if found is not None:
            self._log({"test": found.as_dict()}, trainer.iteration)
        self._client.set_terminated(self._id, "KILLED" if found is None else "FINISHED")

    def _log(self, line: Mapping[str, Any], iteration: int) -> None:
        for name, value in numbers(line):
            self._client.log_metric(self._id, name, value, step=iteration)

    def state_dict(self) -> dict[str, Any]:
        """Which run it is there."""
        return {"id": self._id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with that run."""
        self._id = state["id"]


def _missing(name: str) -> str:
    return f'loggers: {name} is not installed: pip install "fastmaml[{name}]", or leave it out.'
