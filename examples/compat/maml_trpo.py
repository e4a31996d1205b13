"""MAML-TRPO as learn2learn's scripts do it: one task, one environment after another.

    python examples/compat/maml_trpo.py --env-name HalfCheetahForwardBackward-v1 --iterations 100

Needs gymnasium: pip install "fastmaml[rl]". What such a script takes from cherry stands here, so
that it needs nothing else.
"""

import copy

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, autograd, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import fastmaml.compat.learn2learn as l2l


class Policy(nn.Module):
    """A Gaussian around the outputs of two hidden layers."""

    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        sizes = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)
        self.mean = nn.Sequential(sizes[0], nn.Tanh(), sizes[1], nn.Tanh(), sizes[2])
        self.log_deviation = nn.Parameter(torch.zeros(outputs))

    def density(self, states: Tensor) -> Normal:
        """Of actions ``[n, action]``, by states ``[n, observation]``."""
        return Normal(self.mean(states), self.log_deviation.exp())


def run(env: "l2l.gym.AsyncVectorEnv", policy: Policy, episodes: int) -> tuple[Tensor, ...]:
    """Whole episodes: states, actions, rewards and dones, those of an episode in a row."""
    dtype = policy.log_deviation.dtype
    whole: list[list[tuple[Tensor, ...]]] = []
    going: list[list[tuple[Tensor, ...]]] = [[] for _ in range(env.num_envs)]
    states = env.reset()
    while len(whole) < episodes:
        seen = torch.as_tensor(states, dtype=dtype)
        with torch.no_grad():
            actions = policy.density(seen).sample()
        states, rewards, dones, _ = env.step([*actions.numpy()])
        got = torch.tensor(np.stack([rewards, dones])).to(dtype)
        for i, steps in enumerate(going):
            steps.append((seen[i], actions[i], got[0, i], got[1, i]))
            if dones[i]:
                whole.append(steps)
                going[i] = []
    rows = [row for steps in whole[:episodes] for row in steps]
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def advantages_of(states: Tensor, rewards: Tensor, dones: Tensor, discount: float) -> Tensor:
    """Returns-to-go less a linear fit of them, normalised."""
    returns, times = torch.zeros_like(rewards), torch.zeros_like(rewards)
    total = torch.zeros_like(rewards[0])
    for i in reversed(range(len(rewards))):
        total = rewards[i] + discount * total * (1 - dones[i])
        returns[i] = total
    for i in range(1, len(rewards)):
        times[i] = (times[i - 1] + 0.01) * (1 - dones[i - 1])
    t = times.unsqueeze(1)
    features = torch.cat([states, states**2, t, t**2, t**3, torch.ones_like(t)], 1).double()
    normal = features.T @ features + 1e-5 * torch.eye(features.shape[1]).double()
    weights = torch.linalg.solve(normal, features.T @ returns.double())
    apart = returns - (features @ weights).to(returns)
    return (apart - apart.mean()) / (apart.std() + 1e-8)


def inner_loss(policy: Policy, episodes: tuple[Tensor, ...], discount: float) -> Tensor:
    """The policy gradient's surrogate: -mean(log π · advantage)."""
    states, actions, rewards, dones = episodes
    log_probs = policy.density(states).log_prob(actions).sum(1)
    return -(log_probs * advantages_of(states, rewards, dones, discount)).mean()


def adapt(
    policy: Policy, episodes: tuple[Tensor, ...], lr: float, discount: float, first_order: bool
) -> Policy:
    """One step of the inner loop."""
    loss = inner_loss(policy, episodes, discount)
    gradients = autograd.grad(loss, list(policy.parameters()), create_graph=not first_order)
    return l2l.algorithms.maml.maml_update(policy, lr, gradients)


def surrogate(
    replays: list[list[tuple[Tensor, ...]]],
    acted: list[Policy],
    policy: Policy,
    lr: float,
    discount: float,
) -> tuple[Tensor, Tensor]:
    """The outer loss, with its derivatives through the inner loop, and the divergence."""
    losses, divergences = [], []
    for episodes, old in zip(replays, acted, strict=True):
        new = l2l.clone_module(policy)
        for support in episodes[:-1]:
            new = adapt(new, support, lr, discount, first_order=False)
        states, actions, rewards, dones = episodes[-1]
        before, after = old.density(states), new.density(states)
        ratio = (after.log_prob(actions) - before.log_prob(actions).detach()).sum(1).exp()
        losses.append(-(ratio * advantages_of(states, rewards, dones, discount)).mean())
        divergences.append(kl_divergence(after, before).sum(1).mean())
    return torch.stack(losses).mean(), torch.stack(divergences).mean()


def conjugate_gradient(product, b: Tensor, iterations: int = 10) -> Tensor:
    """x with ``product(x) = b``."""
    x, r, p = torch.zeros_like(b), b.clone(), b.clone()
    for _ in range(iterations):
        along = product(p)
        step = r.dot(r) / p.dot(along)
        x, rest = x + step * p, r - step * along
        p = rest + rest.dot(rest) / r.dot(r) * p
        r = rest
        if r.dot(r) < 1e-10:
            break
    return x


def update(
    policy: Policy, replays: list, acted: list, lr: float, discount: float, max_kl: float
) -> bool:
    """A step of TRPO; whether one was found."""
    parameters = list(policy.parameters())
    loss, kl = surrogate(replays, acted, policy, lr, discount)
    gradient = parameters_to_vector(autograd.grad(loss, parameters, retain_graph=True)).detach()
    slope = parameters_to_vector(autograd.grad(kl, parameters, create_graph=True))

    def product(v: Tensor) -> Tensor:
        along = autograd.grad(slope.dot(v), parameters, retain_graph=True)
        return parameters_to_vector(along) + 1e-5 * v

    direction = conjugate_gradient(product, gradient)
    length = torch.sqrt(2 * max_kl / direction.dot(product(direction)))
    for halvings in range(15):
        moved = copy.deepcopy(policy)
        vector = parameters_to_vector(parameters) - length / 2**halvings * direction
        vector_to_parameters(vector.detach(), moved.parameters())
        new_loss, new_kl = surrogate(replays, acted, moved, lr, discount)
        if new_loss < loss and new_kl < max_kl:
            policy.load_state_dict(moved.state_dict())
            return True
    return False


def main(
    env_name: str = "Particles2D-v1",
    iterations: int = 2,
    meta_batch_size: int = 4,
    episodes: int = 4,
    adaptation_steps: int = 1,
    fast_lr: float = 0.1,
    discount: float = 0.99,
    max_kl: float = 0.01,
    hidden_size: int = 32,
    workers: int = 2,
    seed: int = 42,
    double: bool = False,
) -> list[float]:
    """Meta-train; the mean return after adaptation of every iteration."""
    np.random.seed(seed)
    torch.manual_seed(seed)
    env = l2l.gym.AsyncVectorEnv([lambda: gym.make(env_name)] * workers)
    env.seed(seed)
    sizes = env.observation_space.shape[0], env.action_space.shape[0]
    policy = Policy(*sizes, hidden_size).to(torch.float64 if double else torch.float32)

    found = []
    for iteration in range(iterations):
        replays, acted = [], []
        for task in env.sample_tasks(meta_batch_size):
            env.set_task(task)
            learner, replay = copy.deepcopy(policy), []
            for _ in range(adaptation_steps):
                replay.append(run(env, learner, episodes))
                learner = adapt(learner, replay[-1], fast_lr, discount, first_order=True)
            replay.append(run(env, learner, episodes))
            replays.append(replay)
            acted.append(learner)
        found.append(sum(replay[-1][2].sum().item() for replay in replays) / episodes / len(acted))
        moved = update(policy, replays, acted, fast_lr, discount, max_kl)
        print(f"{iteration}: return {found[-1]:.2f}{'' if moved else ', no step was found'}")
    return found


if __name__ == "__main__":
    tyro.cli(main)
