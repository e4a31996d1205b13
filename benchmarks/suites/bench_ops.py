"""What does every family of ops cost, forward, backward and double backward, by backend?

The rows are those of `benchmarks/support/op_cases.py`; results are compared with the definition in
float64 before anything is timed. `benchmarks/programs/ops.py` sets the same beside a loop and the
machine's bound.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.programs.ops import CLOSE, PASSES, compared, passes
from benchmarks.suites.conftest import require
from benchmarks.support.op_cases import Case, cases
from fastmaml import ops


def rows(device: str, quick: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    backends = ("reference", "cpp") if device == "cpu" else ("reference", "cuda", "triton")
    for number, case in enumerate(cases("meta")):
        if quick and any(row["family"] == case.family for row in found if row["number"] != number):
            continue
        found += [
            {"number": number, "family": case.family, "shapes": case.shapes, "kind": kind, "on": b}
            for b in backends
            # Which families a backend has is known only where it is built.
            if b == "reference" or not available(b) or case.family in ops.families(b)
            for kind in (PASSES[2:] if quick else PASSES)
        ]
    return found


def available(backend: str) -> bool:
    return ops.status()[backend].startswith("available")


@functools.lru_cache(maxsize=1)
def real(device: str) -> list[Case]:
    torch.manual_seed(0)
    return list(cases(device))


@functools.lru_cache(maxsize=1)
def exact(number: int, device: str) -> dict[str, Any]:
    case = real(device)[number]
    wide = replace(case, inputs=[x.double() for x in case.inputs])
    return {kind: run() for kind, run in passes(wide, "reference").items()}


def test_op(
    number: int,
    family: str,
    shapes: str,
    kind: str,
    on: str,
    device: str,
    timed: Callable[..., None],
) -> None:
    require(on)
    case = real(device)[number]
    assert (case.family, case.shapes) == (family, shapes)
    run, expected = passes(case, on)[kind], exact(number, device)[kind]
    error = compared(case, on, run(), expected)
    definition = passes(case, "reference")[kind]()
    assert error <= max(CLOSE, 4 * compared(case, "reference", definition, expected))
    timed(run, difference=error)
