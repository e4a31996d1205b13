"""Bodies on MuJoCo against gymnasium's own, and the adapter on real environments."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal

from fastmaml import rl
from fastmaml.rl.environments import AntDir, AntVel, CheetahDir, CheetahVel
from fastmaml.rl.environments.locomotion import Locomotion

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed")
pytest.importorskip("mujoco", reason="mujoco is not installed")

BODIES: dict[str, Any] = {
    "cheetah-dir": (CheetahDir, "HalfCheetah-v5", {}),
    "cheetah-vel": (CheetahVel, "HalfCheetah-v5", {}),
    "ant-dir": (AntDir, "Ant-v5", {"include_cfrc_ext_in_observation": False}),
    "ant-vel": (AntVel, "Ant-v5", {"include_cfrc_ext_in_observation": False}),
}


def gain(name: str, speed: float, task: float) -> float:
    if name.endswith("dir"):
        return speed * task
    return (1 if name == "ant-vel" else 0) - abs(speed - task)


@pytest.mark.parametrize("name", BODIES)
def test_bodies_move_as_gymnasium_s(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes there what it thinks of gymnasium's files
    kind, known, options = BODIES[name]
    environment: Locomotion = kind(threads=2, seed=1)
    assert not list(tmp_path.iterdir()), "of ours it has nothing to say"
    tasks = environment.sample_tasks(2).double()
    seen = environment.reset(tasks, 2)
    actions = 2 * torch.rand(3, 2, 2, environment.action_size, dtype=torch.float64) - 1
    actions[0, 0, 0, 0] = 3.0  # is clipped
    theirs = gymnasium.make(known, **options).unwrapped
    states = environment._state.clone()
    found = [environment.step(a) for a in actions]
    for row in range(4):
        task, i = divmod(row, 2)
        theirs.reset(seed=0)
        positions = states[row, environment._positions].numpy()
        theirs.set_state(positions, states[row, environment._velocities].numpy())
        skip = 1 if name.startswith("cheetah") else 2
        torch.testing.assert_close(
            seen[task, i, : len(positions) - skip], torch.from_numpy(positions[skip:])
        )
        for step, action in zip(found, actions, strict=True):
            before = theirs.data.qpos[0]
            clipped = action[task, i].clamp(-1, 1)
            expected = theirs.step(clipped.numpy())[0]
            speed = (theirs.data.qpos[0] - before) / theirs.dt
            own = step.observations[task, i]
            torch.testing.assert_close(own, torch.from_numpy(expected), rtol=1e-4, atol=1e-4)
            worth, cost = (0.0, 0.05) if name.startswith("cheetah") else (0.05, 0.005)
            reward = gain(name, speed, float(tasks[task])) + worth
            reward -= cost * float(clipped.square().sum())
            assert float(step.rewards[task, i]) == pytest.approx(reward, rel=1e-3, abs=1e-3)


def test_an_ant_that_jumps_is_over() -> None:
    environment = AntDir(threads=1)
    environment.reset(torch.ones(1), 2)
    environment._state[1, 3] = 1.5
    step = environment.step(torch.zeros(1, 2, 8))
    assert step.terminated.tolist() == [[False, True]]
    assert not step.truncated.any()


def test_a_state_decides_what_comes() -> None:
    first, second = (
        CheetahDir(horizon=3, threads=2, seed=1),
        CheetahDir(horizon=3, threads=1, seed=7),
    )
    policy = rl.GaussianPolicy(first.observation_size, first.action_size, (4,))
    learner = rl.MetaPolicy(policy, 0.1)
    tasks = first.sample_tasks(2)
    second.load_state_dict(first.state_dict())
    found = []
    for environment in (first, second):
        torch.manual_seed(0)
        found.append(rl.sample(environment, tasks, learner.act, 3))
    assert torch.equal(found[0].observations, found[1].observations)
    assert torch.equal(found[0].rewards, found[1].rewards)


def wrapped(name: str) -> rl.Gymnasium:
    return rl.Gymnasium(
        lambda: gymnasium.make(name),
        sample_task=lambda generator: float(torch.rand((), generator=generator)),
        set_task=lambda environment, task: setattr(environment.unwrapped, "gravity", 9 + task),
        horizon=12,
    )


@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCarContinuous-v0"])
def test_the_adapter_takes_gymnasium_s_environments(name: str) -> None:
    environment = wrapped(name)

    def act(seen: Tensor) -> Any:
        zeros = torch.zeros(*seen.shape[:-1], environment.action_size)
        if environment.discrete:
            return Categorical(logits=zeros)
        return Independent(Normal(zeros, torch.ones(())), 1)

    tasks = environment.sample_tasks(2)
    found = rl.sample(environment, tasks, act, 3)
    assert found.observations.shape[3:] == (environment.observation_size,)
    assert environment.discrete == (name == "CartPole-v1")
    assert found.mask[:, 0].all()


def test_the_example_s_environment_is_learned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("examples.own_environment")
    environment = module.make()
    assert isinstance(environment, rl.Gymnasium)
    assert environment.horizon == 20
    module.main(iterations=2, tasks=3, trajectories=4)
    assert capsys.readouterr().out.count("after adaptation") == 2
