"""Builds the native module ``fastmaml._C`` from csrc/; all metadata is in pyproject.toml.

The CPU kernels need a C++20 compiler, ninja, pybind11 and a torch, the CUDA kernels nvcc. The torch
is the one of the environment that is installed into: an isolated build (``pip install .``) does not
see it by import, and looks into that environment's folders. The environment's variables choose:

- ``FASTMAML_BUILD``: ``auto`` (default: a failed build warns and leaves a working pure-PyTorch
  install, which knows why: ``fastmaml/_not_built.txt``), ``0`` (build nothing), ``1`` (a failed
  build is an error).
- ``FASTMAML_CUDA``: the same for the CUDA kernels; ``auto`` builds them where nvcc is, for a torch
  that has CUDA.
- ``FASTMAML_CUDA_ARCHS``: default ``80 86 89 90 100``, and PTX of the first for all others.
- ``FASTMAML_SANITIZE``: for example ``address,undefined``: an instrumented build for tests.
- ``CXX``, ``NVCC``, ``MAX_JOBS``: the compilers, and how many of them at a time.

Edit loop: ``python setup.py build_ext --inplace`` compiles only what changed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path

from setuptools import Distribution, Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
OLDEST_TORCH = (2, 11)
"""Whose stable ABI has all that we call: one binary serves the later."""

RULES = """\
ninja_required_version = 1.8
rule cxx
  command = $cxx $cflags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = c++ $in
rule nvcc
  command = $nvcc $cuflags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = nvcc $in
rule link
  command = $cxx -shared $in -o $out $ldflags
  description = link $out
"""


def choice(name: str) -> str:
    """The value of an environment variable that is ``auto``, ``0`` or ``1``."""
    value = os.environ.get(name, "auto")
    if value not in {"auto", "0", "1"}:
        sys.exit(f"{name}={value!r}: choose auto, 0 or 1.")
    return value


def folder_of(package: str) -> Path:
    """Where an installed package lies; nothing is imported.

    Pip isolates a build by what is on the path, and runs it with the Python that it installs for.
    """
    places = [*map(sysconfig.get_path, ("purelib", "platlib")), *site.getsitepackages()]
    if sys.prefix == sys.base_prefix:  # not in a virtual environment
        places.append(site.getusersitepackages())
    spec = importlib.util.find_spec(package) or PathFinder.find_spec(package, places)
    if spec is None or spec.origin is None:
        raise CompileError(f"{package} was not there when fastmaml was installed.")
    return Path(spec.origin).parent


def torch_folder() -> Path:
    """Of a torch that has what the kernels call."""
    folder = folder_of("torch")
    found = re.search(r"^__version__ = .(\d+)\.(\d+)", (folder / "version.py").read_text(), re.M)
    if found is None or tuple(map(int, found.groups())) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise CompileError(f"the torch in {folder} was older than {oldest}.")
    return folder


def nvcc_path() -> str | None:
    """The nvcc to build CUDA kernels with, or None for a CPU-only build."""
    wanted = choice("FASTMAML_CUDA")
    version = (torch_folder() / "version.py").read_text()
    if wanted == "0" or (
        wanted == "auto" and re.search(r"^cuda\b.*= None$", version, re.MULTILINE)
    ):
        return None
    found = shutil.which(os.environ.get("NVCC", "nvcc"))
    if found is None and wanted == "1":
        raise CompileError("FASTMAML_CUDA=1, but nvcc was not found: set NVCC or PATH.")
    return found


def cuda_root(nvcc: str) -> Path:
    """The toolkit's folder, from nvcc itself: nvcc may be a wrapper or a link."""
    text = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull],
                          capture_output=True, text=True).stderr  # fmt: skip
    tops = [line.split("TOP=", 1)[1].strip() for line in text.splitlines() if "TOP=" in line]
    if not tops:
        raise CompileError(f"{nvcc} does not work:\n{text}")
    return Path(tops[0])


def ninja_file(output: Path, nvcc: str | None) -> str:
    """The whole build as a ninja file."""
    torch, pybind = torch_folder(), folder_of("pybind11")
    major, minor = OLDEST_TORCH
    sanitize = os.environ.get("FASTMAML_SANITIZE")
    checks = f"-fsanitize={sanitize}" if sanitize else ""
    optimise = f"-g1 -O1 -fno-omit-frame-pointer {checks}" if sanitize else "-O3"
    # pybind11's own goes first: the copy that torch 2.11 brings refuses a build for the stable ABI.
    includes = [pybind / "include", torch / "include", Path(sysconfig.get_path("include"))]
    sources = {"cxx": [*CSRC.glob("*.cpp"), *CSRC.glob("cpu/**/*.cpp")], "nvcc": []}
    cflags = (
        f"{optimise} -std=c++20 -fPIC -fvisibility=hidden -fno-math-errno -fopenmp-simd -Wall "
        f"-Wno-psabi -DTORCH_TARGET_VERSION=0x{major:02X}{minor:02X}000000000000 "
        f"-I{shlex.quote(str(CSRC))}"
    )
    ldflags = f"{checks} -L{shlex.quote(str(torch / 'lib'))} -ltorch_cpu"
    cuflags = ""
    if nvcc:
        toolkit = cuda_root(nvcc)
        archs = os.environ.get("FASTMAML_CUDA_ARCHS", "80 86 89 90 100").split()
        codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
        codes.append(f"-gencode=arch=compute_{archs[0]},code=compute_{archs[0]}")
        cuflags = f"-O3 -std=c++17 -Xcompiler -fPIC,-fvisibility=hidden {' '.join(codes)}"
        cflags += " -DFASTMAML_CUDA"
        includes.append(toolkit / "include")
        sources["cxx"] += CSRC.glob("cuda/*_bind.cpp")
        sources["nvcc"] += CSRC.glob("cuda/*.cu")
        # A static runtime whose symbols stay inside: torch may bring another one.
        places = ("lib64", "lib", "targets/x86_64-linux/lib")
        found = [p for p in places if (toolkit / p / "libcudart_static.a").exists()]
        library = shlex.quote(str(toolkit / (*found, "lib64")[0] / "libcudart_static.a"))
        ldflags += f" {library} -Wl,--exclude-libs,ALL -ldl -lrt -lpthread"
    cflags += "".join(f" -isystem {shlex.quote(str(i))}" for i in includes)
    lines = [f"{name} = {value.replace('$', '$$')}" for name, value in (
        ("cxx", os.environ.get("CXX", "c++")), ("nvcc", nvcc or ""), ("cflags", cflags),
        ("cuflags", cuflags), ("ldflags", ldflags),
    )]  # fmt: skip
    lines.append(RULES)
    objects = []
    for rule, files in sources.items():
        for source in sorted(files):
            objects.append(escape(f"{source.relative_to(CSRC)}.o"))
            lines.append(f"build {objects[-1]}: {rule} {escape(source)}")
    return "\n".join([*lines, f"build {escape(output)}: link {' '.join(objects)}", ""])


def escape(path: Path | str) -> str:
    """A path as ninja reads it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class Build(build_ext):
    """Drives ninja; falls back to what can be built where nothing was asked for."""

    def build_extension(self, ext: Extension) -> None:
        """Builds the module where setuptools wants it, or leaves the reason in its place."""
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        reason = output.with_name("_not_built.txt")
        reason.unlink(missing_ok=True)
        try:
            nvcc = nvcc_path()
            try:
                self.ninja(output, nvcc)
            except CompileError as error:
                if nvcc is None or choice("FASTMAML_CUDA") == "1":
                    raise
                self.warn(f"{error} Building again without the CUDA kernels.")
                self.ninja(output, None)
        except CompileError as error:
            output.unlink(missing_ok=True)
            if not ext.optional:
                raise
            output.parent.mkdir(parents=True, exist_ok=True)
            reason.write_text(f"{error}\n", encoding="utf-8")
            self.warn(
                f"{error} fastmaml is left without its native module and runs on PyTorch alone; "
                "FASTMAML_BUILD=1 makes this an error, FASTMAML_BUILD=0 does not try."
            )

    def ninja(self, output: Path, nvcc: str | None) -> None:
        """Writes build.ninja into the build folder and runs it there."""
        folder_of("ninja")
        compiler = os.environ.get("CXX", "c++")
        if shutil.which(shlex.split(compiler)[0]) is None:
            raise CompileError(f"there was no C++ compiler {compiler}: install one, or set CXX.")
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(ninja_file(output, nvcc))
        command = [sys.executable, "-m", "ninja", "-C", str(folder)]
        if jobs := os.environ.get("MAX_JOBS"):
            command += ["-j", jobs]
        if subprocess.run(command).returncode != 0:
            raise CompileError("compiling csrc/ failed.")


LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")
"""A link or a picture of the README that leads into the repository."""


class Package(Distribution):
    """The README of the package index has no links that lead nowhere.

    They become absolute where pyproject.toml names the repository's address on the web
    (``[project.urls]``, ``Source = "https://.../blob/main"``); until then their text stays, and
    pictures go.
    """

    def parse_config_files(self, *args: object, **kwargs: object) -> None:
        """Read pyproject.toml, then put the README right."""
        super().parse_config_files(*args, **kwargs)
        source = (self.metadata.project_urls or {}).get("Source", "").rstrip("/")

        def shown(link: re.Match[str]) -> str:
            picture, text, path = link.groups()
            if not source:
                return "" if picture else text
            raw = "?raw=true" if picture else ""
            return f"{picture}[{text}]({source}/{path}{raw})"

        self.metadata.long_description = LINK.sub(shown, self.metadata.long_description or "")


build = choice("FASTMAML_BUILD")
asked = "1" in {build, choice("FASTMAML_CUDA")}
native = Extension("fastmaml._C", sources=[], optional=not asked)
setup(
    distclass=Package,
    packages=[
        *find_packages(include=["fastmaml", "fastmaml.*"], exclude=["fastmaml.kernels"]),
        "fastmaml.kernels",
    ],
    package_dir={"fastmaml.kernels": "kernels/triton"},
    ext_modules=[] if build == "0" else [native],
    cmdclass={"build_ext": Build},
)
