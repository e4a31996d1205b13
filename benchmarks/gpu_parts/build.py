"""An environment beside the given Python, and the native module in the tree for the GPU at hand."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import site
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu_parts.answer import Answer
from benchmarks.support.origin import ROOT, save

ENVIRONMENT = ROOT / ".venv-gpu"
PYTHON = ENVIRONMENT / "bin" / "python"
SOURCES = ("csrc", "setup.py", "pyproject.toml")
ARCHITECTURE = (
    "import torch; d = torch.cuda.is_available() and torch.cuda.get_device_capability();"
    "print('%d%d' % d if d else '90' if torch.version.cuda else '')"
)
STATUS = """
import json, sys, torch
from fastmaml import ops
from benchmarks.support.results import about
device = sys.argv[1]
found = {"status": ops.status(), **about(device), "cuda": torch.version.cuda}
for name in ("triton", "jax", "transformers", "pytest", "xdist"):
    try:
        module = __import__(name)
        found[name] = getattr(module, "__version__", "there")
    except ImportError:
        found[name] = None
if device == "cuda":
    p = torch.cuda.get_device_properties(0)
    found["memory_gb"] = round(p.total_memory / 1e9, 1)
    found["multiprocessors"] = p.multi_processor_count
print(json.dumps(found))
"""


def main(answer: Answer) -> None:
    """Build what is not built; a second call finds all done."""
    start = time.monotonic()
    here = "FASTMAML_GPU_HERE" in os.environ
    python = Path(sys.executable) if here else PYTHON
    if not here:
        make_environment(answer)
        arch = said(python, "-c", ARCHITECTURE)
        settings = os.environ | {"FASTMAML_BUILD": "1", "FASTMAML_CUDA": "1" if arch else "0"}
        if arch:
            settings["FASTMAML_CUDA_ARCHS"] = arch
            settings["PATH"] = os.pathsep.join([settings["PATH"], "/usr/local/cuda/bin"])
        unchanged(ENVIRONMENT / "sources.json")
        with answer.guarding("the native module"):  # the rest can run without
            run([python, "setup.py", "--quiet", "build_ext", "--inplace"], settings)
        answer.found["architecture"] = arch
    answer.found["built_s"] = round(time.monotonic() - start, 1)
    about = json.loads(said(python, "-c", STATUS, answer.device).splitlines()[-1])
    versions = {n: v for n, v in about.items() if n not in ("commit", "date", "status")}
    save(answer.place / f"about-{answer.device}.json", versions)
    answer.found["status"] = about["status"]
    answer.say(
        f"{about['device']}, torch {about['torch']}, Triton {about['triton']}, JAX {about['jax']}, "
        f"Python {about['python']}; ready in {answer.found['built_s']} s"
    )
    for backend, status in about["status"].items():
        wanted = {"cuda": ("reference", "cuda", "triton"), "cpu": ("reference", "cpp", "triton")}
        if backend in wanted[answer.device] and not status.startswith("available"):
            answer.fail(f"{backend}: {status}")


def make_environment(answer: Answer) -> None:
    """With the packages of the Python that runs this, which may be such an environment itself.

    One made with ``--system-site-packages`` sees those of the base Python alone.
    """
    theirs = [p for p in (*site.getsitepackages(), site.getusersitepackages()) if p in sys.path]
    told = ENVIRONMENT / "parent.json"
    if told.exists() and json.loads(told.read_text()) == [sys.version, theirs]:
        return
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    run([sys.executable, "-m", "venv", "--without-pip", ENVIRONMENT])
    own = Path(said(PYTHON, "-c", "import site; print(site.getsitepackages()[0])"))
    lines = [f"import site; site.addsitedir({path!r})" for path in theirs]
    (own / "parent.pth").write_text("\n".join([*lines, ""]))
    install = ["install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "-e", "."]
    try:
        run([PYTHON, "-m", "pip", *install], os.environ | {"FASTMAML_BUILD": "0"})
    except subprocess.CalledProcessError as error:
        answer.fail(f"fastmaml is not installed but named: {error}")
        (own / "fastmaml.pth").write_text(f"{ROOT}\n")
        with contextlib.suppress(FileExistsError):  # setup.py names that folder a package
            (ROOT / "fastmaml" / "kernels").symlink_to("../kernels/triton")
        return
    told.write_text(json.dumps([sys.version, theirs]))


def unchanged(record: Path) -> None:
    """Give sources that are as at the last call the times that they had then.

    A tree that is sent again is new to ninja, which goes by times.
    """
    known = json.loads(record.read_text()) if record.exists() else {}
    now = {}
    for path in sources():
        name, digest = str(path.relative_to(ROOT)), hashlib.sha256(path.read_bytes()).hexdigest()
        before, modified = known.get(name, (None, None))
        if before == digest:
            os.utime(path, ns=(modified, modified))
        now[name] = digest, path.stat().st_mtime_ns
    record.write_text(json.dumps(now))


def sources() -> list[Path]:
    """What the native module is built from."""
    found = []
    for place in (ROOT / name for name in SOURCES):
        found += sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
    return found


def run(command: list[str | Path], environment: dict[str, str] | None = None) -> None:
    """In the tree; what it prints goes to the log."""
    print("+", *command, flush=True)
    subprocess.run([str(c) for c in command], cwd=ROOT, env=environment, check=True)


def said(*command: str | Path) -> str:
    """What a command prints."""
    done = subprocess.run(
        [str(c) for c in command], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.strip()
