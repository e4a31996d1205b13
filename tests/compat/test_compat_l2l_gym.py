"""learn2learn's gym over gymnasium: the vector of environments, its bodies, and a public script."""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from places import EXAMPLES
from torch import Tensor
from torch.func import functional_call

import fastmaml.compat.learn2learn as l2l

gymnasium = pytest.importorskip("gymnasium", reason='pip install "fastmaml[rl]"')
pytest.importorskip("mujoco", reason='pip install "fastmaml[rl]"')


class Counting(gymnasium.Env):  # type: ignore[misc, name-defined]
    """Over after three steps by its time, or where the action is negative; it counts."""

    observation_space = gymnasium.spaces.Box(-1, 9, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self) -> None:
        self.task, self.count = 0, 0

    def sample_tasks(self, num_tasks: int) -> list[int]:
        return [*range(num_tasks)]

    def set_task(self, task: int) -> None:
        self.task = task

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return np.array([self.task, 0], np.float32), {}

    def step(self, action: int) -> Any:
        self.count += 1
        seen = np.array([self.task, self.count], np.float32)
        return seen, 1.5, action < 0, self.count == 3, {"action": action}


class OldCounting(Counting):
    """The same in the API of the old gym."""

    def seed(self, seed: int) -> None:
        self.drawn = seed

    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()[0]

    def step(self, action: int) -> Any:
        seen, reward, terminated, truncated, info = super().step(action)
        return seen, reward, terminated or truncated, info


@pytest.mark.parametrize("kind", [Counting, OldCounting])
def test_environments_of_one_task_begin_anew_when_they_are_over(kind: type[Counting]) -> None:
    env = l2l.gym.AsyncVectorEnv([kind, kind, kind])
    assert env.sample_tasks(2) == [0, 1]
    assert env.set_task(7)
    assert env.reset().tolist() == [[7, 0]] * 3
    seen, rewards, dones, infos = env.step([0, -1, 1])
    assert seen.tolist() == [[7, 1], [7, 0], [7, 1]]
    assert rewards.tolist() == [1.5] * 3
    assert dones.tolist() == [False, True, False]
    assert [info["action"] for info in infos] == [0, -1, 1]
    assert infos[1]["final_obs"].tolist() == [7, 1]
    env.step([0, 0, 0])
    seen, _, dones, infos = env.step([0, 0, 0])
    assert dones.tolist() == [True, False, True]
    assert seen.tolist() == [[7, 0], [7, 2], [7, 0]]
    if kind is Counting:
        assert infos[0]["TimeLimit.truncated"] is True


def test_seeds_are_each_ones_own() -> None:
    env = l2l.gym.AsyncVectorEnv([l2l.gym.envs.Particles2DEnv, l2l.gym.envs.Particles2DEnv])
    assert env.seed(5) == [5, 6]
    drawn = env.sample_tasks(3)  # before any reset
    assert env.seed() == [None, None]
    env.reset(seed=5)
    again = env.sample_tasks(3)
    assert [x["goal"].tolist() for x in drawn] == [x["goal"].tolist() for x in again]
    old = l2l.gym.AsyncVectorEnv([OldCounting, OldCounting], OldCounting())
    old.reset(seed=3)
    assert [x.drawn for x in (*old.envs, old._env)] == [3, 4, 5]


def test_what_it_cannot_do_says_so() -> None:
    with pytest.raises(ValueError, match="env_fns is empty"):
        l2l.gym.AsyncVectorEnv([])
    particle = l2l.gym.envs.Particles2DEnv()
    for action in (0.05, [0.05], [float("nan"), 0]):
        with pytest.raises(ValueError, match="give two finite numbers"):
            particle.step(np.array(action, np.float32))
    with pytest.raises(KeyError, match="goal"):
        particle.set_task({"direction": 1})
    env = l2l.gym.AsyncVectorEnv([Counting])
    with pytest.raises(ValueError, match="2 actions for 1 environments"):
        env.step([0, 0])
    plain = l2l.gym.AsyncVectorEnv([lambda: gymnasium.make("CartPole-v1")])
    with pytest.raises(AttributeError, match=r"CartPoleEnv has no set_task.*MetaEnv"):
        plain.set_task(0)
    with pytest.raises(NotImplementedError, match="define sample_tasks"):
        l2l.gym.MetaEnv()
    from fastmaml.compat.learn2learn.gym.envs.metaworld import MetaWorldML1, MetaWorldML10

    for wrong in (lambda: MetaWorldML1("push-v1"), lambda: MetaWorldML10.get_train_tasks(False)):
        with pytest.raises(NotImplementedError, match=r"fastmaml\.rl\.Gymnasium"):
            wrong()


def test_spaces_are_the_old_gyms_where_that_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cherry asserts that they are."""
    made = SimpleNamespace(Box=lambda low, high, dtype: ("Box", low.shape), Discrete=int)
    monkeypatch.setitem(sys.modules, "gym", SimpleNamespace(spaces=made))  # type: ignore[arg-type]
    env = l2l.gym.AsyncVectorEnv([Counting])
    assert env.observation_space == ("Box", (2,))
    assert env.action_space == 2


def test_gymnasium_is_imported_where_it_is_used() -> None:
    code = (
        "import sys; import fastmaml.compat.learn2learn as l2l; "
        "assert 'gymnasium' not in sys.modules; l2l.gym; assert 'gymnasium' in sys.modules; "
        "import gymnasium; gymnasium.make('Particles2D-v1')"
    )
    first = (
        "import gymnasium; import fastmaml.compat.learn2learn; gymnasium.make('AntDirection-v1')"
    )
    for script in (code, first):
        subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


assert l2l.gym  # gymnasium knows their names from here on
BODIES = {
    "HalfCheetahForwardBackward-v1": "HalfCheetah-v5",
    "AntForwardBackward-v1": "Ant-v5",
    "HumanoidForwardBackward-v1": "Humanoid-v5",
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_move_as_gymnasiums_and_get_its_rewards_forward(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its v5 has the same bodies, costs and bonuses, but that torques cost cheetahs 0.1."""
    monkeypatch.chdir(tmp_path)  # MuJoCo writes there what it thinks of gymnasium's files
    share = 0.5 if "Cheetah" in name else 1.0
    ours, theirs = gymnasium.make(name), gymnasium.make(BODIES[name])
    theirs.reset(seed=0)
    for direction in (1.0, -1.0):
        ours.unwrapped.set_task({"direction": direction})
        ours.reset(seed=1)
        body, other = ours.unwrapped, theirs.unwrapped
        other.set_state(body.data.qpos, body.data.qvel)
        other.data.qacc_warmstart[:] = body.data.qacc_warmstart
        ours.action_space.seed(0)
        for _ in range(3):
            action = ours.action_space.sample()
            _, reward, *_ = ours.step(action)
            *_, info = theirs.step(action)
            np.testing.assert_allclose(body.data.qpos, other.data.qpos, atol=1e-9)
            signs = {"reward_forward": direction, "reward_ctrl": share}
            parts = {k: v for k, v in info.items() if k.startswith("reward_")}
            expected = sum(signs.get(k, 1.0) * v for k, v in parts.items())
            assert reward == pytest.approx(expected, abs=1e-6)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("name", ["AntDirection-v1", "HumanoidDirection-v1"])
def test_directions_are_of_the_plane(name: str) -> None:
    np.random.seed(0)
    env = gymnasium.make(name)
    tasks = [x["direction"] for x in env.unwrapped.sample_tasks(4)]
    assert np.linalg.norm(tasks, axis=1) == pytest.approx(np.ones(4))
    found = []
    for task in (tasks[0], -tasks[0]):
        env.unwrapped.set_task({"direction": task})
        assert env.unwrapped.goal_direction is task
        seen, _ = env.reset(seed=2)
        assert seen.shape == env.observation_space.shape
        *_, info = env.step(np.full(env.action_space.shape, 0.1, np.float32))
        found.append(next(v for k, v in info.items() if k in ("reward_forward", "reward_linvel")))
    assert found[0] == pytest.approx(-found[1])
    assert found[0] != 0


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES / "compat"))
    return importlib.import_module("maml_trpo")


def test_maml_trpo_in_the_public_shape_runs(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "HalfCheetahForwardBackward-v1"
    found = script.main(name, iterations=1, meta_batch_size=2, episodes=2, hidden_size=8)
    assert np.isfinite(found).all()
    assert capsys.readouterr().out == f"0: return {found[0]:.2f}\n"  # with a step


@pytest.mark.slow
def test_maml_trpo_in_the_public_shape_learns(script: ModuleType) -> None:
    sizes = {"meta_batch_size": 6, "episodes": 4, "hidden_size": 16}
    found = script.main(iterations=5, seed=1, **sizes)
    assert found[-1] > found[0] + 20  # of about -90; goals are the same distance on average


def test_its_meta_gradient_is_the_hand_written_loops(script: ModuleType) -> None:
    """And its divergence's product with a vector a difference of gradients."""
    torch.manual_seed(0)
    np.random.seed(0)
    env = l2l.gym.AsyncVectorEnv([lambda: gymnasium.make("Particles2D-v1")] * 2)
    env.seed(0)
    policy = script.Policy(2, 2, 5).double()
    replays, acted = [], []
    for task in env.sample_tasks(2):
        env.set_task(task)
        learner = copy.deepcopy(policy)
        first = script.run(env, learner, 2)
        learner = script.adapt(learner, first, 0.1, 0.9, first_order=True)
        replays.append([first, script.run(env, learner, 2)])
        acted.append(learner)
    parameters = dict(policy.named_parameters())

    def log_probs(theta: dict[str, Tensor], states: Tensor, actions: Tensor) -> Tensor:
        mean = functional_call(
            policy.mean, {k[5:]: v for k, v in theta.items() if "mean" in k}, states
        )
        deviation = theta["log_deviation"].exp()
        apart = ((actions - mean) / deviation).square() / 2 + theta["log_deviation"]
        return -apart.sum(1) - actions.shape[1] * np.log(2 * np.pi) / 2

    def by_hand(theta: dict[str, Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for (first, second), old in zip(replays, acted, strict=True):
            states, actions, rewards, dones = first
            gain = script.advantages_of(states, rewards, dones, 0.9)
            loss = -(log_probs(theta, states, actions) * gain).mean()
            grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
            pairs = zip(theta.items(), grads, strict=True)
            after = {name: p - 0.1 * g for (name, p), g in pairs}
            states, actions, rewards, dones = second
            gain = script.advantages_of(states, rewards, dones, 0.9)
            before = log_probs(dict(old.named_parameters()), states, actions).detach()
            total = total - ((log_probs(after, states, actions) - before).exp() * gain).mean()
        return total / 2

    loss, kl = script.surrogate(replays, acted, policy, 0.1, 0.9)
    leaves = list(parameters.values())
    found = torch.autograd.grad(loss, leaves, retain_graph=True)
    expected = torch.autograd.grad(by_hand(parameters), leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert kl.item() == pytest.approx(0, abs=1e-12)  # the same policies: the same adaptation
