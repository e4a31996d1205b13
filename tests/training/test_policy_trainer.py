"""Runs of policies: exact resume, files, and the command line."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastmaml import rl
from fastmaml.cli.main import main
from fastmaml.training.config import PolicyConfig
from fastmaml.training.interrupts import Interrupted
from fastmaml.training.policy_trainer import PolicyTrainer, evaluate_policy
from fastmaml.training.presets import PRESETS
from fastmaml.training.recipes import build_trainer

SMALL = {
    "iterations": 4,
    "tasks": 3,
    "trajectories": 4,
    "horizon": 5,
    "hidden": 6,
    "epochs": 2,
    "evaluate_every": 2,
    "validation_episodes": 2,
    "test_episodes": 3,
    "test_trajectories": 4,
    "checkpoint_every": 2,
    "plots": False,
}
FLAGS = [
    x
    for name, value in SMALL.items()
    if name != "plots"
    for x in (f"--{name.replace('_', '-')}", str(value))
]


def trainer(out: Path, **changes: Any) -> PolicyTrainer:
    preset = PRESETS[changes.pop("dataset", "navigation")]
    config = dataclasses.replace(preset, out=str(out), **{**SMALL, **changes})  # type: ignore[arg-type]
    found = build_trainer(config)
    assert isinstance(found, PolicyTrainer)
    found.screen = False
    return found


def state(run: PolicyTrainer) -> list[Tensor]:
    run._put_back()  # what is trained, not what was tested
    kept = [*run.maml.state_dict().values()]
    for each in run.optimizer.state_dict()["state"].values():
        kept += each.values()
    return [x.clone() for x in kept]


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in text]


@pytest.mark.parametrize("dataset", ["navigation", "corners"])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(dataset: str, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", dataset=dataset, inner_steps=2)
    whole.fit()
    stopped = trainer(tmp_path / "stopped", dataset=dataset, inner_steps=2)
    draw, count = stopped.train.sample_tasks, [0]

    def interrupted(*given: Any) -> Any:
        count[0] += 1
        if count[0] == 2:
            signal.raise_signal(signal.SIGINT)
        return draw(*given)

    stopped.train.sample_tasks = interrupted  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        stopped.fit()
    assert stopped.iteration == 2
    torch.manual_seed(12345)
    again = trainer(tmp_path / "stopped", dataset=dataset, inner_steps=2)
    again.resume(tmp_path / "stopped" / "last.safetensors")
    again.fit()
    assert all(map(torch.equal, state(whole), state(again)))
    assert lines(tmp_path / "whole") == lines(tmp_path / "stopped")


def test_evaluating_changes_no_run(tmp_path: Path) -> None:
    often = trainer(tmp_path / "often", evaluate_every=1, checkpoint_every=1)
    often.fit()
    seldom = trainer(tmp_path / "seldom", evaluate_every=0, checkpoint_every=0)
    seldom.fit()
    assert all(map(torch.equal, state(often), state(seldom)))
    found = [line["validation"] for line in lines(tmp_path / "often")]
    assert len(found) == 5
    assert len({tuple(v["per_step"]) for v in found}) == 5, "the policy learns in between"


def test_the_best_of_other_validations_is_measured_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = trainer(tmp_path, schedule="constant")
    first.fit()
    first.best.value = 1e9
    first.save()
    again = trainer(tmp_path, schedule="constant", iterations=6, test_trajectories=5)
    again.resume(tmp_path / "last.safetensors")
    again.screen = True
    again.fit()
    assert "test_trajectories is 5 now and was 4: the best valid" in capsys.readouterr().out
    assert again.best.value is not None
    assert again.best.value < 1e9
    unchanged = trainer(tmp_path, schedule="constant", iterations=7, test_trajectories=5)
    unchanged.resume(tmp_path / "last.safetensors")
    unchanged.screen = True
    unchanged.fit()
    assert "anew" not in capsys.readouterr().out


def test_other_settings_cannot_be_resumed(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run")
    run.save()
    other = trainer(tmp_path / "run", trajectories=5)
    with pytest.raises(ValueError, match="trajectories is 5 now and 4 there"):
        other.resume(tmp_path / "run" / "last.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {"outer": "trpo"},
        {"outer": "vpg", "inner": "dice"},
        {"inner": "logprob", "exploration": True},
        {"gradient": "first-order", "rule": "momentum"},
        {"rule": "meta-sgd", "dtype": "float64"},
        {"scope": "mean.*", "clip": 1.0, "optimizer": "sgd"},
    ],
)
def test_every_option_reaches_the_learner(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = trainer(tmp_path, **changes)
    before = {n: p.detach().clone() for n, p in run.maml.named_parameters()}
    line = run.step()
    assert line["iteration"] == 1
    moved = [n for n, p in run.maml.named_parameters() if not torch.equal(p, before[n])]
    assert moved
    if changes.get("rule") == "meta-sgd":
        assert any(name.startswith("rates.") for name in moved)
    assert next(run.maml.parameters()).dtype == getattr(torch, run.policy_config.dtype)


def test_the_evaluation_is_of_each_step_beside_an_untrained_policy() -> None:
    environment = rl.Navigation(seed=1)
    torch.manual_seed(0)
    learner, other = (rl.MetaPolicy(rl.GaussianPolicy(2, 2, (4,)), 0.1) for _ in range(2))
    config = PolicyConfig(test_trajectories=3, horizon=6)
    start = torch.get_rng_state()
    found = evaluate_policy(learner, environment, config, 5, 2, other)
    assert torch.equal(torch.get_rng_state(), start)
    assert (found.metric, found.steps, found.episodes) == ("return", 2, 5)
    assert found.chance is not None
    assert found.chance != found.means[-1]
    assert found.chance_name == "untrained, adapted"


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    given = ["train", "navigation", "--out", out, "--schedule", "constant", *FLAGS]
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert "validation return" in printed
    assert "untrained, adapted" in printed
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(result["test"]["per_step"]) == 4
    if (tmp_path / "run" / "curves.png").exists():
        assert (tmp_path / "run" / "paths.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["eval", out, "--episodes", "3", "--steps", "1"]) == 0
    assert "untrained, adapted" in capsys.readouterr().out
    assert main(["train", "navigation", "--resume", out, "--iterations", "5"]) == 0  # constant rate


def test_eval_has_the_numbers_of_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All digits of them, of the untrained policy too."""
    found: list[Any] = []
    monkeypatch.setattr(
        "fastmaml.training.run_folder.show_evaluation", lambda *args: found.append(args[1])
    )
    out = str(tmp_path / "run")
    assert main(["train", "navigation", "--out", out, "--no-plots", *FLAGS]) == 0
    assert main(["eval", out]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [one.as_dict() for one in found] == [result["test"]] * 2


OWN = """
import torch
from fastmaml import rl


def make():
    return rl.Bandits(arms=3, seed=5)


def with_policy():
    return rl.TabularMDP(states=3, horizon=4), rl.CategoricalPolicy(3, 3, ())


def wrong():
    return 1
"""


def test_an_environment_of_one_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_environment.py").write_text(OWN)
    flags = [x for x in FLAGS if x not in ("--horizon", "5")] + ["--no-plots"]
    for function in ("make", "with_policy"):
        given = ["--env", f"own_environment:{function}", "--out", str(tmp_path / function)]
        assert main(["train", "rl", *given, *flags]) == 0
    assert main(["eval", str(tmp_path / "make"), "--episodes", "2"]) == 0
    capsys.readouterr()
    for given, message in (
        (["--env", "own_environment:wrong"], "returned a int: return a fastmaml.rl.Environment"),
        (["--env", "own_environment:nothing"], "has no nothing"),
        ([], "needs --env module:function"),
    ):
        assert main(["train", "rl", *given, *flags]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multi_step_until": 5}, "multi_step_until=5 means nothing for policies"),
        ({"outer": "trpo", "scope": "head"}, "outer='trpo' needs scope='all'"),
        ({"outer": "trpo", "clip": 1.0}, "which has max_kl"),
        ({"env": "a:b"}, "goes with `train rl`"),
        ({"trajectories": 0}, "trajectories=0"),
        ({"deviation": 0.0}, "deviation=0.0"),
        ({"gradient": "mixed-mode"}, "gradient='mixed-mode'"),
    ],
)
def test_what_configurations_refuse(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyConfig(**changes)


def test_a_policy_that_learned_does_better(tmp_path: Path) -> None:
    """A few iterations on bandits, whose best arm one step has to find."""
    torch.manual_seed(0)
    learner = rl.MetaPolicy(
        rl.CategoricalPolicy(1, 3, ()), 1.0, advantages=rl.GAE(rl.ZeroBaseline())
    )
    environment = rl.Bandits(arms=3, noise=0.1, seed=2)
    optimizer = torch.optim.Adam(learner.maml.parameters(), 0.1)
    gains: list[float] = []
    for _ in range(15):
        tasks = environment.sample_tasks(40)
        before = rl.sample(environment, tasks, learner.act, 20)
        after = rl.sample(environment, tasks, learner.adapted(before), 20)
        gains.append(float(after.returns.mean() - before.returns.mean()))
        learner.update([before], after, optimizer)
    assert min(gains) > 0.1
    assert isinstance(learner.policy, nn.Module)
