"""Tasks and a frozen base divided over two processes: the meta-gradient of one."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import frozen_bases as bases
import pytest
import torch
from frozen_bases import EXACT, gradients, maml, tied
from problems import relative
from ranks import leave
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import fastmaml as fm
from fastmaml import frozen
from fastmaml.gradients import GradientMethod, Unrolled

PROCESSES = 2
LIBRARIES = all(find_spec(name) is not None for name in ("transformers", "peft"))


def mine(data: fm.Episodes) -> fm.Episodes:
    half = bases.TASKS // PROCESSES
    return data[distributed.get_rank() * half :][:half]


def divided(learner: fm.MAML, data: fm.Episodes) -> Tensor:
    """The meta-gradient where each rank has half of the tasks."""
    wrapped = DistributedDataParallel(learner)
    wrapped(mine(data)).loss.backward()
    return gradients(learner)


def convolutions(method: GradientMethod, **more: Any) -> fm.MAML:
    return fm.MAML(
        bases.conv(), 0.3, steps=bases.STEPS, loss=F.cross_entropy, gradient=method, **more
    )


def convolutional() -> dict[str, Tensor]:
    """A model of which all adapts."""
    found = {}
    for m in EXACT:
        learner = convolutions(EXACT[m], executor=None if m == "unrolled" else "eager")
        found[m] = divided(learner, bases.images())
    return found


def adapters(name: str) -> dict[str, Tensor]:
    """With the base on every rank, and with a share of it on each."""
    make, data, _ = bases.BASES[name]
    found = {}
    for m in EXACT:
        found[m] = divided(maml(name, make(), EXACT[m]), data())
        shared = frozen.shard(make(), "cpu")
        found[f"{m}, shared"] = divided(maml(name, shared, EXACT[m]), data())
    return found


@torch.no_grad()
def _whole(learner: fm.MAML) -> Tensor:
    return torch.cat([p.full_tensor().flatten() for p in learner.parameters()])


def around() -> dict[str, Tensor]:
    """FSDP2 around a `MAML`: parameters that are trained in shares."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    found = {}
    for name, executor in (("unrolled", None), ("mixed-mode", None), ("segments", "eager")):
        learner = rated(EXACT[name], executor=executor)
        fully_shard(learner, mesh=init_device_mesh("cpu", (PROCESSES,)), reshard_after_forward=True)
        with warnings.catch_warnings():  # of outputs that are views, which nothing writes to
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module.*view")
            train(learner, mine)
            learner.zero_grad()
            (learner(mine(bases.images())).losses.square().sum() * PROCESSES).backward()
        found[name] = _whole(learner)
        found[f"{name}, own loss"] = torch.cat(
            [p.grad.full_tensor().flatten() for p in learner.parameters()]
        )
        learner.unshard()
        found[f"{name}, evaluated"] = learner.evaluate(bases.images()).losses
        learner.reshard()
    return found


def rated(method: GradientMethod, **more: Any) -> fm.MAML:
    """Its inner rates are learned, too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, bases.WAYS))
    rule = fm.rules.MetaSGD(0.3)
    return fm.MAML(
        model.double(), rule=rule, steps=2, loss=F.cross_entropy, gradient=method, **more
    )


def train(learner: fm.MAML, part: Callable[[fm.Episodes], fm.Episodes]) -> None:
    """So far that recordings are held against eager runs."""
    optimizer = torch.optim.Adam(learner.parameters(), 0.01)
    for _ in range(5):
        optimizer.zero_grad()
        learner(part(bases.images())).loss.backward()
        optimizer.step()


def bytes_kept() -> tuple[int, int]:
    """Of the shares of a rank, and of all that was frozen."""
    whole = sum({id(p): p.nbytes for p in tied().parameters() if not p.requires_grad}.values())
    model = frozen.shard(tied(), "cpu")
    kept = {id(m.kept): m.kept for m in model.modules() if hasattr(m, "kept")}
    assert not [p for p in model.parameters() if not p.requires_grad]
    return sum(k.share.untyped_storage().nbytes() for k in kept.values()), whole


def odd_shapes() -> list[bool]:
    """Whether weights come back to the bit whose bytes do not divide by the number of ranks."""
    found = []
    for shape, dtype in (
        ((3, 5), torch.float64),
        ((1, 1), torch.bfloat16),
        ((7, 3), torch.float16),
    ):
        torch.manual_seed(0)
        layer = nn.Linear(shape[1], shape[0], bias=False, dtype=dtype).requires_grad_(False)
        weight = layer.weight.clone()
        kept = frozen.shard(nn.Sequential(layer), "cpu")[0].kept
        found.append(torch.equal(kept.whole(torch.device("cpu")), weight))
    return found


def states() -> list[list[str]]:
    """What a state dict holds and what loading one that holds the base does."""
    plain, model = tied().state_dict(), frozen.shard(tied(), "cpu")
    own = model.state_dict()
    missing = sorted(plain.keys() - own.keys())
    model.load_state_dict(own)
    model.load_state_dict({n: 2 * x for n, x in plain.items()})
    doubled = model.words.kept.whole(torch.device("cpu"))
    assert torch.equal(doubled, 2 * plain["words.weight"])
    assert model.words.kept is model.out.kept
    return [missing]


def message(function: Callable[[], Any], kind: type[Exception] = ValueError) -> str:
    try:
        function()
    except kind as error:
        return str(error)
    raise AssertionError("nothing was raised")


def errors() -> dict[str, str]:
    """What is said of what cannot be right; by every rank."""
    rank = distributed.get_rank()
    model = frozen.shard(tied(), "cpu")
    inner = model.first.base if rank == 0 else model.words  # of another size
    found = {"order": message(lambda: inner.kept.whole(torch.device("cpu")), RuntimeError)}
    for row in (-1, bases.WORDS):
        numbers = torch.tensor([0, row])
        found[f"row {row}"] = message(lambda n=numbers: model.words(n), IndexError)
    other = tied()
    with torch.no_grad():
        other.words.weight += rank
    found["weights"] = message(lambda: frozen.shard(other, "cpu"))
    found["pickle"] = message(lambda: pickle.dumps(model), TypeError)

    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (PROCESSES,))
    layers = tied()
    fully_shard(layers.second, mesh=mesh)
    found["FSDP"] = message(lambda: fm.MAML(layers, 0.1))
    found["FSDP, sharded"] = message(lambda: frozen.offload(layers, "cpu"))
    spread = tied()
    weight = distribute_tensor(spread.first.base.weight.detach(), mesh, [Shard(0)])
    spread.first.base.weight = nn.Parameter(weight, requires_grad=False)
    found["DTensor"] = message(lambda: fm.MAML(spread, 0.1))
    inside, around = maml("tied", tied(), None), maml("tied", tied(), None)
    fully_shard(inside.module.second, mesh=mesh)
    fully_shard(around, mesh=mesh)
    found["inside"] = message(lambda: inside(bases.words()))
    found["clone"] = message(around.clone)
    for name in ("evaluate", "explain"):
        found[name] = message(lambda name=name: getattr(around, name)(bases.words()))
    return found


CASES: dict[str, Callable[[], Any]] = {
    "conv": convolutional,
    "tied": partial(adapters, "tied"),
    "around": around,
    "bytes": bytes_kept,
    "odd shapes": odd_shapes,
    "states": states,
    "errors": errors,
}
SLOW: dict[str, Callable[[], Any]] = {"llama": partial(adapters, "llama")}


def run(rank: int, folder: str, slow: bool) -> None:
    """Every case in turn, as a start of two processes takes longer than all of them."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        f"file://{folder}/store",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=60),
    )
    cases = SLOW if slow else CASES
    torch.save({name: case() for name, case in cases.items()}, f"{folder}/{rank}.pt")
    leave()


Found = list[dict[str, Any]]


def run_both(folder: Path, slow: bool = False) -> Found:
    """What each rank found."""
    multiprocessing.spawn(run, (str(folder), slow), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return run_both(tmp_path_factory.mktemp("ranks"))


def of_one_process(name: str) -> Tensor:
    if name in bases.BASES:
        return bases.expected(name)
    learner = convolutions(Unrolled(), executor="eager", backend="reference")
    learner(bases.images()).loss.backward()
    return gradients(learner)


def assert_equal_one(found: Found, name: str) -> None:
    whole = of_one_process(name)
    for rank in found:
        assert len(rank[name]) == (1 if name == "conv" else 2) * len(EXACT)
        for case, gradient in rank[name].items():
            assert relative(gradient, whole) < 1e-12, case


@pytest.mark.parametrize("name", ["conv", "tied"])
def test_two_processes_equal_one(found: Found, name: str) -> None:
    assert_equal_one(found, name)


def test_fsdp_around_a_maml_trains_as_one_process(found: Found) -> None:
    learner = rated(Unrolled())
    train(learner, lambda data: data)
    learner.zero_grad()
    learner(bases.images()).losses.square().sum().backward()
    expected = {
        "": torch.cat([p.detach().flatten() for p in learner.parameters()]),
        ", own loss": gradients(learner),
        ", evaluated": learner.evaluate(bases.images()).losses,
    }
    for rank in found:
        for case, x in rank["around"].items():
            kind = case[case.index(",") :] if "," in case else ""
            assert relative(x, expected[kind]) < 1e-12, case


@pytest.mark.slow
def test_two_processes_with_a_transformer_equal_one(tmp_path: Path) -> None:
    if not LIBRARIES:
        pytest.skip("needs fastmaml[text]")
    assert_equal_one(run_both(tmp_path, slow=True), "llama")


def test_a_rank_keeps_its_share(found: Found) -> None:
    for rank in found:
        kept, whole = rank["bytes"]
        assert kept <= whole / PROCESSES + 3 * 16  # a share is rounded up
        assert rank["odd shapes"] == [True] * 3


def test_the_base_is_in_no_state_dict(found: Found) -> None:
    names = ["first.base.weight", "out.weight", "second.base.weight", "words.weight"]
    assert all(rank["states"] == [names] for rank in found)


def test_what_cannot_be_right_is_refused_on_every_rank(found: Found) -> None:
    for number, rank in enumerate(found):
        said = rank["errors"]
        asked = ("first.base.weight", "words.weight")[number]
        assert f"rank {number} asks for the frozen weight {asked}, and" in said["order"]
        assert "do not run the same meta-step" in said["order"]
        for row in (-1, bases.WORDS):
            assert f"rows 0 to 10, and row {row} is looked up" in said[f"row {row}"]
        assert "has other frozen weights than this rank (words" in said["weights"]
        assert "cannot be pickled" in said["pickle"]
        assert "model.second is sharded by FSDP" in said["FSDP"]
        assert "frozen.shard(model, device)" in said["FSDP"]
        assert "model.second is sharded by FSDP" in said["inside"]
        assert "clone() goes past the hooks" in said["clone"]
        for name in ("evaluate", "explain"):
            assert "is a DTensor, of which each rank has a share" in said[name]
            assert "between its unshard() and reshard()" in said[name]
        assert "weight is a DTensor: give the model before it is sharded" in said["FSDP, sharded"]
        assert "the parameter first.base.weight is a DTensor" in said["DTensor"]


def test_a_process_group_is_needed() -> None:
    with pytest.raises(ValueError, match=r"init_process_group\(\), and launch with torchrun"):
        frozen.shard(tied(), "cpu")


def test_words_differ_from_rank_to_rank() -> None:
    """Else halves would be alike, and the test of nothing."""
    data = bases.words()
    assert not torch.equal(data.support.inputs[:2], data.support.inputs[2:])
