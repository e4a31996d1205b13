"""`plan_memory`: does a meta-step of such a model fit, and how must it run for that?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, final, get_args

import torch

from fastmaml.gradients import Checkpointed, FirstOrder, GradientMethod, MixedMode, Unrolled
from fastmaml.integrations.transformers.adapters import Lora
from fastmaml.maml.settings import require_choice, require_count
from fastmaml.measure.planning import arguments
from fastmaml.measure.planning.meta_step import Standing, StepBytes, Subject, step_bytes
from fastmaml.measure.planning.plan_text import plan_text
from fastmaml.measure.planning.stand_in import configuration

METHODS: tuple[GradientMethod, ...] = (Unrolled(), Checkpointed(), MixedMode(), FirstOrder())

Layers = Literal["auto", "kept", "checkpointed"]

LAYERS: tuple[Layers, ...] = get_args(Layers)

BACKENDS = ("kernels", "reference")

ALLOWANCE_BYTES = 10**9
"""What a process holds besides: the CUDA context with its kernels, and cuBLAS's workspaces."""

ALLOWANCE_SHARE = 0.05
"""Of the meta-step: what an allocator loses to rounding and between its blocks."""


@final
@dataclass(frozen=True)
class Way:
    """One way to run the meta-step, and its bytes.

    Attributes:
        method: the gradient method.
        tasks_at_once: how many tasks run at a time (``MAML(tasks_chunk=...)``).
        layers_checkpointed: whether the model's layers keep their inputs only.
        held: bytes that the inner steps hold: one copy a step of what adapts (`Checkpointed`,
            `MixedMode`), or every step's graph (`Unrolled`); a part of `step`.
        away: bytes of inner steps that wait in the CPU's memory (``offload=True``), besides.
        step: bytes of the meta-step's peak, besides what is there before it; of the first call's,
            which tries more.
        allowance: bytes for what is not counted.
        eager: bytes in all with ``executor="eager"``.
        recorded: bytes in all where it is recorded, which keeps a copy of weights and data; None
            for a method that no recording can hold (``offload=True``).
        memory: bytes that there are.
    """

    method: GradientMethod
    tasks_at_once: int
    layers_checkpointed: bool
    held: int
    away: int
    step: int
    allowance: int
    eager: int
    recorded: int | None
    memory: int

    @property
    def fits(self) -> Literal["recorded", "eager", ""]:
        """How it fits: by default, only if nothing is recorded, or not at all."""
        if self.recorded is not None and self.recorded <= self.memory:
            return "recorded"
        return "eager" if self.eager <= self.memory else ""

    def as_dict(self) -> dict[str, Any]:
        """Its figures, for JSON."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**own, "method": str(self.method), "fits": self.fits}


@final
@dataclass(frozen=True)
class MemoryPlan:
    """What a meta-step needs by gradient method: print it.

    Attributes:
        name: of the model.
        subject: the model, adapters and meta-batch.
        standing: what is there before a meta-step.
        memory: bytes that there are.
        ways: of each gradient method the first way that fits, of those that were tried, else the
            one that needs least.
    """

    name: str
    subject: Subject
    standing: Standing
    memory: int
    ways: tuple[Way, ...]

    @property
    def fitting(self) -> Way | None:
        """The first exact way that fits, if one does with its layers kept; None where none does."""
        ways = sorted(self.ways, key=lambda way: way.layers_checkpointed)
        return next((w for w in ways if w.fits and w.method.exact), None)

    def __str__(self) -> str:
        return plan_text(self)

    def as_dict(self) -> dict[str, Any]:
        """Its figures in bytes, for JSON; `text` is what is printed."""
        standing = asdict(self.standing)
        ways = [way.as_dict() for way in self.ways]
        return {
            "name": self.name,
            "memory": self.memory,
            **standing,
            "ways": ways,
            "text": str(self),
        }


def plan_memory(
    model: Any,
    *,
    lora: Lora | int | None = 8,
    tasks: int = 2,
    steps: int = 5,
    tokens: int = 512,
    support: int = 4,
    query: int = 4,
    methods: GradientMethod | Sequence[GradientMethod] = METHODS,
    memory: int | str = "80GiB",
    tasks_at_once: int | None = None,
    layers: Layers = "auto",
    dtype: torch.dtype = torch.bfloat16,
    backend: Literal["kernels", "reference"] = "kernels",
    progress: Callable[[str], None] = lambda line: None,
) -> MemoryPlan:
    """Estimate the memory of a meta-step of a language model on a GPU, without running it.

    The meta-step runs on fake tensors, which have shapes and no memory, and their bytes are
    followed from operation to operation; a model of many like layers is followed with 3 and with 4
    of them. Counted are weights, meta-batch, the meta-parameters' ``.grad`` and AdamW's moments,
    and the meta-step's peak. Not counted, and allowed for by 1 GB and 5% of the meta-step: the CUDA
    context, workspaces of libraries, scratch memory of kernels, and what the allocator loses.

    Each gradient method is tried with all tasks at once, then with fewer, then one at a time with
    checkpointed layers, until it fits. Nothing is loaded: no weights are needed, nor a GPU.

    Args:
        model: a name of `KNOWN_MODELS`, a folder with a ``config.json``, a name on the Hugging Face
            hub, or a configuration of transformers: of a decoder, whose loss is `losses.causal`, or
            of an encoder, with `losses.classification`.
        lora: adapters, or their rank, with all else frozen; None where everything adapts.
        tasks: of the meta-batch.
        steps: inner steps of plain gradient descent.
        tokens: of a row.
        support: rows of a task's support set.
        query: rows of its query set.
        methods: gradient methods, or one. With ``offload=True`` as they run on a GPU, their inner
            steps in the CPU's memory.
        memory: of the device, in bytes or such as "80GiB".
        tasks_at_once: how many tasks run at a time; None tries.
        layers: whether the model's layers keep what their derivatives need, or their inputs only
            ("checkpointed"); "auto" tries.
        dtype: of the weights. peft makes adapters of a decoder in float32 all the same.
        backend: "kernels" for fastmaml's, as on a GPU by default; "reference" for PyTorch's
            operations.
        progress: is told what is looked at.

    Returns:
        `MemoryPlan`.

    Raises:
        ImportError: transformers (or, for `lora`, peft) is not installed.
        ValueError: there is no such model, it cannot run on tensors without numbers, peft knows no
            targets for its adapters, a number is not positive, `memory` is text without a unit or
            less than 1 MiB, more tasks at once than tasks.

    Cost: about 10 s for a gradient method and a way to run it, whatever the model's size.
    """
    limit, adapters = arguments.memory_of(memory), arguments.adapters_of(lora)
    chosen = arguments.methods_of(methods)
    arguments.require_dtype(dtype)
    require_choice("layers", layers, LAYERS)
    require_choice("backend", backend, BACKENDS)
    counts = {"tasks": tasks, "steps": steps, "tokens": tokens, "support": support, "query": query}
    for name, value in counts.items():
        require_count(name, value, least=1)
    arguments.require_chunk(tasks, tasks_at_once)
    config = configuration(model)
    arguments.require_tokens(config, tokens)
    kernels = "shapes" if backend == "kernels" else "reference"
    subject = Subject(config, adapters, dtype, tasks, steps, (support, query), tokens, kernels)
    standing = Standing.of(subject)
    finder = _Finder(subject, standing, limit, progress)
    ways = tuple(finder.way(method, tasks_at_once, layers) for method in chosen)
    name = model if isinstance(model, str) else getattr(config, "model_type", "model")
    return MemoryPlan(str(name), subject, standing, limit, ways)


@dataclass(frozen=True)
class _Finder:
    """Looks for a way that fits."""

    subject: Subject
    standing: Standing
    memory: int
    progress: Callable[[str], None]
    known: dict[tuple[GradientMethod, int, bool], StepBytes] = field(default_factory=dict)

    def way(self, method: GradientMethod, chunk: int | None, layers: Layers) -> Way:
        """The first that fits, else the one that needs least."""
        tried: list[Way] = []
        best = "eager" if method.unrecordable else "recorded"
        for size, checkpointed in self._choices(chunk, layers):
            kept = "checkpointed" if checkpointed else "kept"
            self.progress(f"{method}: {size} task{'s' * (size > 1)} at a time, layers {kept}")
            tried.append(self._priced(method, size, checkpointed))
            if tried[-1].fits == best:
                return tried[-1]
        fitting = [way for way in tried if way.fits]
        return fitting[0] if fitting else min(tried, key=lambda way: way.eager)

    def _choices(self, chunk: int | None, layers: Layers) -> Iterator[tuple[int, bool]]:
        sizes = [self.subject.tasks] if chunk is None else [chunk]
        while chunk is None and sizes[-1] > 1:
            sizes.append(-(-sizes[-1] // 2))
        if layers == "checkpointed":
            yield from ((size, True) for size in sizes)
            return
        yield from ((size, False) for size in sizes)
        if layers == "auto":
            yield sizes[-1], True

    def _priced(self, method: GradientMethod, chunk: int, checkpointed: bool) -> Way:
        found, standing = self._step(method, chunk, checkpointed), self.standing
        step = found.peak
        if method.tried_once:  # its first call compares it with reverse mode, on one task
            reverse = Checkpointed(offload=method.steps_away(self.subject.steps) > 0)
            step = max(step, self._step(reverse, 1, checkpointed).peak)
        allowance = ALLOWANCE_BYTES + round(ALLOWANCE_SHARE * step)
        # .grad, and AdamW's two moments
        eager = standing.weights + standing.data + 3 * standing.learned_weights + step + allowance
        recorded = None if method.unrecordable else eager + standing.weights + standing.data
        return Way(
            method, chunk, checkpointed, found.held, found.away, step, allowance, eager, recorded,
            self.memory,
        )  # fmt: skip

    def _step(self, method: GradientMethod, chunk: int, checkpointed: bool) -> StepBytes:
        key = method, chunk, checkpointed
        if key not in self.known:
            self.known[key] = step_bytes(self.subject, *key)
        return self.known[key]
