"""Each Triton kernel beside cuBLAS, cuDNN and PyTorch at equal work; needs a CUDA device.

    python -m benchmarks.programs.triton_kernels [--rounds 20] [--json PATH]

A task's own weights make cuDNN's convolution a grouped one, which it runs slowly, so a dense one
with shared weights, the same FLOPs, stands beside it as well. Attention stands beside an explicit
softmax, as PyTorch's own has no second derivative, and forwards beside that one too. Results are
compared with float64 before anything is timed; each contestant is a CUDA graph of several calls, so
that Python does not count, and they take turns within a round. Writes
benchmarks/results/cuda/triton_kernels.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu_parts.timing import in_turns
from benchmarks.support.results import about, folder
from fastmaml import kernels
from fastmaml.kernels import attention_float64 as explicit
from fastmaml.kernels.attention_work import Attention

MODES = {
    "float32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "bfloat16": (torch.bfloat16, "ieee"),
}
SIZES = {"device": "cuda", "quick": False}
"""Of this run: `tiny` makes it one that an interpreter can do."""
# As torch.finfo says of bfloat16; tf32 has ten bits of mantissa.
WORST = {"float32": 1e-5, "tf32": 1e-2, "bfloat16": 2e-2}
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Work:
    """One product: ``ours`` and its rivals, of which the first computes the very same."""

    name: str
    flops: float
    bytes: float
    exact: Run
    ours: Run
    rivals: dict[str, Run] = field(default_factory=dict)


def moved(*tensors: Tensor) -> float:
    return float(sum(x.numel() * x.element_size() for x in tensors))


def tiny() -> None:
    """One small case of each family, on the CPU where no GPU is."""
    SIZES["quick"] = True
    SIZES["device"] = "cuda" if torch.cuda.is_available() else "cpu"


def of_sizes(large: Sequence[Any], small: Any) -> Sequence[Any]:
    return [small] if SIZES["quick"] else large


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device=SIZES["device"], dtype=dtype)


def linears(dtype: torch.dtype) -> Iterator[Work]:
    # The transformer of the benchmarks, one of BERT's layers, and the head of a small network.
    sizes = [(4, 512, 128, 512), (8, 1024, 768, 768), (32, 75, 64, 20), (1, 4096, 4096, 4096)]
    for tasks, rows, inputs, outputs in of_sizes(sizes, (2, 5, 8, 4)):
        x, w = random(tasks, rows, inputs, dtype=dtype), random(tasks, outputs, inputs, dtype=dtype)
        g, name = random(tasks, rows, outputs, dtype=dtype), f"{tasks} x {rows}x{inputs}x{outputs}"
        size = 2.0 * tasks * rows * inputs * outputs, moved(x, w, g)
        for member, a, b, ours in (
            ("task_linear", x, w.mT, lambda x=x, w=w: kernels.task_linear(x, w, None, 0)[0]),
            ("task_linear_dgrad", g, w, lambda g=g, w=w: kernels.task_linear_dgrad(g, w)),
            (
                "task_linear_wgrad",
                g.mT,
                x,
                lambda g=g, x=x: kernels.task_linear_wgrad(g, x, False)[0],
            ),
        ):
            exact, rival = (lambda a=a, b=b: a.double() @ b.double()), lambda a=a, b=b: a @ b
            yield Work(f"{member} {name}", *size, exact, ours, {"cuBLAS": rival})


def convolutions(dtype: torch.dtype) -> Iterator[Work]:
    # Omniglot's layers at 5-way 1-shot, one of 5-shot mini-ImageNet, a strided and a 1x1 one.
    sizes = [
        (32, 5, 1, 28, 64, 3, 1),
        (32, 5, 64, 28, 64, 3, 1),
        (32, 5, 64, 14, 64, 3, 1),
        (32, 5, 64, 7, 64, 3, 1),
        (4, 25, 32, 42, 32, 3, 1),
        (8, 25, 64, 28, 128, 3, 2),
        (8, 25, 128, 14, 128, 1, 1),
    ]
    small = (2, 2, 3, 4, 4, 3, 1)
    for tasks, examples, channels, size, outputs, kernel, stride in of_sizes(sizes, small):
        x = random(tasks, examples, size, size, channels, dtype=dtype).permute(0, 1, 4, 2, 3)
        w = random(tasks, kernel, kernel, channels, outputs, dtype=dtype).permute(0, 4, 3, 1, 2)
        settings = (stride, stride), (kernel // 2,) * 2, (1, 1)
        g = torch.randn_like(kernels.task_conv2d(x, w, None, *settings))
        flops = 2.0 * g.numel() * channels * kernel**2
        name = f"{tasks} x {examples}x{channels}x{size}x{size} -> {outputs}, "
        name += f"{kernel}x{kernel}/{stride}"
        counted = flops, moved(x, w, g)
        yield from members(name, counted, x, w, g, settings)


def members(
    name: str,
    counted: tuple[float, float],
    x: Tensor,
    w: Tensor,
    g: Tensor,
    settings: tuple[tuple[int, int], ...],
) -> Iterator[Work]:
    tasks, outputs = w.shape[:2]

    def grouped(v: Tensor) -> Tensor:
        return v.transpose(0, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)

    def dense(v: Tensor) -> Tensor:
        return v.flatten(0, 1).contiguous(memory_format=torch.channels_last)

    def back(x: Tensor, w: Tensor, g: Tensor, which: int, groups: int) -> Tensor:
        wanted = [which == 0, which == 1, False]
        pairs = [list(pair) for pair in settings]
        backward = torch.ops.aten.convolution_backward
        return backward(g, x, w, None, *pairs, False, [0, 0], groups, wanted)[which]

    split = grouped(x), dense(w), grouped(g)
    whole = dense(x), w[0].contiguous(memory_format=torch.channels_last), dense(g)
    double = [v.double() for v in split]

    def ungrouped(v: Tensor) -> Tensor:
        return v.unflatten(1, (tasks, -1)).transpose(0, 1)

    yield Work(
        f"task_conv2d {name}",
        *counted,
        lambda: ungrouped(F.conv2d(*double[:2], None, *settings, tasks)),
        lambda: kernels.task_conv2d(x, w, None, *settings),
        {
            "cuDNN grouped": lambda: ungrouped(F.conv2d(*split[:2], None, *settings, tasks)),
            "cuDNN dense": lambda: F.conv2d(*whole[:2], None, *settings),
        },
    )
    yield Work(
        f"task_conv2d_dgrad {name}",
        *counted,
        lambda: ungrouped(back(*double, 0, tasks)),
        lambda: kernels.task_conv2d_dgrad(g, w, *settings, x.shape[3:]),
        {
            "cuDNN grouped": lambda: ungrouped(back(*split, 0, tasks)),
            "cuDNN dense": lambda: back(*whole, 0, 1),
        },
    )
    yield Work(
        f"task_conv2d_wgrad {name}",
        *counted,
        lambda: back(*double, 1, tasks).unflatten(0, (tasks, outputs)),
        lambda: kernels.task_conv2d_wgrad(g, x, *settings, w.shape[3:], False)[0],
        {
            "cuDNN grouped": lambda: back(*split, 1, tasks).unflatten(0, (tasks, outputs)),
            "cuDNN dense": lambda: back(*whole, 1, 1),
        },
    )


def attentions(dtype: torch.dtype) -> Iterator[Work]:
    # MiniLM's and BERT's heads on sentences, a causal model's on longer text.
    sizes = [
        (4, 16, 12, 128, 32, False),
        (4, 16, 12, 128, 64, False),
        (2, 2, 16, 1024, 128, True),
    ]
    for tasks, batch, heads, length, size, causal in of_sizes(sizes, (2, 1, 2, 5, 8, True)):
        shape = tasks, batch, length, heads, size
        q, k, v, g, hq, hk, hv = (random(*shape, dtype=dtype).transpose(2, 3) for _ in range(7))
        work = Attention(q, k, v, None, None, causal, size**-0.5, 0.0)
        name = f"{tasks} x {batch}x{heads}x{length}x{size}{' causal' if causal else ''}"
        yield from derivatives(name, work, g, (hq, hk, hv))


def derivatives(name: str, work: Attention, g: Tensor, h: tuple[Tensor, ...]) -> Iterator[Work]:
    q, k, v, causal, scale = work.q, work.k, work.v, work.causal, work.scale
    wide = replace(work, q=q.double(), k=k.double(), v=v.double())
    rest = None, None, causal, scale, 0.0
    o, lse = kernels.task_attention(q, k, v, *rest)
    saved = g, q, k, v, None, None, o, lse, causal, scale, 0.0
    exact_o, _ = explicit.forward(wide)
    tangents = tuple(x.double() for x in h)
    # Of one product of all rows with all keys; a causal model needs half of it.
    one = 2.0 * q.numel() * k.shape[3] * (0.5 if causal else 1)
    flat = [x.flatten(0, 1) for x in (q, k, v)]

    def fused() -> Tensor:
        return F.scaled_dot_product_attention(*flat, is_causal=causal).unflatten(0, q.shape[:2])

    yield Work(
        f"task_attention {name}",
        2 * one,
        moved(q, k, v, o),
        lambda: exact_o,
        lambda: kernels.task_attention(q, k, v, *rest)[0],
        {"explicit": lambda: explicit.forward(work)[0], "sdpa": fused},
    )
    yield Work(
        f"task_attention_bwd {name}",
        5 * one,
        2 * moved(q, k, v, o),
        lambda: explicit.backward(wide, g.double(), exact_o)[0],
        lambda: kernels.task_attention_bwd(*saved)[0],
        {"explicit": lambda: explicit.backward(work, g, o)[0]},
    )
    yield Work(
        f"task_attention_bwd2 {name}",
        12 * one,
        3 * moved(q, k, v, o),
        lambda: explicit.second(wide, tangents, g.double(), exact_o)[1],
        lambda: kernels.task_attention_bwd2(*h, *saved, 15)[1],
        {"explicit": lambda: explicit.second(work, h, g, o)[1]},
    )


def embeddings(dtype: torch.dtype) -> Iterator[Work]:
    # Word pieces of sentences, one table shared by all tasks.
    [(rows, size, tasks, tokens)] = of_sizes([(30_522, 384, 4, 2048)], (9, 8, 2, 5))
    w, g = (
        random(rows, size, dtype=dtype).expand(tasks, -1, -1),
        random(tasks, tokens, size, dtype=dtype),
    )
    ids = torch.randint(rows, (tasks, tokens), device=w.device)
    places = ids.unsqueeze(2).expand(-1, -1, size)
    zeros = torch.zeros(tasks, rows, size, device=w.device, dtype=dtype)
    name = f"{tasks} x {tokens} of {rows}x{size}"
    yield Work(
        f"task_embedding {name}",
        0.0,
        2 * moved(g),
        lambda: w.gather(1, places).double(),
        lambda: kernels.task_embedding(w, ids),
        {"gather": lambda: w.gather(1, places)},
    )
    yield Work(
        f"task_embedding_grad {name}",
        float(g.numel()),
        moved(g, zeros),
        lambda: zeros.double().scatter_add(1, places, g.double()),
        lambda: kernels.task_embedding_grad(g, ids, rows),
        {"scatter_add": lambda: torch.zeros_like(zeros).scatter_add_(1, places, g)},
    )


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max() / exact.abs().max())


def measure(work: Work, mode: str, rounds: int) -> dict[str, Any]:
    """A row; what is wrong is not timed."""
    exact, same = work.exact(), next(iter(work.rivals))
    ours, theirs = error(work.ours(), exact), error(work.rivals[same](), exact)
    row = {
        "work": work.name, "mode": mode, "flops": work.flops, "bytes": work.bytes,
        "error": ours, "error of " + same: theirs,
    }  # fmt: skip
    if not ours <= max(2 * theirs, WORST[mode]):
        wrong = f"{work.name} in {mode} is off by {ours:.1e}, {same} by {theirs:.1e}"
        return row | {"wrong": wrong}
    times = in_turns({"fastmaml": work.ours, **work.rivals}, SIZES["device"], rounds)
    medians = {name: found["median"] for name, found in times.items()}
    best = min(t for name, t in medians.items() if name != "fastmaml")
    return row | {
        "median_us": medians,
        "quartiles_us": {name: found["quartiles"] for name, found in times.items()},
        "of_the_best_rival": round(medians["fastmaml"] / best, 2),
        "tflops": round(work.flops / medians["fastmaml"] / 1e6, 2),
        "gbytes_per_s": round(work.bytes / medians["fastmaml"] / 1e3, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--json", type=Path, help="where the results go")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("triton_kernels.py needs a CUDA device.")
    rows = []
    for mode in options.modes:
        dtype, precision = MODES[mode]
        torch.backends.cuda.matmul.fp32_precision = precision
        torch.backends.cudnn.conv.fp32_precision = precision
        for family in (linears, convolutions, attentions, embeddings):
            for work in family(dtype):
                rows.append(measure(work, mode, options.rounds))
                row = rows[-1]
                if "wrong" in row:
                    raise SystemExit(row["wrong"])
                print(
                    mode, row["work"], row["median_us"], f"x{row['of_the_best_rival']}", flush=True
                )
    path = options.json or folder("cuda") / "triton_kernels.json"
    path.write_text(json.dumps({**about("cuda"), "rounds": options.rounds, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
