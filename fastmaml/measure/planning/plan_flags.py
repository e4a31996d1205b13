"""The flags of ``fastmaml train instructions`` that run what was planned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastmaml.gradients.names import NUMBERED, name_of
from fastmaml.measure.planning.stand_in import generates

if TYPE_CHECKING:
    from fastmaml.measure.planning.meta_step import Subject
    from fastmaml.measure.planning.plan import Way

COMMAND = "fastmaml train instructions"


def in_flags(subject: Subject, way: Way) -> list[str]:
    """Lines with the flags, and on the weights' dtype; none where the model does not generate."""
    if not generates(subject.config):
        return []
    if absent := _without_flag(subject, way):
        return [f"{COMMAND} has no flag for {absent}: that is for Python alone."]
    words = [*_meta_batch(subject), *_weights(subject), *_method(way)]
    words += ["--tasks-chunk", str(way.tasks_at_once)]
    if way.fits == "eager":
        words += ["--executor", "eager"]
    if way.fits == "eager" or subject.backend == "reference":
        words += ["--backend", backend_of(subject)]
    said = [f"As flags: {COMMAND} {' '.join(words)}"]
    if subject.dtype == torch.bfloat16:
        said.append(
            "Without --base bfloat16 its weights are in float32, which takes more: fastmaml bench "
            "--plan MODEL --dtype float32 plans that."
        )
    return said


def backend_of(subject: Subject) -> str:
    """The backend that was planned with, by name."""
    return "reference" if subject.backend == "reference" else "triton"


def _without_flag(subject: Subject, way: Way) -> str:
    """What there is no flag for; empty where there are flags for all of it."""
    if way.layers_checkpointed:
        return "checkpointed layers"
    if subject.lora is None:
        return "" if subject.dtype == torch.float32 else f"all weights in {_short(subject.dtype)}"
    if subject.lora.targets is not None:
        return "the layers that have adapters"
    known = (torch.float32, torch.bfloat16)
    return "" if subject.dtype in known else f"weights in {_short(subject.dtype)}"


def _meta_batch(subject: Subject) -> list[str]:
    support, query = subject.rows
    sizes = {"tasks": subject.tasks, "support": support, "query": query}
    sizes |= {"inner-steps": subject.steps, "max-length": subject.tokens}
    return [word for name, size in sizes.items() for word in (f"--{name}", str(size))]


def _weights(subject: Subject) -> list[str]:
    if subject.lora is None:
        return ["--scope", "all"]
    base = ["--base", "bfloat16"] if subject.dtype == torch.bfloat16 else []
    return ["--scope", "lora", "--lora-rank", str(subject.lora.rank), *base]


def _method(way: Way) -> list[str]:
    name, number, offload = name_of(way.method)
    words = ["--gradient", name]
    if number is not None:
        words += [f"--{NUMBERED[name]}", str(number)]
    return words + ["--offload"] * offload


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
