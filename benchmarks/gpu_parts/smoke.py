"""Every raw op, through its op's value and two derivatives, against the definition on the CPU."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.gpu_parts.answer import Answer
from benchmarks.gpu_parts.pool import Check, checked, processes

EXACT = 1e-9  # relative, over all results, in float64
ROUNDED = 1e-4  # the same in float32, where the definition itself is nearer than a quarter of it
BACKENDS = {"cuda": ("cuda", "triton"), "cpu": ("cpp", "triton")}


def main(answer: Answer) -> None:
    """All rows of the op table, those first that together call every op."""
    from op_table import ROWS

    first: dict[str, int] = {}
    for i, row in enumerate(ROWS):
        if row.small:
            first.setdefault(row.op, i)
    others = [i for i in range(len(ROWS)) if i not in first.values()]
    rest = [i for i in others if ROWS[i].small] if answer.quick else others
    backends = BACKENDS[answer.device]
    chosen = [(i, d) for i in first.values() for d in ("float32", "float64")]
    chosen += [(i, "float64") for i in rest]
    names = [f"{b}/{d}/{ROWS[i]}" for i, d in chosen for b in backends]
    names += [f"{b}/float32/dropout_mask" for b in backends]
    checked(answer, "benchmarks.gpu_parts.smoke", names, processes(answer))
    answer.found["raw_ops"] = covered(answer)


def covered(answer: Answer) -> dict[str, int]:
    """How many raw ops of each backend ran; one that did not is a failure, if there was time."""
    called: dict[str, set[str]] = {}
    wanted: dict[str, set[str]] = {}
    for row in answer.found["rows"]:
        backend = row["name"].split("/")[0]
        called.setdefault(backend, set()).update(row.pop("called", ()))
        wanted.setdefault(backend, set()).update(row.pop("there", ()))
    for backend, names in wanted.items():
        missing = sorted(names - called[backend])
        if missing and not answer.found["not_reached"]:
            answer.fail(f"{backend}: no check calls {', '.join(missing)}")
    counts = {b: len(called[b] & names) for b, names in wanted.items()}
    answer.say("raw ops called: " + json.dumps(counts))
    return counts


def checks(device: str) -> Check:
    """What a process of the pool calls for each name."""
    import torch
    from op_checks import derivatives, inputs_of, kernels_for
    from op_table import ROWS

    rows = {str(row): row for row in ROWS}

    def check(name: str) -> dict[str, Any]:
        backend, dtype, what = name.split("/", 2)
        op = what if what == "dropout_mask" else rows[what].op
        kernels, called = counting(kernels_for(backend, op, getattr(torch, dtype)))
        told = {"called": called, "there": sorted(kernels.raw_ops)}
        if what == "dropout_mask":
            same_masks(kernels, device)
            return told
        row = rows[what]
        given = inputs_of(row, kernels, getattr(torch, dtype))
        found = derivatives(lambda *x: row.native(kernels, *x), given)
        exact = derivatives(row.reference, list(row.inputs()))
        error = off_by(found, exact)
        allowed = EXACT if dtype == "float64" else ROUNDED
        assert error <= allowed, f"off by {error:.1e}, allowed {allowed:.0e}"
        return {**told, "off_by": error}

    return check


def counting(kernels: Any) -> tuple[Any, list[str]]:
    """The kernels, and the names of those that are called."""
    from dataclasses import replace

    called: list[str] = []

    def counted(name: str, op: Any) -> Any:
        def run(*arguments: Any, **keywords: Any) -> Any:
            if name not in called:
                called.append(name)
            return op(*arguments, **keywords)

        return run

    raw_ops = {name: counted(name, op) for name, op in kernels.raw_ops.items()}
    return replace(kernels, raw_ops=raw_ops), called


def off_by(found: Any, exact: Any) -> float:
    """The norm of the difference, as a share of the norm, over all results."""
    import torch

    pairs = [(x.double().cpu(), y.double()) for x, y in zip(found, exact, strict=True)]
    for x, y in pairs:
        assert x.shape == y.shape, f"{tuple(x.shape)} instead of {tuple(y.shape)}"
    a, b = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
    if not b.numel():
        return 0.0
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def same_masks(kernels: Any, device: str) -> None:
    """Dropout masks are the definition's to the last bit, whichever device draws them."""
    import torch

    from fastmaml.ops.dropout_mask import native_dropout_mask, reference_dropout_mask

    key, rest = torch.arange(3) * 2**40 + 7, ((5, 8), 0.3, torch.float32)
    found = native_dropout_mask(kernels, key.to(device), *rest)
    assert torch.equal(found.cpu(), reference_dropout_mask(key, *rest))
