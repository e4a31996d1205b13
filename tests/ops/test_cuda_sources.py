"""The CUDA sources without a GPU: compiled for every architecture, and run on the CPU, emulated.

What is compiled is kept in ``build/cuda_sources`` under a hash of the sources.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from places import ROOT

CUDA = ROOT / "csrc" / "cuda"
HOST = ROOT / "tests" / "cuda_on_host"
KERNELS = sorted(CUDA.glob("*.cu"))
SCHEMAS = ROOT / "csrc" / "schemas.cpp"
OURS = pytest.mark.parametrize(
    "families",
    [
        pytest.param(("task_act",), id="some"),
        pytest.param((), id="all", marks=pytest.mark.slow),
    ],
    indirect=True,
)

TORCH = Path(torch.__file__).parent
NVCC = shutil.which("nvcc")
GXX = shutil.which("g++")
SANITIZERS = {
    "address": ["-O0", "-fsanitize=address,undefined"],
    "thread": ["-O1", "-fsanitize=thread", "-DCUDA_ON_HOST_FLOAT32"],
}
EMULATED = [
    "-std=c++17",
    "-g1",
    "-fPIC",
    "-fno-strict-aliasing",
    "-DCUDA_ON_HOST",
    "-Wall",
    "-Wextra",
]
EMULATED += [
    "-Werror",
    "-Wno-unknown-pragmas",
    f"-I{CUDA}",
    "-include",
    str(HOST / "cuda_on_host.h"),
]
EMULATED += ["-fno-sanitize-recover=undefined", "-x", "c++"]
STABLE = ["-std=c++20", "-O0", "-fPIC", "-fvisibility=hidden", "-DCUDA_ON_HOST", "-Wall", "-Wextra"]
STABLE += [
    "-Werror",
    "-DTORCH_TARGET_VERSION=0x020B000000000000",
    "-isystem",
    str(TORCH / "include"),
]

needs_gxx = pytest.mark.skipif(GXX is None, reason="needs g++")


def run(command: Sequence[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=600,
    )


def compiled(command: Sequence[str | Path]) -> str:
    """Run a compiler; what it said."""
    done = run(command)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout + done.stderr


def all_compiled(commands: Sequence[Sequence[str | Path]]) -> list[str]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compiled, commands))


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def families(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> tuple[str, ...]:
    """Whose sources; none stands for all, beside which a few need not run."""
    if request.param and pytestconfig.getoption("--all"):
        pytest.skip("another row has all of them")
    return request.param


@pytest.fixture(scope="module")
def cache() -> Path:
    """A folder for these very sources and this very torch; those of others are removed."""
    digest = hashlib.sha256(torch.__version__.encode() + Path(__file__).read_bytes())
    for source in sorted([*(ROOT / "csrc").rglob("*.*"), *HOST.glob("*.*")]):
        if source.suffix in {".cu", ".cuh", ".h", ".cpp"}:
            digest.update(str(source.relative_to(ROOT)).encode() + source.read_bytes())
    folder = ROOT / "build" / "cuda_sources" / digest.hexdigest()[:16]
    if not folder.exists():
        emptied(folder.parent)
        folder.mkdir()
    return folder


# ---- nvcc ----


def kernels_of(families: Sequence[str]) -> list[Path]:
    """Their sources, or all."""
    return [CUDA / f"{family}.cu" for family in families] or KERNELS


def nvcc_reports(
    folder: Path, families: Sequence[str], architectures: Sequence[int]
) -> dict[str, str]:
    """What nvcc says of their sources, for all architectures."""
    kernels = kernels_of(families)
    if not (folder / "done").exists():
        emptied(folder)
        flags = [
            "-O3",
            "-std=c++17",
            "-Werror",
            "all-warnings",
            "-Xcompiler",
            "-Wall,-Wextra,-fPIC",
        ]
        flags += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
        flags += ["-Xptxas", "-v", "-c"]
        outputs = all_compiled([["nvcc", *flags, k, "-o", folder / f"{k.stem}.o"] for k in kernels])
        for kernel, output in zip(kernels, outputs, strict=True):
            (folder / f"{kernel.stem}.txt").write_text(output)
        (folder / "done").touch()
    return {kernel.stem: (folder / f"{kernel.stem}.txt").read_text() for kernel in kernels}


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize(
    "architectures",
    [
        pytest.param((90,), id="sm_90"),
        pytest.param((80, 86, 89, 100), id="others", marks=pytest.mark.slow),
    ],
)
@OURS
def test_nvcc_compiles_without_warnings_or_spills(
    families: tuple[str, ...], architectures: tuple[int, ...], cache: Path
) -> None:
    folder = cache / "-".join(["nvcc", str(architectures[0]), *families])
    reports = nvcc_reports(folder, families, architectures)
    assert reports
    for kernel, report in reports.items():
        seen = re.findall(r"Compiling entry function .* for 'sm_(\d+)", report)
        assert {int(sm) for sm in seen} == set(architectures), kernel
        spills = [int(n) for n in re.findall(r"(\d+) bytes spill stores", report)]
        registers = [int(n) for n in re.findall(r"Used (\d+) registers", report)]
        assert len(spills) == len(registers) > 0
        print(f"{kernel}: {len(registers)} kernels, at most {max(registers)} registers")
        assert max(spills) == 0, f"{kernel}: {sum(s > 0 for s in spills)} kernels spill"


# ---- the emulation ----


def emulated(cache: Path, families: Sequence[str]) -> dict[str, Path]:
    """Kernels and bindings as one library for CPU tensors, under each sanitizer."""
    folder = cache / "-".join(["emulated", *families])
    sources = kernels_of(families)
    libraries = {name: folder / f"{name}.so" for name in SANITIZERS}
    if (folder / "done").exists():
        return libraries
    emptied(folder)
    bindings = [CUDA / f"{family}_bind.cpp" for family in families] or CUDA.glob("*_bind.cpp")
    objects = {b: folder / f"{b.stem}.o" for b in (SCHEMAS, *bindings)}
    commands: list[list[str | Path]] = [
        ["g++", *STABLE, "-c", b, "-o", o] for b, o in objects.items()
    ]
    for name, flags in SANITIZERS.items():
        commands += [
            ["g++", *flags, *EMULATED, "-c", k, "-o", folder / f"{k.stem}.{name}.o"]
            for k in sources
        ]
    all_compiled(commands)
    for name, flags in SANITIZERS.items():
        kernels = [folder / f"{k.stem}.{name}.o" for k in sources]
        torch_library = [f"-L{TORCH / 'lib'}", "-ltorch_cpu", f"-Wl,-rpath,{TORCH / 'lib'}"]
        compiled(
            [
                "g++",
                "-shared",
                *flags,
                *kernels,
                *objects.values(),
                "-o",
                libraries[name],
                *torch_library,
            ]
        )
    (folder / "done").touch()
    return libraries


def preload(sanitizer: str) -> str:
    """The sanitizer's run time, and libstdc++ whose exceptions it intercepts."""
    names = {"address": ["libasan.so", "libubsan.so"], "thread": ["libtsan.so"]}[sanitizer]
    return " ".join(
        compiled(["g++", f"-print-file-name={name}"]).strip() for name in [*names, "libstdc++.so"]
    )


def run_cases(
    library: Path, sanitizer: str, order: int, *only: str
) -> subprocess.CompletedProcess[str]:
    return run(
        [sys.executable, HOST / "run_cases.py", library, *only],
        LD_PRELOAD=preload(sanitizer),
        ASAN_OPTIONS="detect_leaks=0",  # Python's own
        TSAN_OPTIONS="halt_on_error=1",
        UBSAN_OPTIONS="print_stacktrace=1",
        OMP_NUM_THREADS="1",
        PYTHONPATH=str(ROOT),
        CUDA_ON_HOST_ORDER=str(order),
    )


@needs_gxx
@OURS
def test_emulated_kernels_equal_the_reference(families: tuple[str, ...], cache: Path) -> None:
    """Under both sanitizers, with threads in two orders, to the same last bit."""
    libraries = emulated(cache, families)
    with ThreadPoolExecutor(2) as pool:
        runs = list(
            pool.map(
                lambda i: run_cases(libraries[i[0]], *i, *families),
                [("address", 0), ("thread", 7, "float32")],
            )
        )
    for done in runs:
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]
    pattern = r"(\d+) comparisons, digest ([0-9a-f]{64})"
    (some, first), (_, second) = (re.findall(pattern, done.stdout)[0] for done in runs)
    assert int(some) >= (10 if families else 100)
    assert first == second, "results depend on the order in which threads run"


PLANTED = [
    (0, "address", "right"),
    (0, "thread", "right"),
    (1, "address", "out of bounds|buffer-overflow"),
    (2, "address", "heap-buffer-overflow"),
    (3, "address", "deadlock"),
    (4, "thread", "data race"),
    (5, "address", "misaligned address"),
]


@needs_gxx
@pytest.mark.sampled(together=1, columns=lambda plant, sanitizer, message: (sanitizer, plant == 0))
@pytest.mark.parametrize(("plant", "sanitizer", "message"), PLANTED)
def test_the_emulation_finds_planted_errors(
    plant: int, sanitizer: str, message: str, tmp_path: Path
) -> None:
    flags = [*SANITIZERS[sanitizer], *EMULATED, f"-DPLANT={plant}"]
    compiled(["g++", *flags, HOST / "planted.cu", "-o", tmp_path / "planted"])
    done = run([tmp_path / "planted"])
    assert (done.returncode == 0) == (plant == 0), done.stdout + done.stderr
    assert re.search(message, done.stdout + done.stderr), done.stdout + done.stderr
