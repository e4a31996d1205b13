"""`install()` and ``python -m fastmaml.compat``: the libraries' own names reach our modules.

In processes of their own: this one may have the real libraries.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from fastmaml.compat.__main__ import main

PACKAGE = {
    # Somebody's package that knows nothing of fastmaml.
    "few_shot/__init__.py": """
import higher
from few_shot.data import tasks
from few_shot.learners import adapt, adapt_by_higher
""",
    "few_shot/learners.py": """
from importlib.metadata import version
import learn2learn as l2l
from learn2learn.algorithms.maml import MAML
from higher import innerloop_ctx
from higher.patch import _MonkeyPatchBase
import torch.nn.functional as F, torch

assert version("learn2learn") == l2l.__version__ == "0.2.0" and version("Higher") == "0.2.1"

def adapt(model, x, y):
    learner = MAML(model, lr=0.1).clone()
    learner.adapt(F.mse_loss(learner(x), y))
    return F.mse_loss(learner(x), y)

def adapt_by_higher(model, x, y):
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with innerloop_ctx(model, sgd, copy_initial_weights=False) as (fmodel, diffopt):
        assert isinstance(fmodel, _MonkeyPatchBase) and not isinstance(model, _MonkeyPatchBase)
        diffopt.step(F.mse_loss(fmodel(x), y))
        return F.mse_loss(fmodel(x), y)
""",
    "few_shot/data.py": """
from learn2learn.data.transforms import NWays, KShots, LoadData
from learn2learn.data import MetaDataset, TaskDataset

def tasks(dataset):
    dataset = MetaDataset(dataset)
    return TaskDataset(dataset, [NWays(dataset, 2), KShots(dataset, 3), LoadData(dataset)])
""",
}

SAID = """
def said(kind, call, *arguments):
    try:
        call(*arguments)
    except kind as error:
        return str(error)
    raise AssertionError(f"{arguments} was taken")
"""

SCRIPT = (
    SAID
    + """
import importlib, importlib.util, pickle, pkgutil, sys
import few_shot, torch
from torch import nn
import fastmaml.compat as compat
import fastmaml.compat.higher, fastmaml.compat.learn2learn as ours

# Theirs are ours, whatever the order of imports: never a second copy.
import learn2learn as l2l
assert l2l is ours and l2l.algorithms.MAML is ours.algorithms.MAML
looked_at = 0
for found in pkgutil.walk_packages(compat.__path__):
    if found.name.partition(".")[0] in ("higher", "learn2learn"):
        try:
            real = importlib.import_module("fastmaml.compat." + found.name)
        except ImportError:  # an extra that is not installed: the same under the other name
            said(ImportError, importlib.import_module, found.name)
            continue
        parent, _, child = real.__name__.rpartition(".")
        before = getattr(sys.modules[parent], child)
        assert importlib.import_module(found.name) is real, found.name
        assert real.__name__ == "fastmaml.compat." + found.name == real.__spec__.name
        assert getattr(sys.modules[parent], child) is before, f"{child} was hidden"
        looked_at += 1
assert looked_at > 40
if importlib.util.find_spec("gymnasium"):
    import learn2learn.gym.envs
    assert learn2learn.gym is ours.gym and l2l.gym.envs is ours.gym.envs

# The same numbers, and what a pickle of the real library names.
torch.manual_seed(0)
model, (x, y) = nn.Linear(3, 1).double(), torch.randn(2, 8, 3).double()
y = y[:, :1]
grads = []
for adapt in few_shot.adapt, few_shot.adapt_by_higher:
    grads.append(torch.autograd.grad(adapt(model, x, y), list(model.parameters())))
learner = ours.algorithms.MAML(model, lr=0.1).clone()
learner.adapt(nn.functional.mse_loss(learner(x), y))
mine = torch.autograd.grad(nn.functional.mse_loss(learner(x), y), list(model.parameters()))
for other in grads:
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b)
data = torch.utils.data.TensorDataset(torch.arange(12.0), torch.arange(12) % 3)
images, labels = few_shot.tasks(data).sample()
assert len(images) == 6 and len(set(labels.tolist())) == 2
assert pickle.loads(b"clearn2learn.algorithms.maml\\nMAML\\n.") is ours.algorithms.MAML
assert b"fastmaml.compat.learn2learn" in pickle.dumps(ours.algorithms.MAML)

print(__name__, __file__, sys.argv, sys.path[0], __spec__)
sys.exit(int(sys.argv[1]))
"""
)

DOORS = (
    SAID
    + """
import importlib, importlib.metadata, importlib.util, sys, types
import fastmaml.compat as compat

real = importlib.util.find_spec("higher")
compat.install("higher")
assert not [m for m in sys.modules if m.startswith(("fastmaml.compat.higher", "higher"))]
assert importlib.util.find_spec("higher").origin.endswith("__init__.py")
compat.install()
once = list(sys.meta_path)
compat.install()
assert sys.meta_path == once
assert importlib.metadata.packages_distributions()["learn2learn"] == ["learn2learn"]
assert importlib.metadata.requires("higher") is None and importlib.metadata.files("higher") is None

for name in "learn2learn.nothing", "higher.nothing":
    assert name in said(ModuleNotFoundError, importlib.import_module, name)
assert importlib.util.find_spec("higher.nothing") is None, "as one asks for what may be there"
said(ImportError, exec, "from higher import nothing")
assert "learn2learn and higher" in said(ValueError, compat.install, "torchmeta")

import higher.optim
kept = higher
compat.uninstall()
assert [m for m in sys.modules if m.partition(".")[0] == "higher"] == []
assert (importlib.util.find_spec("higher") is None) == (real is None)
if real is None:
    said(ModuleNotFoundError, importlib.import_module, "higher.optim")
    said(importlib.metadata.PackageNotFoundError, importlib.metadata.version, "higher")

# The real one was there before.
sys.modules["higher"] = types.ModuleType("higher")
sys.modules["higher"].__file__ = "/elsewhere/higher/__init__.py"
why = said(RuntimeError, compat.install)
assert "/elsewhere/higher/__init__.py" in why and "install() first" in why
assert [f for f in sys.meta_path if f in once] == sys.meta_path, "and the other was not taken"
compat.install("learn2learn")
del sys.modules["higher"]
compat.install()
import higher
assert higher is kept
"""
)

SPAWNED = """
import fastmaml.compat
fastmaml.compat.install()
import learn2learn as l2l, torch
from higher.optim import DifferentiableSGD

class Data(torch.utils.data.Dataset):
    kind = l2l.algorithms.MAML
    def __len__(self):
        return 2
    def __getitem__(self, i):
        import learn2learn.nn.misc
        return len(l2l.nn.misc.Scale(3).alpha) + i

if __name__ == "__main__":
    loader = torch.utils.data.DataLoader(Data(), num_workers=1, multiprocessing_context="spawn")
    print([x.item() for x in loader])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error::ImportWarning"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_script_and_a_package_that_import_the_libraries_themselves(folder: Path) -> None:
    (folder / "scripts").mkdir()
    (folder / "scripts" / "train.py").write_text(SCRIPT)
    (folder / "few_shot").rename(folder / "scripts" / "few_shot")
    done = python(folder, "-m", "fastmaml.compat", "scripts/train.py", "3", "--only", "-m")
    assert done.returncode == 3, done.stderr
    file = str(folder / "scripts" / "train.py")
    seen = f"__main__ {file} {[file, '3', '--only', '-m']} {folder / 'scripts'} None\n"
    assert done.stdout == seen


def test_threads_that_import_at_once(folder: Path) -> None:
    """None waits for the other for ever, and each gets the whole module."""
    (folder / "threads.py").write_text(
        "import importlib, threading\n"
        "from fastmaml.compat import install\n"
        "install()\n"
        "names = ['higher.optim', 'higher', 'learn2learn.data', 'learn2learn', 'higher.utils']\n"
        "names += ['learn2learn.vision.models', 'learn2learn.optim.transforms', 'higher.patch']\n"
        "found = {}\n"
        "def load(name):\n"
        "    found[name] = importlib.import_module(name)\n"
        "threads = [threading.Thread(target=load, args=(n,), daemon=True) for n in names]\n"
        "for t in threads: t.start()\n"
        "for t in threads: t.join(120)\n"
        "assert all(found[n] is importlib.import_module('fastmaml.compat.' + n) for n in names)\n"
    )
    done = python(folder, "threads.py")
    assert done.returncode == 0, done.stderr


def test_a_module(folder: Path) -> None:
    (folder / "few_shot" / "__init__.py").write_text("")
    (folder / "few_shot" / "__main__.py").write_text(
        "import sys, higher\n"
        "assert 'learn2learn' not in str([f for f in sys.meta_path if hasattr(f, 'name')])\n"
        "print(__name__, sys.argv[1:], __spec__.name)\n"
        "higher.optim.nothing\n"
    )
    done = python(folder, "-m", "fastmaml.compat", "--only", "higher", "-m", "few_shot", "-x")
    assert done.stdout == "__main__ ['-x'] few_shot.__main__\n"
    assert done.returncode == 1
    assert "module 'fastmaml.compat.higher.optim' has no attribute 'nothing'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nowhere.py"], 2, "can't open file"),
        (["-m", "few_shot.nowhere"], 1, "No module named few_shot.nowhere"),
        ([], 2, "name a script"),
    ],
)
def test_what_is_not_there_is_said_in_a_line(
    arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(sys.meta_path)
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == code
    assert sys.meta_path == before
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("python -m fastmaml.compat: ")
    assert says in last


def test_the_doors_open_and_close(tmp_path: Path) -> None:
    done = python(tmp_path, "-c", DOORS)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_spawned_workers_run_the_call_at_the_top_of_the_script(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SPAWNED)
    done = python(tmp_path, "train.py")
    assert done.stdout == "[3, 4]\n", done.stderr
