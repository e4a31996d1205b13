"""Two processes train one run: the numbers of a single one, one folder, and none that hangs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import leave
from torch import Tensor, multiprocessing, nn
from torch.nn import functional as F

from fastmaml import MAML, Episodes, LoopConfig, MetaTrainer, NonFiniteLoss, episodes, rules
from fastmaml.training import checkpoint
from fastmaml.training.callbacks import Callback
from fastmaml.training.interrupts import Interrupted
from fastmaml.training.outer_loop import OuterLoop
from fastmaml.training.ranks import Ranks

PROCESSES = 2

pytestmark = pytest.mark.slow
CONFIG = LoopConfig(
    iterations=4,
    accumulate=2,
    meta_lr=0.05,
    ema=0.5,
    warmup=2,
    clip=0.1,
    evaluate_every=2,
    validation_episodes=6,
    test_episodes=8,
    patience=3,
    plots=False,
)


class Source:
    """Digits in float64, spoilt or watched at a meta-batch."""

    def __init__(self, seed: int, tasks: int = 4, at: int = -1, event: Any = None) -> None:
        self.source = episodes.digits(ways=3, shots=2, queries=3, tasks=tasks, seed=seed)
        self.at, self.event, self.count = at, event, 0

    def __iter__(self) -> Iterator[Episodes]:
        for batch in self.source:
            self.count += 1
            found = batch.to(dtype=torch.float64)
            if self.count == self.at:
                self.event(found)
            yield found

    def state_dict(self) -> dict[str, Any]:
        return {**self.source.state_dict(), "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.source.load_state_dict(state)  # type: ignore[arg-type]
        self.count = state["count"]


class Network(nn.Module):
    """With running statistics, dropout and a layer that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        # Its bias would have a gradient of rounding errors alone, which Adam makes large.
        self.body, self.norm = nn.Linear(64, 6, bias=False), nn.BatchNorm1d(6)
        self.drop, self.head, self.unused = nn.Dropout(0.3), nn.Linear(6, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.body(x.flatten(1))).tanh()))


def run_of(out: Path, train: Any = None, seed: int = 0, **changes: Any) -> MetaTrainer:
    """Of the network above, with learned rates."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"batch_norm": "module", "executor": "eager"}
    maml = MAML(
        Network().double(), steps=2, loss=F.cross_entropy, rule=rules.MetaSGD(0.3), **settings
    )
    return MetaTrainer(
        maml,
        Source(0) if train is None else train,
        config=dataclasses.replace(CONFIG, out=str(out), **changes),
        validation=Source(1),
        test=Source(2, tasks=3),  # which cannot be divided: each process tests all of them
        screen=False,
    )


def state(run: MetaTrainer) -> list[Tensor]:
    run._put_back()
    kept = [*run.maml.state_dict().values()]
    for one in run.optimizer.state_dict()["state"].values():
        kept += one.values()
    return [*kept, *(run._averages.state_dict().values() if run._averages else ())]


def error_of(run: Callable[[], Any]) -> tuple[str, str]:
    try:
        run()
    except (Exception, KeyboardInterrupt) as error:
        return type(error).__name__, str(error)
    return "none", ""


def whole(rank: int, folder: Path) -> Any:
    run = run_of(folder / "whole", seed=rank)  # the first one's parameters are everybody's
    found = run.fit()
    return state(run), found.as_dict(), torch.get_rng_state()


def resumed(rank: int, folder: Path) -> Any:
    """A signal that reaches one process alone, and twice."""

    def event(_: Any) -> None:
        if rank == 1:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    stopped = run_of(folder / "resumed", Source(0, at=5, event=event))
    told = error_of(stopped.fit)
    at = stopped.iteration
    run = run_of(folder / "resumed", seed=7)
    run.resume(folder / "resumed" / "last.safetensors")
    found = run.fit()
    return told, at, state(run), found.as_dict()


def of_one_process(rank: int, folder: Path) -> Any:
    """Goes on with what a single process began."""
    run = run_of(folder / "one")
    run.resume(folder / "one" / "last.safetensors")
    run.fit()
    return state(run)


def spoilt(rank: int, folder: Path) -> Any:
    """A number that is none, in the second process's tasks."""

    def event(batch: Episodes) -> None:
        batch.query.inputs[-1] = math.nan

    run = run_of(folder / "spoilt", Source(0, at=3, event=event))
    return error_of(run.fit), run.iteration


def odd(rank: int, folder: Path) -> Any:
    return error_of(run_of(folder / "odd", Source(0, tasks=5), evaluate_every=0, patience=None).fit)


def apart(rank: int, folder: Path) -> Any:
    run = run_of(folder / "apart", Source(rank), evaluate_every=0, patience=None)
    return error_of(run.fit)


def broken(rank: int, folder: Path) -> Any:
    """The first process cannot write."""
    run = run_of(folder / "broken")
    run.folder = folder / "broken.txt" / "inside"
    if rank == 0:
        (folder / "broken.txt").write_text("a file")
    return error_of(run.fit)


class Enough(Callback):
    def on_iteration(self, trainer: OuterLoop, line: Mapping[str, Any]) -> None:
        if trainer.ranks.rank == 1 and trainer.iteration == 3:
            trainer.stop()


def stopped(rank: int, folder: Path) -> Any:
    run = run_of(folder / "stopped")
    run.callbacks.append(Enough())
    run.fit()
    return run.iteration


def told(rank: int, folder: Path) -> Any:
    ranks = Ranks.here(torch.device("cpu"))
    x = [torch.full((2,), float(rank + 1)), torch.full((3,), rank + 1)]
    ranks.add(x)
    return ranks.rank, ranks.world, ranks.highest(rank, -rank), ranks.gathered("ab"[rank]), x


CASES: dict[str, Callable[[int, Path], Any]] = {
    **{"told": told, "whole": whole, "resumed": resumed, "of one": of_one_process},
    **{"spoilt": spoilt, "odd": odd, "apart": apart, "broken": broken, "stopped": stopped},
}


def process(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(PROCESSES)}
    torch.distributed.init_process_group("gloo")
    found = {name: case(rank, Path(folder)) for name, case in CASES.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """What each process found."""
    begun = run_of(folder / "one", Source(0, at=5, event=lambda _: _interrupt()))
    with pytest.raises(Interrupted):
        begun.fit()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(process, (str(folder), port), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


def _interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def alone(folder: Path) -> MetaTrainer:
    run = run_of(folder / "alone")
    run.fit()
    return run


def close(a: list[Tensor], b: list[Tensor]) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def test_what_processes_tell_each_other(found: Found) -> None:
    for rank in range(PROCESSES):
        own, world, highest, gathered, added = found[rank]["told"]
        assert (own, world, highest, gathered) == (rank, 2, [1, 0], ["a", "b"])
        assert [x.tolist() for x in added] == [[3.0, 3.0], [3, 3, 3]]
        assert added[1].dtype == torch.int64


def test_the_numbers_are_those_of_one_process(
    found: Found, folder: Path, alone: MetaTrainer
) -> None:
    """With dropout, running statistics, accumulation, clipping, averages and learned rates."""
    for rank in range(PROCESSES):
        parameters, test, _ = found[rank]["whole"]
        close(parameters, state(alone))
        expected = json.loads((folder / "alone" / "result.json").read_text())["test"]
        assert test["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-6)
    for a, b in zip(lines(folder / "whole"), lines(folder / "alone"), strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"seconds", "validation", "accuracy"}:
            assert a[name] == pytest.approx(b[name], rel=1e-10)
    first, second = (found[rank]["whole"] for rank in range(PROCESSES))
    assert all(map(torch.equal, first[0], second[0]))
    assert torch.equal(first[2], second[2])


def test_dropout_and_statistics_are_in_the_run_above(alone: MetaTrainer) -> None:
    """Otherwise it would show nothing of them."""
    mean = dict(alone.maml.named_buffers())["module.norm.running_mean"]
    assert mean.abs().max() > 1e-3
    plain = run_of(alone.folder.parent / "plain")
    plain.maml.module.drop.p = 0.0
    plain.step()
    run = run_of(alone.folder.parent / "plain")
    run.step()
    assert not torch.allclose(state(plain)[0], state(run)[0], atol=1e-6)


def test_one_process_writes(found: Found, folder: Path) -> None:
    names = {x.name for x in (folder / "whole").iterdir()}
    assert names == {"last.safetensors", "best.safetensors", "metrics.jsonl", "result.json"}
    assert len(lines(folder / "whole")) == 5


def test_a_signal_in_one_process_stops_both_and_the_run_goes_on(found: Found, folder: Path) -> None:
    expected = found[0]["whole"]
    for rank in range(PROCESSES):
        told, at, parameters, test = found[rank]["resumed"]
        assert told == ("Interrupted", "SIGTERM")
        assert at == 3
        assert all(map(torch.equal, parameters, expected[0])), "bit for bit"
        assert test == expected[1]
    assert [x["iteration"] for x in lines(folder / "resumed")] == [0, 1, 2, 3, 4]


def test_a_run_goes_on_with_another_number_of_processes(found: Found, alone: MetaTrainer) -> None:
    for rank in range(PROCESSES):
        close(found[rank]["of one"], state(alone))


def test_a_loss_that_is_none_in_one_process_is_told_by_both(found: Found, folder: Path) -> None:
    (first, second) = (found[rank]["spoilt"] for rank in range(PROCESSES))
    assert first[0][0] == second[0][0] == NonFiniteLoss.__name__
    assert first[0][1] == f"in process 1: {second[0][1]}"
    assert first[1] == second[1] == 1
    assert checkpoint.load(folder / "spoilt" / "last.safetensors").iteration == 1


def test_what_cannot_be_divided_is_refused(found: Found) -> None:
    for rank in range(PROCESSES):
        kind, message = found[rank]["odd"]
        assert kind == "ValueError"
        assert "tasks=5 of a meta-batch cannot be divided among 2 processes" in message
        assert "give tasks=4 or tasks=6" in message


def test_processes_with_other_episodes_are_refused(found: Found) -> None:
    for rank in range(PROCESSES):
        kind, message = found[rank]["apart"]
        assert kind == "ValueError"
        assert "the processes drew different meta-batches" in message


def test_an_error_of_the_first_alone_ends_both(found: Found) -> None:
    first, second = (found[rank]["broken"] for rank in range(PROCESSES))
    assert first[0] == "RunFolderError"
    assert second == ("OtherProcessError", f"in process 0: {first[1]}")


def test_a_callback_of_one_process_stops_both(found: Found) -> None:
    assert [found[rank]["stopped"] for rank in range(PROCESSES)] == [3, 3]
