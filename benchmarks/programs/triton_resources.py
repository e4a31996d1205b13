"""Registers, spills and shared memory of the Triton kernels, compiled without a GPU.

    python -m benchmarks.programs.triton_resources --default \\
        --json benchmarks/results/aot/triton.json
    python -m benchmarks.programs.triton_resources --arch 90 --default --check 0

``--default`` compiles the tile that the model of `fastmaml.kernels.tiles` picks for each workload,
not all of them (400 compilations for three architectures); attention and embeddings have but one.
``--check`` fails if such a tile spills more bytes of registers to local memory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before Triton is imported: an interpreted kernel cannot be compiled.
os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.support.attention_launches import attentions, embeddings
from fastmaml.kernels.conv_gather import gather
from fastmaml.kernels.conv_wgrad import wgrad
from fastmaml.kernels.gemm import gemm
from fastmaml.kernels.launch import Launch, Product
from fastmaml.kernels.tiles import Tile, candidates

TOOL = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
}
MODES = {
    "float32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "bfloat16": (torch.bfloat16, "ieee"),
}
META = torch.device("meta")
Plan = Callable[[Tile], list[Launch]]
# 32 tasks of 25 examples; the four-layer network of Omniglot and a transformer's linear layer.
TASKS, EXAMPLES, CHANNELS, SIZE = 32, 25, 64, 14


def workloads(dtype: torch.dtype, precision: str) -> Iterator[tuple[str, Product, Plan]]:
    """Every kernel as the ops launch it, on tensors that hold no data."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=META)

    def work(op: str, m: int, n: int, k: int, splittable: bool = False) -> Product:
        return Product(op, TASKS, m, n, k, dtype, precision, META, splittable)

    rows, width = 512, 128
    x, w, b = empty(TASKS, rows, width), empty(TASKS, width, width), empty(TASKS, width)
    for name, act in (("task_linear", 0), ("task_linear gelu", 3)):
        product = work(name, rows, width, width)
        more = {"bias": b, "act": act, "saved": torch.empty_like(x) if act else None}
        yield name, product, lambda t, p=product, more=more: gemm(p, t, x, w.mT, x, **more)
    dgrad = work("task_linear_dgrad", rows, width, width)
    yield dgrad.op, dgrad, lambda t: gemm(dgrad, t, x, w, x)
    split = work("task_linear_wgrad", width, width, rows, True)
    yield split.op, split, lambda t: gemm(split, t, x.mT, x, w, row_sum=b, parts=2)

    settings = (1, 1), (1, 1), (1, 1)
    y, bias = empty(TASKS, EXAMPLES, SIZE, SIZE, CHANNELS), empty(TASKS, CHANNELS)
    pixels = EXAMPLES * SIZE * SIZE
    for channels in (1, CHANNELS):
        image = empty(TASKS, EXAMPLES, SIZE, SIZE, channels)
        taps, terms = empty(TASKS, 3, 3, channels, CHANNELS), 9 * channels
        name = f"task_conv2d {channels} channels"
        product = work(name, pixels, CHANNELS, terms)
        arguments = image, taps, y, bias, *settings, False
        yield name, product, lambda t, p=product, a=arguments: [gather(p, t, *a)]
        name = f"task_conv2d_wgrad {channels} channels"
        product = work(name, terms, CHANNELS, pixels, True)
        given = image, y, taps, bias, *settings, 2
        yield name, product, lambda t, p=product, a=given: wgrad(p, t, *a)
    for stride in (1, 2):
        name, size = f"task_conv2d_dgrad stride {stride}", SIZE // stride
        g = empty(TASKS, EXAMPLES, size, size, CHANNELS)
        product = work(name, pixels, CHANNELS, 9 * CHANNELS)
        back = g, taps.mT, y, None, (stride, stride), (1, 1), (1, 1), True
        yield name, product, lambda t, p=product, a=back: [gather(p, t, *a)]


class Specialised:
    """Arguments as a real call specialises them: on 1, None, and multiples of 16."""

    def __init__(self, launch: Launch) -> None:
        self.constants: dict[tuple[int, ...], Any] = {}
        self.attributes: dict[tuple[int, ...], list] = {}
        self.signature = {
            p.name: self.kind((i,), launch.arguments[p.name], p.is_constexpr, p.do_not_specialize)
            for i, p in enumerate(launch.kernel.params)
        }

    def kind(self, path: tuple[int, ...], value: Any, constant: bool, general: bool) -> Any:
        """The type of a parameter, or of a tuple's element, found at ``path``."""
        if isinstance(value, tuple):
            return tuple(self.kind((*path, i), v, constant, general) for i, v in enumerate(value))
        if constant or value is None or (isinstance(value, int) and value == 1 and not general):
            self.constants[path] = value
            return "constexpr"
        if isinstance(value, float):
            return "fp32"
        if isinstance(value, torch.Tensor) or (value % 16 == 0 and not general):
            self.attributes[path] = [["tt.divisibility", 16]]
        if isinstance(value, torch.Tensor):
            return POINTERS[value.dtype]
        return "i32" if -(2**31) <= value < 2**31 else "i64"


def compiled(launch: Launch, arch: int) -> Any:
    """``launch`` for ``arch``."""
    special = Specialised(launch)
    source = ASTSource(launch.kernel, special.signature, special.constants, special.attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch.options)


def resources(kernel: Any) -> dict[str, int]:
    """Registers a thread, bytes spilled a thread, and bytes of shared memory a block."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [TOOL, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert found, text
    registers, stack, local = map(int, found.groups())
    return {"registers": registers, "spilled": stack + local, "shared": kernel.metadata.shared}


def described(
    name: str, mode: str, launches: list[Launch], arches: list[int], **more: Any
) -> Iterator[dict[str, Any]]:
    """A row for each of ``launches`` and architecture."""
    for arch in arches:
        for launch in launches:
            found = resources(compiled(launch, arch))
            yield {
                "workload": name, "kernel": launch.kernel.__name__, "mode": mode,
                "arch": f"sm_{arch}", **more, **found,
            }  # fmt: skip


def rows(arches: list[int], default_only: bool) -> Iterator[dict[str, Any]]:
    """One row a kernel, precision, architecture and tile."""
    for mode, (dtype, precision) in MODES.items():
        for name, product, plan in workloads(dtype, precision):
            for rank, tile in enumerate(candidates(product)):
                if rank == 0 or not default_only:
                    more = {"tile": list(tile), "default": rank == 0}
                    yield from described(name, mode, plan(tile), arches, **more)
        torch.backends.cuda.matmul.fp32_precision = precision
        for name, launches in (*attentions(dtype), *embeddings(dtype)):
            yield from described(name, mode, launches, arches, default=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100])
    parser.add_argument("--default", action="store_true", help="only the tiles that run unmeasured")
    parser.add_argument("--check", type=int, help="the most bytes that a default tile may spill")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table, spilled = [], []
    for row in rows(options.arch, options.default):
        table.append(row)
        print(*(f"{key}={value}" for key, value in row.items()), flush=True)
        if row["default"] and row["spilled"] > (options.check or 0):
            spilled.append(row)
    most = options.check or 0
    print(f"{len(table)} compiled, {len(spilled)} default tiles spill more than {most} bytes")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(json.dumps(row) for row in table)
        about = json.dumps({"triton": triton.__version__, "torch": torch.__version__})
        options.json.write_text(f'{{"about": {about}, "rows": [\n{lines}\n]}}\n')
    if options.check is not None and spilled:
        sys.exit(f"spills in default tiles: {spilled}")


if __name__ == "__main__":
    main()
