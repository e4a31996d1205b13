"""Environments and the sampler: what they give, and that it can be had again."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal

from fastmaml import rl
from fastmaml.rl.environments import Step

ENVIRONMENTS: dict[str, Any] = {
    "navigation": rl.Navigation,
    "corners": rl.Corners,
    "bandits": rl.Bandits,
    "tabular": rl.TabularMDP,
}


def act(environment: rl.Environment) -> Any:
    def gaussian(seen: Tensor) -> Any:
        mean = torch.zeros(*seen.shape[:-1], environment.action_size)
        return Independent(Normal(mean, torch.ones(()), validate_args=False), 1)

    def uniform(seen: Tensor) -> Any:
        logits = torch.zeros(*seen.shape[:-1], environment.action_size)
        return Categorical(logits=logits)

    return uniform if environment.discrete else gaussian


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_samples_have_the_shapes_that_they_say(name: str) -> None:
    environment = ENVIRONMENTS[name](seed=3)
    tasks = environment.sample_tasks(4)
    found = rl.sample(environment, tasks, act(environment), 5)
    assert found.observations.shape[3:] == (environment.observation_size,)
    assert (found.tasks, found.rewards.shape[2]) == (4, 5)
    assert found.rewards.shape[1] <= environment.horizon
    assert found.mask[:, 0].all()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_seed_and_state_decide_everything(name: str) -> None:
    def run(environment: rl.Environment) -> Tensor:
        tasks = environment.sample_tasks(4)
        torch.manual_seed(0)
        return rl.sample(environment, tasks, act(environment), 5).rewards

    first = ENVIRONMENTS[name](seed=3)
    run(first)
    state = first.state_dict()
    expected = run(first)
    other = ENVIRONMENTS[name](seed=9)
    other.load_state_dict(state)
    assert torch.equal(run(other), expected)
    assert not torch.equal(run(ENVIRONMENTS[name](seed=4)), expected)


def test_navigation_is_the_paper_s() -> None:
    environment = rl.Navigation()
    goals = torch.tensor([[0.35, -0.4]])
    seen = environment.reset(goals, 2)
    assert not seen.any()
    step = environment.step(torch.tensor([[[5.0, -0.5], [1.0, 1.0]]]))
    torch.testing.assert_close(step.observations[0, 0], torch.tensor([0.1, -0.05]))
    torch.testing.assert_close(step.rewards[0, 0], -(torch.tensor([0.25, -0.35]).norm()))
    far = torch.tensor([[[1.0, -1.0], [0.0, 0.0]]])
    for _ in range(2):
        step = environment.step(far)
    assert not step.terminated.any()
    step = environment.step(torch.tensor([[[0.45, -1.5], [0.0, 0.0]]]))
    assert step.terminated[0].tolist() == [False, False]
    step = environment.step(torch.tensor([[[0.05, -0.5], [0.0, 0.0]]]))
    assert step.terminated[0].tolist() == [True, False]
    assert not step.truncated.any()


def test_corners_reward_none_but_one() -> None:
    environment = rl.Corners(seed=0)
    corners = environment.sample_tasks(200)
    assert {tuple(c) for c in corners.tolist()} == {(a, b) for a in (-2, 2) for b in (-2, 2)}
    environment.reset(torch.tensor([[2.0, -2.0]]), 2)
    to, away = [1.0, -1.0], [-1.0, 1.0]
    for _ in range(12):
        step = environment.step(torch.tensor([[to, away]]))
    assert float(step.rewards[0, 0]) > 1.3
    assert float(step.rewards[0, 1]) == 0


def test_a_table_s_transitions_have_their_chances() -> None:
    environment = rl.TabularMDP(states=3, actions=2, horizon=1, seed=1)
    (task,) = environment.sample_tasks(1)
    torch.testing.assert_close(task[..., :-1].sum(-1), torch.ones(3, 2))
    environment.reset(task.unsqueeze(0), 20_000)
    step = environment.step(torch.ones(1, 20_000, dtype=torch.int64))
    found = step.observations[0].mean(0)
    torch.testing.assert_close(found, task[0, 1, :-1], rtol=0, atol=0.02)
    torch.testing.assert_close(step.rewards[0], task[0, 1, -1].expand(20_000))


def test_what_comes_after_the_end_does_not_count() -> None:
    environment = rl.Navigation(horizon=30)
    goals = torch.tensor([[0.0, 0.0], [0.4, 0.4]])

    def still(seen: Tensor) -> Any:
        return Independent(Normal(torch.zeros_like(seen), torch.tensor(1e-3)), 1)

    found = rl.sample(environment, goals, still, 3)
    assert found.lengths.tolist() == [[1, 1, 1], [30, 30, 30]]
    assert not found.rewards[0, 1:].any()


class Line:
    """A Gymnasium environment without gymnasium: walk along a line towards a goal."""

    class Box:
        low, high = -torch.ones(1).numpy(), torch.ones(1).numpy()
        dtype, shape = low.dtype, (1,)

    observation_space, action_space = Box(), Box()
    ends: ClassVar[int] = 100

    def __init__(self) -> None:
        self.unwrapped, self.goal, self.at, self.clock = self, 0.0, 0.0, 0
        self.given: list[float] = []

    def sample_tasks(self, n: int) -> list[float]:
        return [0.5 * (i + 1) for i in range(n)]

    def set_task(self, task: float) -> None:
        self.goal = task

    def reset(self, *, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        self.at, self.clock = float(torch.rand((), generator=generator)), 0
        return [self.at], {}

    def step(self, action: Any) -> Any:
        self.given.append(float(action[0]))
        self.at += float(action[0])
        self.clock += 1
        reward = -abs(self.at - self.goal)
        return [self.at], reward, self.at > 9, self.clock >= self.ends, {}


class Short(Line):
    ends = 4


def push(seen: Tensor) -> Any:
    return Independent(Normal(torch.full_like(seen, 3.0), torch.tensor(0.1)), 1)


def test_an_environment_of_one_s_own() -> None:
    made: list[Line] = []

    def make() -> Line:
        made.append(Line())
        return made[-1]

    environment = rl.Gymnasium(make, horizon=6, seed=1)
    tasks = environment.sample_tasks(2)
    found = rl.sample(environment, tasks, push, 3)
    assert found.observations.shape == (2, 6, 3, 1)
    assert len(made) == 6
    assert {x for line in made for x in line.given} == {1.0}, "clipped to the bounds"
    assert float(found.actions.min()) > 2, "kept as sampled"
    at = found.observations[..., 0]
    torch.testing.assert_close(at[:, 1:] - at[:, :-1], torch.ones(2, 5, 3))
    goals = torch.tensor(tasks).view(2, 1, 1)
    torch.testing.assert_close(found.rewards, -(at + 1 - goals).abs())
    state = environment.state_dict()
    again = rl.sample(environment, tasks, push, 3).observations[:, 0]
    environment.load_state_dict(state)
    assert torch.equal(rl.sample(environment, tasks, push, 3).observations[:, 0], again)


def test_a_time_limit_of_the_environment_s_own_is_no_end() -> None:
    found = rl.sample(rl.Gymnasium(Short, horizon=10), [1.0], push, 2)
    assert found.lengths.tolist() == [[4, 4]]
    assert found.truncated is not None
    assert found.truncated.all()
    assert found.last is not None
    torch.testing.assert_close(found.last, found.observations[:, -1] + 1)


def test_the_horizon_is_no_limit_of_the_environment_s_own() -> None:
    found = rl.sample(rl.Gymnasium(Short, horizon=4), [1.0], push, 2)
    assert found.lengths.tolist() == [[4, 4]]
    assert found.truncated is not None
    assert not found.truncated.any()


class Careless(rl.Environment):
    """Writes to what it gave, and gives NaN to trajectories that are over."""

    observation_size, action_size, horizon = 1, 1, 5

    def sample_tasks(self, n: int, generator: Any = None) -> Any:
        return torch.arange(n)

    def reset(self, tasks: Any, n: int) -> Tensor:
        self.at, self.clock = torch.zeros(len(tasks), n, 1), 0
        return self.at

    def step(self, actions: Tensor) -> Step:
        self.clock += 1
        self.at += 1
        over = torch.zeros(actions.shape[:2], dtype=torch.bool)
        over[0] = self.clock >= 2
        if self.clock > 2:
            self.at[0] = torch.nan
        return Step(self.at, self.at[..., 0] ** 2, over, torch.zeros_like(over))


def test_what_environments_write_to_and_what_is_over() -> None:
    environment = Careless()
    found = rl.sample(environment, environment.sample_tasks(2), push, 3)
    assert found.observations[1, :, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert found.lengths.tolist() == [[2] * 3, [5] * 3]
    assert found.observations.isfinite().all()
    assert rl.GAE()(found).isfinite().all()


def test_tasks_from_functions() -> None:
    class Bare(Line):
        sample_tasks = set_task = property()  # type: ignore[assignment]

    with pytest.raises(ValueError, match=r"has no sample_tasks\(\)"):
        rl.Gymnasium(Bare, horizon=3)

    def move(environment: Any, task: float) -> None:
        environment.goal = task

    def draw(generator: torch.Generator) -> float:
        return float(torch.rand((), generator=generator))

    environment = rl.Gymnasium(Bare, sample_task=draw, set_task=move, horizon=3)
    tasks = environment.sample_tasks(3, torch.Generator().manual_seed(0))
    assert tasks == [float(x) for x in torch.rand(3, generator=torch.Generator().manual_seed(0))]
    assert rl.sample(environment, tasks, push, 1).tasks == 3


class OldReset(Line):
    def reset(self) -> Any:  # type: ignore[override]
        return [0.0]


class OldStep(Line):
    def step(self, action: Any) -> Any:
        return super().step(action)[:4]


@pytest.mark.parametrize(
    ("kind", "message"), [(OldReset, "reset"), (OldStep, r"step\(\) returned 4 values")]
)
def test_the_old_api_is_named(kind: Any, message: str) -> None:
    environment = rl.Gymnasium(kind, horizon=3)
    with pytest.raises(ValueError, match=f"old gym API.*{message}"):
        rl.sample(environment, [1.0], push, 1)


def test_spaces_that_are_not_known() -> None:
    class Picture(Line):
        class Space:
            shape, low = (3, 4), None

        observation_space = Space()  # type: ignore[assignment]

    with pytest.raises(ValueError, match="observation_space is"):
        rl.Gymnasium(Picture, horizon=3)
    with pytest.raises(ValueError, match="no time limit"):
        rl.Gymnasium(Line)


def test_a_nan_of_the_environment_is_named() -> None:
    class Broken(rl.Environment):
        observation_size, action_size, horizon = 1, 1, 5

        def sample_tasks(self, n: int, generator: Any = None) -> Any:
            return torch.zeros(n)

        def reset(self, tasks: Any, n: int) -> Tensor:
            self.clock = 0
            return torch.zeros(len(tasks), n, 1)

        def step(self, actions: Tensor) -> Step:
            self.clock += 1
            rewards = torch.zeros(actions.shape[:2])
            rewards[1, 2] = torch.nan if self.clock == 4 else 0
            never = torch.zeros(actions.shape[:2], dtype=torch.bool)
            return Step(torch.zeros(*actions.shape[:2], 1), rewards, never, never)

    environment = Broken()
    with pytest.raises(ValueError, match="rewards is not finite in task 1, trajectory 2, step 3"):
        rl.sample(environment, environment.sample_tasks(2), push, 4)


@pytest.mark.parametrize(
    ("policy", "options", "error", "message"),
    [
        (nn.Linear(2, 2), {"n": 3}, TypeError, "returned a Tensor"),
        (lambda s: Normal(s, torch.ones(())), {"n": 3}, ValueError, r"of batch \[2, 3, 2\]"),
        (None, {"n": 0}, ValueError, "n=0"),
        (None, {"n": 2, "horizon": 0}, ValueError, "horizon=0"),
    ],
)
def test_what_the_sampler_refuses(policy: Any, options: Any, error: Any, message: str) -> None:
    environment = rl.Navigation()
    tasks = environment.sample_tasks(2)
    with pytest.raises(error, match=message):
        rl.sample(environment, tasks, policy or act(environment), **options)
