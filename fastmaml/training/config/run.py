"""`RunConfig`: what all runs of ``fastmaml train`` have; `TrainConfig`: images and sinusoids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastmaml.engine.recording.executors import ExecutorName
from fastmaml.gradients.names import MethodName
from fastmaml.ops._load import Backend
from fastmaml.training.config.loop import LoopConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig(LoopConfig):
    """Outer loop, inner loop and machine; what to learn is said by the classes made of it."""

    dataset: str = ""
    """Data set."""
    tasks: int = 16
    """Episodes a meta-batch."""
    inner_lr: float = 0.4
    """Learning rate of the inner loop (what learned rates start from)."""
    inner_steps: int = 1
    """Inner steps a task."""
    rule: Literal[
        "sgd", "momentum", "adam", "meta-sgd", "lslr", "meta-curvature", "kfo", "alfa"
    ] = "sgd"
    """How parameters move in the inner loop; those after adam learn how."""
    proximal: float = 0.0
    """Strength of the inner loop's pull to where a task began (implicit needs one, such as 2)."""
    inner_momentum: float = 0.9
    """Momentum of the rule of that name."""
    gradient: Literal["auto", MethodName] = "auto"
    """How the inner loop is differentiated (auto: the best exact method)."""
    segments: int | None = None
    """Parts in which checkpointed and mixed-mode keep the inner loop (none: every step)."""
    offload: bool = False
    """Keep the inner steps of checkpointed and mixed-mode in the CPU's memory."""
    last: int = 1
    """Inner steps that truncated differentiates."""
    per_step_batch_norm: bool = False
    """BatchNorm with a weight and a bias for each inner step, which do not adapt (MAML++)."""
    scope: str = "all"
    """What adapts: all, head, body, or a pattern of parameter names."""
    tasks_chunk: int | None = None
    """Tasks computed at once (none: as many as fit)."""
    executor: Literal["auto", ExecutorName] = "auto"
    """How the meta-step runs (auto: recorded where that is possible)."""
    backend: Literal["auto", Backend] = "auto"
    """What runs the model's layers (auto: the fastest there is)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of model and data."""
    threads: int | None = None
    """CPU threads (none: PyTorch's default)."""
    seed: int = 0
    """Seed of initialization, episodes and dropout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.autocast != "none" and self.dtype == "float64":
            raise ValueError(
                f"autocast={self.autocast!r} leaves dtype='float64' as it is: give one of them."
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """A whole run on images or sinusoids: data, model, inner loop and outer loop.

    Raises:
        ValueError: a value of the wrong type or out of range.
    """

    dataset: Literal["digits", "omniglot", "sinusoid"] = "digits"
    """Data set."""
    root: str | None = None
    """Folder with the data set's files (Omniglot only)."""
    download: bool = True
    """Fetch missing files of the data set."""
    protocol: Literal["alphabets", "random"] = "alphabets"
    """Omniglot's test classes: the evaluation alphabets, or 423 characters at random."""
    validation_alphabets: int = 5
    """Omniglot's background alphabets that are validated on in place of trained on."""
    ways: int = 5
    """Classes an episode (not used for regression)."""
    shots: int = 1
    """Support examples a class."""
    queries: int = 5
    """Query examples a class."""
    filters: int = 64
    """Channels of each convolution; hidden units of the sinusoid's network."""
    pool: Literal["stride", "max"] = "stride"
    """How the convolutional network shrinks the image."""
    metrics: str | None = None
    """What else is measured, divided by commas, such as f1,matthews (none: accuracy or loss)."""

    @property
    def title(self) -> str:
        """Such as "digits, 5-way 1-shot"."""
        task = "regression" if self.dataset == "sinusoid" else f"{self.ways}-way"
        return f"{self.dataset}, {task} {self.shots}-shot"
