"""The GPU's run without a GPU: `benchmarks/gpu.py` on the CPU, as it would find things there.

    make gpu-rehearsal [QUICK=1] [PARTS=build,smoke]

From a clean copy of the tree as it travels (tracked files, and untracked ones that git does not
ignore, without .git), with no network, under Python 3.12 with torch 2.11 and Triton 3.6 where these
can be had, else under the Python at hand. Triton's kernels are interpreted, and the CUDA sources
are compiled, and run in their emulation on the CPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

if not __package__:  # run by its path, which has its folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.support.origin import ROOT, commit

ENVIRONMENT = ROOT / ".venv-rehearsal"
TORCH = ["torch==2.11.0", "triton==3.6.0", "numpy<2.4"]  # newer ones break that interpreter
REST = ["setuptools>=77", "wheel", "ninja", "pybind11", "safetensors", "pytest", "pytest-xdist"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", default="")
    parser.add_argument("--seconds", type=float, help="by default what benchmarks/gpu.py takes")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu-rehearsal")
    parser.add_argument("--python", type=Path, help="that has torch; by default torch 2.11's")
    options = parser.parse_args()
    python = options.python or prepared() or Path(sys.executable)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fastmaml-") as folder:
        tree = Path(folder) / "tree"
        copied(tree)
        command = [*offline(), python, "benchmarks/gpu.py", "--device", "cpu"]
        command += ["--parts", options.parts]
        command += ["--seconds", options.seconds] if options.seconds else []
        command += ["--out", options.out.resolve(), *(["--quick"] if options.quick else [])]
        print("+", *command, flush=True)
        settings = {n: v for n, v in os.environ.items() if n not in ("PYTHONPATH", "VIRTUAL_ENV")}
        settings["PIP_NO_INDEX"] = "1"
        code = subprocess.run([str(c) for c in command], cwd=tree, env=settings).returncode
    sys.exit(code)


def prepared() -> Path | None:
    """The Python of an environment like that of the GPU's machine; None where it cannot be had."""
    python = ENVIRONMENT / "bin" / "python"
    done = ENVIRONMENT / "done"
    if done.exists():
        return python
    given = next(pythons(), None)
    if given is None:
        print("There is no Python 3.12 here: the rehearsal runs under the Python at hand.")
        return None
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([given, "-m", "venv", ENVIRONMENT], [*pip, *TORCH], [*pip, *REST]):
        found = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        if found.returncode:
            print(found.stderr[-2000:])
            print("torch 2.11 cannot be had here: the rehearsal runs under the Python at hand.")
            return None
    done.touch()
    return python


def pythons() -> Iterator[Path]:
    """Those of version 3.12 that start."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [Path(p) for p in [shutil.which("python3.12")] if p]
    for path in [*found, *sorted(versions.glob("3.12*/bin/python"))]:
        if subprocess.run([str(path), "-c", "import venv"], capture_output=True).returncode == 0:
            yield path


def copied(tree: Path) -> None:
    """What travels to another machine."""
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
    names = subprocess.run(
        [*listed, "--exclude-standard"], capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    (tree / ".commit").write_text(commit())


def offline() -> list[str]:
    """What runs a command without a network, where the system lets us."""
    for command in (["unshare", "-n"], ["unshare", "-rn"]):
        if (
            shutil.which(command[0])
            and not subprocess.run([*command, "true"], capture_output=True).returncode
        ):
            return command
    print("The network cannot be taken away here: pip is told to use none.")
    return []


if __name__ == "__main__":
    main()
