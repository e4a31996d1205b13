"""Which tile runs: measured once for a kind of product, then remembered in memory and on disk.

The file is ``triton-VERSION-smARCH.json`` in ``$FASTMAML_CACHE``, else in
``$XDG_CACHE_HOME/fastmaml``, else in ``~/.cache/fastmaml``. ``FASTMAML_AUTOTUNE=0`` measures none
and takes the model's choice, as does a product first met while a CUDA graph is being captured,
where nothing can be timed (run once before a capture: kernels must be compiled by then).
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

import triton

from .launch import Launch, Product
from .tiles import Tile, candidates

# Tiles that the model ranks lower are not measured: each costs a compilation of about half a second
# of a core.
MEASURED = 3


# What has been decided in this process, by product and environment: a cache, nothing else.
DECIDED: dict[tuple[Product, str | None, str | None], Tile] = {}


def run(product: Product, plan: Callable[[Tile], list[Launch]]) -> None:
    """Run ``plan`` with the best tile known for ``product``, measuring if that is unknown."""
    on_device = product.device.type == "cuda"
    with torch.cuda.device(product.device) if on_device else contextlib.nullcontext():
        for launch in plan(choose(product, plan)):
            launch.run()


def choose(product: Product, plan: Callable[[Tile], list[Launch]]) -> Tile:
    """The tile for ``product``; ``plan`` may run several times, over the same outputs."""
    autotune = os.environ.get("FASTMAML_AUTOTUNE")
    question = (product, autotune, os.environ.get("FASTMAML_CACHE"))
    if question in DECIDED:
        return DECIDED[question]
    tiles = candidates(product)
    if product.device.type == "cuda" and autotune != "0":
        path = cache_file(product.device)
        known = remembered(path).get(key(product))
        if known in tiles:  # a file of other candidates is measured anew
            tiles = (known,)
        elif torch.cuda.is_current_stream_capturing():
            return tiles[0]
        else:
            plans = {tile: plan(tile) for tile in tiles[:MEASURED]}
            compile_all([launch for launches in plans.values() for launch in launches])
            tiles = (min(plans, key=lambda tile: measure(plans[tile])),)
            remember(path, key(product), tiles[0])
    return DECIDED.setdefault(question, tiles[0])


def key(product: Product) -> str:
    """Products within a power of two in each size share a choice."""
    sizes = [triton.next_power_of_2(max(n, 1)) for n in (product.m, product.n, product.k)]
    tasks = triton.next_power_of_2(max(product.tasks, 1))
    kind = f"{product.op} {str(product.dtype).removeprefix('torch.')} {product.precision}"
    return f"{kind} {tasks}x{'x'.join(map(str, sizes))}"


def compile_all(launches: Sequence[Launch]) -> None:
    """At the same time: one after another a first call would wait several times as long."""
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def one(launch: Launch) -> None:
        with contextlib.nullcontext() if device is None else torch.cuda.device(device):
            launch.compile()

    with ThreadPoolExecutor(len(launches) or 1) as pool:
        list(pool.map(one, launches))


def measure(launches: list[Launch]) -> float:
    """Median milliseconds of all ``launches`` together; infinite where the device lacks memory."""

    def once() -> None:
        for launch in launches:
            launch.run()

    try:
        once()
    except triton.runtime.errors.OutOfResources:
        return float("inf")
    times = []
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        once()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def cache_file(device: torch.device) -> Path:
    """Where choices for this kind of device and this Triton lie."""
    major, minor = torch.cuda.get_device_capability(device)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("FASTMAML_CACHE") or Path(base) / "fastmaml")
    return folder / f"triton-{triton.__version__}-sm{major}{minor}.json"


def remembered(path: Path) -> dict[str, Tile]:
    """What ``path`` holds."""
    if not path.exists():
        return {}
    try:
        return {name: Tile(*sizes) for name, sizes in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError, OSError) as error:
        message = f"{path} is not readable as tile choices, measuring anew: {error}"
        warnings.warn(message, stacklevel=2)
        return {}


def remember(path: Path, name: str, tile: Tile) -> None:
    """Add to the file, replacing it in one move: another process never reads half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        known = remembered(path) | {name: tile}
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(dict(sorted(known.items())), file, indent=1)
        Path(file.name).replace(path)
    except OSError as error:
        warnings.warn(f"tile choices last for this process only: {error}", stacklevel=2)
