"""What does each op cost, beside its PyTorch definition and a loop over tasks in plain torch?

    python -m benchmarks.programs.ops [--rounds 15] [--threads 2] [--device cuda] [--ops NAME]

Forward, backward and double backward through the public ops of `fastmaml.ops` with every backend
there is for the device. Results are compared with the definition in float64 before anything is
timed; contestants take turns within a round. FLOPs are those of the matrix products; bytes are the
least traffic, every tensor that a pass needs read once and every result written once. The time that
the machine's measured peaks allow for the two, whichever is longer, is the bound, and "of the
bound" the part of it that is reached (caches may make it more than 1). On CUDA every contestant is
a CUDA graph of a few calls, so that Python does not count; on the CPU it does. Writes
benchmarks/results/DEVICE/ops.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad

from benchmarks.support.op_cases import Case, cases
from benchmarks.support.peaks import peaks
from benchmarks.support.results import about, folder, quartiles
from fastmaml import ops

PASSES = ("forward", "backward", "double backward")
TURN = 0.02  # seconds that a contestant calls for, at least once
CALLS = 10  # of a CUDA graph
CLOSE = 1e-5  # relative to float64, over all of a pass's results
PLAIN = "plain torch"
Run = Callable[[], list[Tensor]]
Row = dict[str, Any]


def contestants(family: str, device: str) -> list[str]:
    found = [b for b, said in ops.status().items() if said.startswith("available")]
    there = [b for b in found if b != "reference" and device in ops.kernels(b).devices]
    return ["reference", PLAIN, *(b for b in there if family in ops.families(b))]


def flattened(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def made(case: Case, name: str) -> tuple[list[Tensor], Callable[..., list[Tensor]]]:
    """Leaves, and the function of them; plain torch has leaves for every task."""
    if name != PLAIN:
        leaves = [x.detach().clone().requires_grad_() for x in case.inputs]
        return leaves, lambda *x: flattened(case.op(*x, backend=name))
    count = len(case.inputs)
    parts = [x[t] for t in range(case.tasks) for x in case.inputs]
    leaves = [x.detach().clone().requires_grad_() for x in parts]

    def loop(*x: Tensor) -> list[Tensor]:
        by_task = (x[i : i + count] for i in range(0, len(x), count))
        return [y for one in by_task for y in flattened(case.plain(*one))]

    return leaves, loop


def directions(like: list[Tensor], case: Case, name: str) -> list[Tensor]:
    """Cotangents: the same random numbers for all contestants, and for all tasks."""
    numbers = len(like) // (case.tasks if name == PLAIN else 1)
    found = []
    for i, x in enumerate(like):
        same = torch.Generator().manual_seed(i % numbers)
        one = torch.randn(x.shape if name == PLAIN else x.shape[1:], generator=same).to(x)
        found.append(one if name == PLAIN else one.expand(x.shape).contiguous())
    return found


def passes(case: Case, name: str) -> dict[str, Run]:
    """By pass, what is timed; graphs are built once."""
    leaves, function = made(case, name)

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return function(*leaves)

    outputs = function(*leaves)
    g = [x.requires_grad_() for x in directions(outputs, case, name)]
    first = grad(outputs, leaves, g, create_graph=True, materialize_grads=True)
    h = directions(list(first), case, name)
    graphed = [i for i, x in enumerate(first) if x.requires_grad]
    of, by = [first[i] for i in graphed], [h[i] for i in graphed]

    def backward() -> list[Tensor]:
        return list(grad(outputs, leaves, [x.detach() for x in g], retain_graph=True))

    def double_backward() -> list[Tensor]:
        wanted = [*leaves, *g]
        return list(
            grad(of, wanted, by, retain_graph=True, allow_unused=True, materialize_grads=True)
        )

    return dict(zip(PASSES, (forward, backward, double_backward), strict=True))


def compared(case: Case, name: str, found: list[Tensor], expected: list[Tensor]) -> float:
    """How far the results are from those expected, relative, over all of them."""
    if name == PLAIN:
        expected = by_task(expected, case)
    a, b = (torch.cat([x.detach().double().flatten() for x in v]) for v in (found, expected))
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def by_task(results: list[Tensor], case: Case) -> list[Tensor]:
    """Results of all tasks in the order of the loop: leaves first, then outputs, task by task."""
    inputs, found = len(case.inputs), []
    groups = [results] if len(results) <= inputs else [results[:inputs], results[inputs:]]
    for group in groups:
        found += [x[t] for t in range(case.tasks) for x in group]
    return found


def counted(case: Case, outputs: list[Tensor]) -> dict[str, tuple[float, float]]:
    """FLOPs and the least traffic of each pass."""
    i, o = (float(sum(x.nbytes for x in v)) for v in (case.inputs, outputs))
    traffic = (i + o, o + 2 * i, 3 * i + 2 * o)
    return {
        name: (case.flops * times, bytes_)
        for name, times, bytes_ in zip(PASSES, (1, 2, 4), traffic, strict=True)
    }


def graph(run: Run) -> Callable[[], Any]:
    """A CUDA graph of some calls.

    On the current stream: a backward pass runs on that of its forward pass.
    """
    for _ in range(3):
        run()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured, stream=torch.cuda.current_stream()):
        for _ in range(CALLS):
            run()
    return captured.replay


def turn(run: Callable[[], Any], device: str, calls: int) -> float:
    """Microseconds a call, over a turn."""
    count, start = 0, time.perf_counter()
    while not count or time.perf_counter() - start < TURN:
        run()
        count += 1
        if device == "cuda":
            torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - start) / count / calls


def measure(case: Case, options: argparse.Namespace, can: dict[str, Any]) -> Iterator[Row]:
    """A row for each pass."""
    runs = {n: passes(case, n) for n in contestants(case.family, options.device)}
    sizes = counted(case, runs["reference"]["forward"]())
    errors = checked(case, runs)
    for kind in PASSES:
        times = timed({n: run[kind] for n, run in runs.items()}, options)
        yield row_of(case, kind, sizes[kind], can, times, errors[kind])


def checked(case: Case, runs: dict[str, dict[str, Run]]) -> dict[str, dict[str, float]]:
    """By pass, how far each contestant is from the definition in float64."""
    exact = passes(replace(case, inputs=[x.double() for x in case.inputs]), "reference")
    found: dict[str, dict[str, float]] = {}
    for kind in PASSES:
        expected = exact[kind]()
        errors = {n: compared(case, n, run[kind](), expected) for n, run in runs.items()}
        allowed = max(CLOSE, 4 * errors["reference"])
        if wrong := {n: error for n, error in errors.items() if not error <= allowed}:
            raise SystemExit(
                f"{case.family} {case.shapes}: {kind} is off by {wrong}, the definition in float32 "
                f"by {errors['reference']:.1e}. Nothing is timed."
            )
        found[kind] = errors
    return found


def timed(runs: dict[str, Run], options: argparse.Namespace) -> dict[str, list[float]]:
    """Microseconds of each contestant in every round; a round before the first warms up."""
    cuda = options.device == "cuda"
    ready = {n: graph(run) if cuda else run for n, run in runs.items()}
    rounds = [
        {n: turn(run, options.device, CALLS if cuda else 1) for n, run in ready.items()}
        for _ in range(options.rounds + 1)
    ]
    return {n: [found[n] for found in rounds[1:]] for n in runs}


def row_of(
    case: Case,
    kind: str,
    size: tuple[float, float],
    can: dict[str, Any],
    times: dict[str, list[float]],
    errors: dict[str, float],
) -> Row:
    flops, bytes_ = size
    computing, moving = flops / can["gflops"] / 1e3, bytes_ / can["gbytes_per_s"] / 1e3  # in us
    bound = max(computing, moving)
    row: Row = {
        "op": case.family, "shapes": case.shapes, "pass": kind, "flops": flops, "bytes": bytes_,
        "bound": "arithmetic" if computing > moving else "memory", "bound_us": round(bound, 3),
        "contestants": {},
    }  # fmt: skip
    for n, found in times.items():
        us = statistics.median(found)
        row["contestants"][n] = {
            "median_us": round(us, 2),
            "quartiles_us": quartiles(found, 2),
            "gflops": round(flops / us / 1e3, 2),
            "gbytes_per_s": round(bytes_ / us / 1e3, 2),
            "of_the_bound": round(bound / us, 4),
            "difference": errors[n],
        }
    return row


def line(row: Row) -> str:
    found = (
        f"{n} {r['median_us']:.1f} us ({r['of_the_bound']:.0%})"
        for n, r in row["contestants"].items()
    )
    return f"{row['op']} {row['shapes']}, {row['pass']}: {', '.join(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--ops", nargs="+", choices=sorted(ops.families("reference")))
    parser.add_argument("--json", type=Path, help="where the results go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    can, rows = peaks(options.device, options.threads), []
    print(f"peaks: {can}")
    stream = torch.cuda.Stream() if options.device == "cuda" else None
    with torch.cuda.stream(stream):
        for case in cases(options.device):
            if not options.ops or case.family in options.ops:
                for row in measure(case, options, can):
                    rows.append(row)
                    print(line(row), flush=True)
    path = options.json or folder(options.device) / "ops.json"
    result = {**about(options.device), "peaks": can, "rounds": options.rounds, "rows": rows}
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
