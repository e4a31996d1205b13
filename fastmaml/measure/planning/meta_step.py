"""The bytes of a meta-step of a model that is not there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._pytree import tree_leaves

from fastmaml import losses
from fastmaml.engine.memory.estimate import STEPS, Estimator
from fastmaml.engine.memory.live import Alive
from fastmaml.engine.memory.measurement import Measurement, watched
from fastmaml.engine.model.inventory import take_inventory
from fastmaml.engine.step.program import Call
from fastmaml.episodes.batch import Batch, Episodes
from fastmaml.gradients import GradientMethod
from fastmaml.integrations.transformers.adapters import Lora
from fastmaml.integrations.transformers.scopes import lora as adapters
from fastmaml.maml import MAML
from fastmaml.maml.admit import admit
from fastmaml.measure.planning.layers import FEWEST, peak_of
from fastmaml.measure.planning.stand_in import generates, layers_alike, stand_in, with_layers
from fastmaml.measure.planning.trace import Event, Trace

_GPU = torch.device("cuda")
"""Where the meta-step would run; none needs to be there."""

_WITHOUT_VALUES = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)


@dataclass(frozen=True)
class Subject:
    """A model, adapters and a meta-batch of which nothing is there.

    Attributes:
        config: of transformers.
        lora: adapters; None where everything adapts.
        dtype: of the weights.
        tasks: of the meta-batch.
        steps: inner steps.
        rows: of the support set of a task, and of its query set.
        tokens: of a row.
        backend: "shapes" for fastmaml's kernels, "reference" for PyTorch's operations.
    """

    config: Any
    lora: Lora | None
    dtype: torch.dtype
    tasks: int
    steps: int
    rows: tuple[int, int]
    tokens: int
    backend: str

    def model(self, checkpointed: bool = False) -> nn.Module:
        """The whole of it, of fake tensors; call it inside a `FakeTensorMode`."""
        return stand_in(self.config, self.lora, self.dtype, checkpointed)

    def episodes(self) -> Episodes:
        """Tokens, masks and labels; likewise."""
        return Episodes(*(self._batch(rows) for rows in self.rows))

    def _batch(self, rows: int) -> Batch:
        tokens = torch.empty((self.tasks, rows, self.tokens), dtype=torch.int64)
        inputs = {"input_ids": tokens, "attention_mask": torch.empty_like(tokens)}
        labels = tokens if generates(self.config) else tokens[:, :, 0]
        return Batch(inputs, torch.empty_like(labels))

    def call(self, model: nn.Module, method: GradientMethod) -> Call:
        """The meta-step before it is decided how it runs; likewise."""
        maml = MAML(
            model,
            lr=0.1,
            steps=self.steps,
            loss=losses.causal if generates(self.config) else losses.classification,
            scope="all" if self.lora is None else adapters(model),
            gradient=method,
            executor="eager",
            backend="reference",
        )
        seeds = torch.empty(self.tasks, dtype=torch.int64)
        return admit(maml, take_inventory(model), self.episodes(), self.steps, "eager", seeds=seeds)


class StepBytes(NamedTuple):
    """Bytes of a meta-step, besides what stood there before.

    Attributes:
        peak: at most.
        held: of it, what the inner steps hold.
        away: what of them waits in the CPU's memory, besides.
    """

    peak: int
    held: int
    away: int


@dataclass(frozen=True)
class Standing:
    """What is there before a meta-step.

    Attributes:
        parameters: how many, tied ones once.
        learned: how many of them are trainable.
        weights: bytes of parameters and buffers.
        learned_weights: bytes of those that are trainable.
        data: bytes of the meta-batch.
    """

    parameters: int
    learned: int
    weights: int
    learned_weights: int
    data: int

    @classmethod
    def of(cls, subject: Subject) -> Standing:
        """By a model without memory."""
        with FakeTensorMode():
            model = subject.model()
            own = list(model.parameters())
            trainable = [p for p in own if p.requires_grad]
            data = [x for x in tree_leaves(subject.episodes().tree()) if isinstance(x, Tensor)]
            return cls(
                sum(p.numel() for p in own),
                sum(p.numel() for p in trainable),
                sum(x.nbytes for x in (*own, *model.buffers())),
                sum(p.nbytes for p in trainable),
                sum(x.nbytes for x in data),
            )


def step_bytes(
    subject: Subject, method: GradientMethod, chunk: int, checkpointed: bool
) -> StepBytes:
    """What a meta-step of such a way to run it needs, on a GPU.

    The meta-step of at most two inner steps runs on fake tensors, of a model with few layers and of
    one with a layer more where its layers are alike; what more layers, inner steps and chunks of
    tasks add follows from these.

    Args:
        subject: what it is of.
        method: how it is differentiated.
        chunk: how many tasks run at a time.
        checkpointed: whether layers keep their inputs only.
    """
    watch = Watch(subject, method, chunk, checkpointed)
    found = watch.measurement()
    with FakeTensorMode():
        whole = chunked(subject.call(subject.model(), method), chunk)
        estimator = Estimator(whole, subject.tasks, subject.steps, 0, _GPU)
        law = estimator.law(found, method, chunk)
    step = found.growth * min(chunk, subject.tasks)
    return StepBytes(
        law.peak(min(chunk, subject.tasks), subject.steps),
        round(step * method.on(_GPU).held_steps(subject.steps)),
        round(step * method.on(_GPU).steps_away(subject.steps)),
    )


def chunked(call: Call, chunk: int) -> Call:
    """The same with so many tasks at a time."""
    batched = replace(call.program.forward, batched=chunk > 1)
    return call.by(chunk=chunk, forward=batched)


@dataclass(frozen=True)
class Watch:
    """Runs small meta-steps without memory."""

    subject: Subject
    method: GradientMethod
    chunk: int
    checkpointed: bool

    def measurement(self) -> Measurement:
        """Of the whole model's."""
        layers = layers_alike(self.subject.config)
        if layers is not None and layers > 2 * FEWEST:
            few, more = (self.of(FEWEST + i) for i in range(2))
            peak = peak_of(few[1], more[1], layers)
            if peak is not None:
                return _line(few[0], more[0], layers)._replace(peak=Alive(peak, 0))
        return self.of(None)[0]

    def of(self, layers: int | None) -> tuple[Measurement, list[Event]]:
        """Of a model with so many layers; None for all of them."""
        config = self.subject.config
        config = config if layers is None else with_layers(config, layers)
        subject = replace(self.subject, config=config)
        with FakeTensorMode():
            call = chunked(subject.call(subject.model(self.checkpointed), self.method), self.chunk)
            steps, method = min(subject.steps, STEPS), self.method.holding_all()
            forward = replace(call.program.forward, backend=subject.backend)
            call = call.by(steps=steps, method=method, forward=forward).tried(self.chunk)
            trace = Trace()
            try:
                found = watched(call, 1.0, memory=trace)
            except _WITHOUT_VALUES as error:
                raise _without_numbers(config, error) from error
            except AssertionError as error:  # of a tensor that is no fake one
                if "FakeTensor" not in str(error):
                    raise
                raise _without_numbers(config, error) from error
        return found._replace(peak=Alive(found.peak.bytes, 0)), trace.events


def _without_numbers(config: Any, error: Exception) -> ValueError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(
        f"{config.model_type} cannot run on tensors without numbers ({reason}): measure it with "
        "fastmaml bench module."
    )


def _line(few: Measurement, more: Measurement, layers: int) -> Measurement:
    """What is linear in the layers."""

    def along(a: float, b: float) -> float:
        return a + (layers - FEWEST) * (b - a)

    return few._replace(
        growth=along(few.growth, more.growth), outputs=along(few.outputs, more.outputs)
    )
