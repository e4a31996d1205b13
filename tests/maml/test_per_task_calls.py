"""Calls of a per-task function: what it is given, prints and returns, and what is kept of it."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from per_task_cases import PATHS, TASKS, by_hand, check, data, gradients, network
from problems import relative
from torch import Tensor, nn

import fastmaml as fm
import fastmaml.compat.learn2learn as l2l

# ------------------------------------------------------------------------------ what it returns


def right(learner: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    logits = learner(x)
    return F.cross_entropy(logits, y), (logits.argmax(-1) == y).double().mean()


@pytest.mark.parametrize("path", [p for p in PATHS if p != "captured"])
def test_a_number_of_one_task_is_never_that_of_all(path: str) -> None:
    def task(learner: Any, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Any:
        learner.adapt(right(learner, xs, ys)[0])
        loss, accuracy = right(learner, xq, yq)
        numbers = accuracy.item(), accuracy.detach().numpy(), bool(accuracy > 0.5)
        return loss, {"numbers": numbers, "tensor": accuracy}

    run = fm.MAML(network(), lr=0.3, **PATHS[path]).per_task(task)
    seen = set()
    for seed in (1, 2, 3):  # what was measured at one call is not told at the next
        out = run(*data(seed=seed)).outputs
        wanted = out["tensor"].detach()
        number, array, flag = out["numbers"]
        torch.testing.assert_close(number.double().detach(), wanted)
        torch.testing.assert_close(array.detach(), wanted)
        assert flag.tolist() == (wanted > 0.5).tolist()
        seen |= set(wanted.tolist())
    assert len(seen) > 1


@pytest.mark.parametrize("path", PATHS)
def test_constants_become_tensors_whatever_runs(path: str) -> None:
    def task(learner: Any, x: Tensor, y: Tensor, *_: Tensor) -> Any:
        return right(learner, x, y)[0], [3, 0.5, True, None]

    steps, half, yes, nothing = (
        fm.MAML(network(), lr=0.3, **PATHS[path]).per_task(task)(*data()).outputs
    )
    assert steps.tolist() == [3] * TASKS
    assert half.tolist() == [0.5] * TASKS
    assert yes.tolist() == [True] * TASKS
    assert nothing is None


def test_numbers_cannot_be_recorded_and_the_log_says_what_to_return(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def task(learner: Any, x: Tensor, y: Tensor, *_: Tensor) -> Any:
        loss, accuracy = right(learner, x, y)
        return loss, accuracy.item()

    with pytest.raises(RuntimeError, match=r"cannot be recorded.*_local_scalar_dense.*eager"):
        fm.MAML(network(), lr=0.3, executor="captured").per_task(task)(*data())
    caplog.clear()
    with caplog.at_level(logging.WARNING, "fastmaml"):
        run = fm.MAML(network(), lr=0.3).per_task(task)
        run(*data())
        run(*data())
    assert caplog.text.count("Return tensors, not numbers") == 2  # why not batched; not recorded


@pytest.mark.parametrize("more", ["name", object()])
def test_what_cannot_be_told_apart_is_refused(more: Any) -> None:
    def task(learner: Any, x: Tensor, y: Tensor, *_: Tensor) -> Any:
        return right(learner, x, y)[0], {"of it": more}

    with pytest.raises(ValueError, match="beside the loss: return tensors"):
        fm.MAML(network(), lr=0.3).per_task(task)(*data())


# ---------------------------------------------------------------------------- what it is given


def test_keywords_are_arguments() -> None:
    model, given = network(), data()
    xs, ys, xq, yq = given

    def task(learner: Any, x: Tensor, y: Tensor, *, steps: int = 1, query: Any) -> Tensor:
        for k in range(steps):
            learner.adapt(F.cross_entropy(learner(x), y) * (k + 1))
        return F.cross_entropy(learner(query["x"]), query["y"])

    run = fm.MAML(model, lr=0.3).per_task(task)
    for steps in (3, 1):
        torch.stack(by_hand(model, given, 0.3, steps, False)).mean().backward()
        expected = gradients(model)
        run(xs, y=ys, steps=steps, query={"x": xq, "y": yq}).loss.backward()
        check(gradients(model), expected)


def test_keywords_beside_episodes() -> None:
    model, given = network(), data()
    xs, ys, xq, yq = given

    def task(learner: Any, support: fm.Batch, query: fm.Batch, weight: Any = 1.0) -> Tensor:
        learner.adapt(F.cross_entropy(learner(support.inputs), support.targets))
        return weight * F.cross_entropy(learner(query.inputs), query.targets)

    run = fm.MAML(model, lr=0.3).per_task(task)
    episodes = fm.Episodes(fm.Batch(xs, ys), fm.Batch(xq, yq))
    weights = torch.tensor([1.0, 2.0, 3.0]).double()
    plain = run(episodes).losses
    torch.testing.assert_close(run(episodes, weight=2.0).losses, 2 * plain)
    torch.testing.assert_close(run(episodes, weight=weights).losses, weights * plain)


def test_it_has_the_functions_name_and_docstring() -> None:
    class Callable:
        maml = "of its own"

        def __call__(self, learner: Any, x: Tensor) -> Tensor:
            return learner(x).square().mean()

    maml = fm.MAML(network(), lr=0.3)
    run = maml.per_task(right)
    assert run.__name__ == "right"
    run = maml.per_task(Callable())
    assert run.maml is maml
    assert run(data()[0]).loss.isfinite()


# ----------------------------------------------------------------------------------- splitting


def even_and_odd(x: Tensor, y: Tensor) -> Any:
    return (x[::2], y[::2]), (x[1::2], y[1::2])


def by_numpy(x: Tensor, y: Tensor) -> Any:
    """As learn2learn's examples do."""
    adaptation = np.zeros(x.size(0), dtype=bool)
    adaptation[np.arange(x.size(0) // 2) * 2] = True
    evaluation = torch.from_numpy(~adaptation)
    mask = torch.from_numpy(adaptation)
    return (x[mask], y[mask]), (x[evaluation], y[evaluation])


def by_mask(x: Tensor, y: Tensor) -> Any:
    mask = torch.zeros(x.size(0), dtype=torch.bool)
    mask[torch.arange(x.size(0) // 2) * 2] = True
    return (x[mask], y[mask]), (x[~mask], y[~mask])


SPLITS: dict[str, Any] = {
    "slices": even_and_odd,
    "numpy's mask": by_numpy,
    "a mask": by_mask,
    "partition_task": lambda x, y: l2l.data.partition_task(x, y, shots=2),
    "partition_task, ways": lambda x, y: l2l.data.partition_task(x, y, shots=2, ways=3),
}


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("path", ["eager", "one by one", "native"])
@pytest.mark.parametrize("split", SPLITS)
def test_ways_to_split_a_task(split: str, path: str) -> None:
    """Right at every call, whatever runs; and never on ops that are slow where nothing records."""
    model = network()
    run = fm.MAML(model, lr=0.3, **PATHS[path]).per_task(
        lambda learner, x, y: adapted(learner, *SPLITS[split](x, y))
    )
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(TASKS, 12, 4, generator=generator, dtype=torch.float64)
        y = torch.stack([torch.randperm(12, generator=generator) % 3 for _ in range(TASKS)])
        halves = [SPLITS[split](*task) for task in zip(x, y, strict=True)]
        given = [[half[i][j] for half in halves] for i in (0, 1) for j in (0, 1)]
        torch.stack(by_hand(model, given, 0.3, 1, False)).mean().backward()
        expected = gradients(model)
        run(x, y).loss.backward()
        check(gradients(model), expected)
    (plan,) = run._plans.values()
    if "ways" in split or split == "slices":
        assert plan.batched or path == "one by one"
        assert plan.recorded
    if split == "partition_task" and path != "eager":
        assert not plan.batched
    assert plan.recorded or plan.backend == "reference"


def adapted(learner: Any, support: Any, query: Any) -> Tensor:
    learner.adapt(right(learner, *support)[0])
    return right(learner, *query)[0]


# --------------------------------------------------------------------------------------- prints


def test_prints_appear_once_and_are_announced(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def task(learner: Any, x: Tensor, y: Tensor, *_: Tensor) -> Tensor:
        print("adapting")
        return F.cross_entropy(learner(x), y)

    for how in ({}, {"tasks_chunk": 2}):  # a rest of one is a recording of its own
        run = fm.MAML(network(), lr=0.5, **how).per_task(task)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "fastmaml"):
            run(*data())
            assert capsys.readouterr().out.count("adapting") == 1
            run(*data())
        assert "adapting" not in capsys.readouterr().out
        assert caplog.text.count("prints") == 1
    run = fm.MAML(network(), lr=0.5, executor="eager", tasks_chunk=1).per_task(task)
    for _ in range(2):
        run(*data())
        assert capsys.readouterr().out.count("adapting") == TASKS


def test_prints_of_what_cannot_be_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    def task(learner: Any, x: Tensor, y: Tensor, *_: Tensor) -> Tensor:
        loss = F.cross_entropy(learner(x), y)
        print("loss", loss.item())
        return loss

    run = fm.MAML(network(), lr=0.5).per_task(task)
    for _ in range(2):
        losses = run(*data()).losses.tolist()
        assert capsys.readouterr().out == "".join(f"loss {x}\n" for x in losses)


def test_prints_before_an_error_are_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    def task(learner: Any, x: Tensor, y: Tensor, *_: Tensor) -> Tensor:
        print("about to fail", x.shape)
        raise LookupError

    with pytest.raises(LookupError):
        fm.MAML(network(), lr=0.5).per_task(task)(*data())
    assert "about to fail" in capsys.readouterr().out


def test_a_debuggers_prompt_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    def task(learner: Any, x: Tensor, y: Tensor, *_: Tensor) -> Tensor:
        exec("print('(Pdb) ')", {"__name__": "pdb"})
        seen.append("(Pdb)" in capsys.readouterr().out)
        return F.cross_entropy(learner(x), y)

    seen: list[bool] = []
    fm.MAML(network(), lr=0.5, executor="eager").per_task(task)(*data())
    assert all(seen)


# -------------------------------------------------------------------------------- normalisation


def normed(training: bool) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
    model(torch.randn(20, 4, dtype=torch.float64) * 3)
    return model.train(training)


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("path", ["one by one", "native"])
@pytest.mark.parametrize("training", [True, False])
def test_fast_learners_normalise_as_the_loop_does(
    training: bool, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    def task(learner: Any, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        return adapted(learner, (xs, ys), (xq, yq))

    model, given = normed(training), data()
    slow = l2l.algorithms.MAML(copy.deepcopy(model), 0.3)
    for one in zip(*given, strict=True):
        (task(slow.clone(), *one) / TASKS).backward()
    expected = torch.cat([p.grad.flatten() for p in slow.parameters()])
    before = copy.deepcopy(model.state_dict())
    with caplog.at_level(logging.INFO, "fastmaml"):
        run = l2l.algorithms.MAML(model, 0.3).fast(**PATHS[path]).per_task(task)
        for _ in range(2):
            model.zero_grad()
            run(*given).loss.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert relative(found, expected) < 1e-11
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())
    assert caplog.text.count("does not write the model's running statistics") == int(training)


def test_modes_of_both_kinds_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.BatchNorm1d(6)).double()
    model[1].eval()
    task = lambda learner, x: learner(x).square().mean()  # noqa: E731
    with pytest.raises(ValueError, match=r'maml.fast\(batch_norm="batch"\)'):
        l2l.algorithms.MAML(model, 0.3).fast().per_task(task)(data()[0])
    fast = l2l.algorithms.MAML(model, 0.3).fast(batch_norm="batch")
    assert fast.per_task(task)(data()[0]).loss.isfinite()


# -------------------------------------------------------------------------------- what is kept


@pytest.mark.slow
def test_plans_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmaml.engine.guards.plans.MAX_PLANS", 16)
    run = fm.MAML(network(), lr=0.3, executor="eager").per_task(right)
    x, y, _, _ = data(30)
    for size in range(1, 25):
        run(x[:, :size], y[:, :size])
    assert len(run._plans) == 16
    known = set(map(id, run._plans.values()))
    run(x[:, :24], y[:, :24])
    assert set(map(id, run._plans.values())) == known
