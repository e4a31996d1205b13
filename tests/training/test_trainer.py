"""The outer loop: exact resume, honest evaluation, and files that agree with one another."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sinusoid_runs import CONFIG, Watched, final_state, lines, mean_square, trainer
from torch import nn

from fastmaml import MAML, Episodes, NonFiniteLoss, episodes
from fastmaml._environment import versions
from fastmaml.training.config import LoopConfig, TrainConfig
from fastmaml.training.evaluation import evaluate
from fastmaml.training.interrupts import Interrupted
from fastmaml.training.schedules import cosine, multi_step_weights
from fastmaml.training.trainer import MetaTrainer, _Repeated


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def crash() -> None:
    raise OSError("the disk is gone")


def best_until(folder: Path, iteration: int) -> int:
    """The iteration of the best validation."""
    found = [(x["validation"]["loss"], x["iteration"]) for x in lines(folder) if "validation" in x]
    found = [x for x in found if x[1]]
    return min(x for x in found if x[1] <= iteration)[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> MetaTrainer:
    """The run that nothing interrupts."""
    run = trainer(tmp_path_factory.mktemp("whole"))
    run.fit()
    return run


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize(
    ("at", "event", "error", "resumed_at"),
    [
        (2, ctrl_c, Interrupted, 2),  # among the first-order iterations
        (6, ctrl_c, Interrupted, 6),  # right after an evaluation, in the multi-step loss
        (10, ctrl_c, Interrupted, 10),  # before the final test
        (7, crash, OSError, 4),  # metrics go beyond the checkpoint
    ],
)
def test_resumed_is_as_uninterrupted(
    whole: MetaTrainer, tmp_path: Path, at: int, event: Any, error: Any, resumed_at: int
) -> None:
    with pytest.raises(error):
        trainer(tmp_path, Watched(at, event)).fit()
    if error is OSError:
        assert lines(tmp_path)[-1]["iteration"] == 6
        resumed_at = max(resumed_at, best_until(tmp_path, 6))  # which was saved, too
    run = trainer(tmp_path, seed=5)
    torch.manual_seed(99)  # nothing may hang on what happened before
    run.resume(tmp_path / "last.safetensors")
    assert run.iteration == resumed_at
    run.fit()
    for a, b in zip(final_state(run), final_state(whole), strict=True):
        assert torch.equal(a, b)
    assert lines(tmp_path) == lines(whole.folder)
    mine, other = (json.loads((x.folder / "result.json").read_text()) for x in (run, whole))
    assert mine["test"] == other["test"]


@pytest.mark.slow
def test_an_interrupted_final_test_is_run_again(whole: MetaTrainer, tmp_path: Path) -> None:
    again, stopped = trainer(tmp_path), trainer(tmp_path)
    source = Watched(2, ctrl_c)
    source.source = episodes.sinusoid(4, 4, 4, seed=2)
    stopped.test = _Repeated(source)
    with pytest.raises(Interrupted):
        stopped.fit()
    assert not (tmp_path / "result.json").exists()
    again.resume(tmp_path / "last.safetensors")
    found = again.fit()
    assert found is not None
    assert found.as_dict() == json.loads((whole.folder / "result.json").read_text())["test"]


@pytest.mark.slow
def test_dropout_and_annealing_matter_in_the_run_above(whole: MetaTrainer, tmp_path: Path) -> None:
    for changes in ({"first_order_until": 0}, {"multi_step_until": 0}, {"clip": None}):
        run = trainer(tmp_path, **changes)
        run.fit()
        assert not all(map(torch.equal, final_state(run), final_state(whole)))
    run = trainer(tmp_path)
    torch.manual_seed(1)  # other masks
    run.fit()
    assert not all(map(torch.equal, final_state(run), final_state(whole)))


@pytest.mark.slow
def test_evaluating_and_saving_do_not_change_training(whole: MetaTrainer, tmp_path: Path) -> None:
    run = trainer(tmp_path, evaluate_every=0, checkpoint_every=0, eval_steps=5, test_episodes=4)
    run.fit()
    assert all(map(torch.equal, final_state(run), final_state(whole)))


@pytest.mark.slow
def test_longer_runs_may_be_resumed_under_a_constant_schedule(tmp_path: Path) -> None:
    short, long = ({"schedule": "constant", "iterations": n} for n in (5, 9))
    trainer(tmp_path / "a", **short).fit()
    resumed, whole = trainer(tmp_path / "a", **long), trainer(tmp_path / "b", **long)
    whole.fit()
    resumed.resume(tmp_path / "a" / "last.safetensors")
    resumed.fit()
    assert all(map(torch.equal, final_state(resumed), final_state(whole)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"meta_lr": 0.5}, "meta_lr is 0.5 now and 0.01 there"),
        ({"iterations": 11}, "iterations is 11 now and 10 there"),  # the cosine depends on it
        ({"schedule": "constant", "clip": None}, "schedule is .*; clip is None now and 1.0 there"),
    ],
)
def test_another_configuration_is_not_resumed(
    whole: MetaTrainer, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **changes).resume(whole.folder / "last.safetensors")


@pytest.mark.slow
def test_episodes_without_state_are_not_resumed(tmp_path: Path) -> None:
    batches = iter(episodes.sinusoid(4, 4, 4))
    refused = r"have no state_dict\(\).*Give checkpoint_every=0"
    with pytest.raises(ValueError, match=refused):
        trainer(tmp_path / "refused", batches).fit()
    assert not (tmp_path / "refused").exists()
    trainer(tmp_path, batches, checkpoint_every=0).fit()
    with pytest.raises(ValueError, match=r"have no state_dict\(\)"):
        trainer(tmp_path, batches, checkpoint_every=0).resume(tmp_path / "last.safetensors")


@pytest.mark.slow
def test_episodes_that_end(tmp_path: Path) -> None:
    few = [episodes.sinusoid(4, 4, 4).sample()] * 3
    with pytest.raises(ValueError, match="ended after 3 of 10 iterations"):
        trainer(tmp_path, few, checkpoint_every=0).fit()
    run = trainer(tmp_path)
    with pytest.raises(ValueError, match="ended after 12 of 20"):
        evaluate(run.maml, iter(few), 20, 1)


def test_a_loss_that_is_not_finite_saves_the_state_before(tmp_path: Path) -> None:
    class Spoilt(Watched):
        def __iter__(self) -> Iterator[Episodes]:
            for i, batch in enumerate(super().__iter__()):
                if i == 5:
                    batch.query.targets[1] = math.nan
                yield batch

    with pytest.raises(NonFiniteLoss):
        trainer(tmp_path / "a", Spoilt()).fit()
    good = trainer(tmp_path / "b")
    for _ in range(5):
        good.step()
    resumed = trainer(tmp_path / "a", seed=3)
    resumed.resume(tmp_path / "a" / "last.safetensors")
    assert resumed.iteration == 5
    assert lines(tmp_path / "a")[-1]["iteration"] == 5
    assert all(map(torch.equal, final_state(resumed), final_state(good)))


def test_it_learns_and_tells_so(tmp_path: Path) -> None:
    """Someone's own module and episodes; every file agrees with the result."""
    torch.manual_seed(0)
    run = MetaTrainer(
        MAML(nn.Linear(64, 3, bias=False), lr=0.1, steps=2, loss=nn.functional.cross_entropy),
        _prototypes(seed=0),
        config=LoopConfig(
            iterations=60,
            meta_lr=0.03,
            evaluate_every=20,
            validation_episodes=20,
            test_episodes=50,
            out=str(tmp_path),
            eval_steps=3,
        ),
        validation=_prototypes(seed=1),
        test=_prototypes(seed=2),
        screen=False,
    )
    found = run.fit()
    assert found is not None
    assert (found.metric, found.episodes, found.steps) == ("accuracy", 50, 3)
    assert found.chance == pytest.approx(1 / 3)
    assert found.means[-1] > found.means[0] + 0.2
    history = lines(tmp_path)
    assert [x["iteration"] for x in history] == list(range(61))
    assert [x["iteration"] for x in history if "validation" in x] == [0, 20, 40, 60]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["test"] == found.as_dict()
    assert result["config"] == run.config.as_dict()
    assert result["versions"] == versions()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def _prototypes(seed: int) -> episodes.EpisodeSampler:
    """Classes of noisy copies of random vectors; another seed has other classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(12).repeat_interleave(8)
    centres = torch.randn(12, 64, generator=generator)
    noise = torch.randn(96, 64, generator=generator)
    return episodes.EpisodeSampler(
        (centres[labels] + noise, labels), ways=3, shots=2, queries=3, tasks=8, seed=seed
    )


@pytest.mark.slow
def test_tensorboard_holds_the_metrics_once_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(OSError, match="disk"):
        trainer(tmp_path, Watched(7, crash), plots=True).fit()
    run = trainer(tmp_path, plots=True)
    run.resume(tmp_path / "last.safetensors")
    run.fit()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = [(x.step, x.value) for x in board.Scalars("loss")]
    written = [(x["iteration"], x["loss"]) for x in lines(tmp_path) if "loss" in x]
    assert [step for step, _ in shown] == [step for step, _ in written]
    assert [v for _, v in shown] == pytest.approx([v for _, v in written])


@pytest.mark.slow
def test_without_the_plot_extra_training_says_so_and_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("torch.utils.tensorboard", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    run = trainer(tmp_path, plots=True)
    run.screen = True
    run.fit()
    printed = capsys.readouterr().out
    assert printed.count('pip install "fastmaml[plot]"') == 2
    assert not (tmp_path / "curves.png").exists()
    assert (tmp_path / "result.json").exists()


@pytest.mark.slow
def test_an_earlier_run_is_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(3):
        trainer(tmp_path, iterations=1).fit()
    first, second = (tmp_path / f"earlier-{i}" for i in (1, 2))
    for folder in (first, second, tmp_path):
        assert {"last.safetensors", "metrics.jsonl"} <= {x.name for x in folder.iterdir()}
        assert [x["iteration"] for x in lines(folder)] == [0, 1]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_evaluation_is_the_mean_and_its_interval(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    source = episodes.sinusoid(4, 4, 4, seed=8)
    state = source.state_dict()
    found = evaluate(run.maml, iter(source), 10, 3)
    source.load_state_dict(state)
    run.maml.eval()
    batches = [run.maml.evaluate_each_step(source.sample(), 3) for _ in range(3)]
    for step in range(4):
        losses = torch.cat([x[step].losses for x in batches])[:10].double()
        assert found.means[step] == pytest.approx(losses.mean().item())
        half = 2.262157 * losses.std().item() / math.sqrt(10)  # Student's t, not 1.96
        assert found.intervals[step] == pytest.approx(half, rel=1e-4)
    assert (found.metric, found.chance, found.episodes) == ("loss", None, 10)


def test_evaluation_leaves_no_trace(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.maml.module[2].eval()  # a part that its owner keeps in evaluation mode
    modes, random = [x.training for x in run.maml.modules()], torch.get_rng_state()
    before = final_state(run)
    evaluate(run.maml, iter(episodes.sinusoid(4, 4, 4)), 4, 1)
    assert [x.training for x in run.maml.modules()] == modes
    assert True in modes
    assert False in modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(map(torch.equal, final_state(run), before))


def test_multi_step_weights_anneal_to_the_last_step() -> None:
    steps, until = 5, 100
    for iteration in range(until):
        weights = multi_step_weights(steps, iteration, until)
        assert weights is not None
        early = max((1 - iteration / until) / steps, 0.03 / steps)
        torch.testing.assert_close(weights[:-1], torch.full((steps - 1,), early))
        assert weights.sum().item() == pytest.approx(1)
    assert multi_step_weights(steps, until, until) is None
    assert multi_step_weights(steps, 0, 0) is None
    assert multi_step_weights(1, 0, 10).tolist() == [1.0]


def test_cosine() -> None:
    assert [cosine(i, 4) for i in (0, 2, 4, 9)] == pytest.approx([1, 0.5, 0, 0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ways": 0}, "ways=0: give at least 1"),
        ({"ways": "five"}, "ways='five' is a str; give a int"),
        ({"meta_lr": 0}, "meta_lr=0: give a positive number"),
        ({"inner_lr": math.nan}, "inner_lr=nan: give a finite number"),
        ({"dataset": "mnist"}, "dataset='mnist': choose one of digits, omniglot, sinusoid"),
        ({"plots": 1}, "plots=1 is a int; give a bool"),
        ({"shots": True}, "shots=True is a bool"),
        ({"clip": -1.0}, "clip=-1.0: give a positive number"),
    ],
)
def test_a_bad_configuration(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)


def test_unknown_keys_name_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"x.toml has .*'way' \(did you mean 'ways'\?\); 'zzzz'"):
        TrainConfig().updated({"way": 3, "zzzz": 1, "shots": 2}, "x.toml")
    assert TrainConfig().updated({"inner_lr": 1}, "x.toml").inner_lr == 1


def test_without_test_episodes_it_tells_how_training_went(tmp_path: Path) -> None:
    learner = MAML(nn.Linear(1, 1), lr=0.01, steps=2, loss=mean_square)
    config = dataclasses.replace(CONFIG, out=str(tmp_path))
    trainer = MetaTrainer(learner, Watched(), config=config, screen=False)
    found = trainer.fit()
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 10
    assert found.means[-1] == pytest.approx(sum(losses) / 10)
    assert found.text().startswith(f"{found.means[-1]:.3g} ± ")
    assert found.steps == learner.steps
    assert math.isnan(found.means[0])
