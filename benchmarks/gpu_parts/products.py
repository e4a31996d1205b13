"""Linear and convolution, with the members that are their derivatives, beside cuBLAS and cuDNN."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator

import torch

from benchmarks.gpu_parts.answer import Answer
from benchmarks.programs import triton_kernels
from benchmarks.programs.triton_kernels import MODES, Work, convolutions, linears, tiny

ROUNDS = 8


def main(answer: Answer) -> None:
    """In float32 first: it is what a meta-step runs in unless told otherwise."""
    if answer.small:
        tiny()
    for mode, (dtype, precision) in MODES.items():
        if answer.device == "cpu" and mode == "bfloat16":
            continue  # Triton's interpreter multiplies it wrongly
        torch.backends.cuda.matmul.fp32_precision = precision
        torch.backends.cudnn.conv.fp32_precision = precision
        for work in turn_about(linears(dtype), convolutions(dtype)):
            if answer.left < 4 and not answer.small:
                answer.found["stopped_in"] = mode
                break
            what = f"{mode} {work.name}"
            if not answer.begins(what):
                continue
            with answer.guarding(what):
                row = triton_kernels.measure(work, mode, 2 if answer.small else ROUNDS)
                answer.row(**row)
                if wrong := row.get("wrong"):
                    answer.fail(wrong)
    ratios: dict[str, dict[str, list[float]]] = {}
    for row in answer.found["rows"]:
        if "of_the_best_rival" in row:
            member = row["work"].split()[0].removeprefix("task_")
            of = ratios.setdefault(row["mode"], {}).setdefault(member, [])
            of.append(row["of_the_best_rival"])
    for mode, members in ratios.items():
        told = (f"{m} {statistics.median(x):.2f} (to {max(x):.2f})" for m, x in members.items())
        answer.say(f"{mode}, of the best rival's time: {', '.join(told)}")


def turn_about(*families: Iterator[Work]) -> Iterator[Work]:
    """One of each in turn, so that neither is left out where time is short."""
    for works in itertools.zip_longest(*families):
        yield from (work for work in works if work is not None)
