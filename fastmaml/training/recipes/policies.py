"""From a `PolicyConfig` to environment, policy, learner and trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastmaml import rl
from fastmaml.maml import MAML
from fastmaml.rl.environments.base import Environment
from fastmaml.rl.environments.locomotion import Locomotion
from fastmaml.rl.outer import Outer
from fastmaml.rl.surrogates import Surrogate
from fastmaml.rules import Scheduled
from fastmaml.training.config import PolicyConfig
from fastmaml.training.evaluation import Evaluation
from fastmaml.training.imported import imported
from fastmaml.training.policy_trainer import PolicyTrainer, evaluate_policy
from fastmaml.training.recipes.parts import gradient_of, resolve_device, rule_of

ENVIRONMENTS: dict[str, type[Environment]] = {
    "navigation": rl.Navigation,
    "corners": rl.Corners,
    "cheetah-dir": rl.environments.CheetahDir,
    "cheetah-vel": rl.environments.CheetahVel,
    "ant-dir": rl.environments.AntDir,
    "ant-vel": rl.environments.AntVel,
}


def build_trainer(config: PolicyConfig, device: torch.device) -> PolicyTrainer:
    """The whole run."""
    learner = build_learner(config, device)
    environments = (build_environment(config, seed) for seed in (config.seed, _VALIDATION, _TEST))
    return PolicyTrainer(learner, *environments, config=config)


_VALIDATION, _TEST = 1_000_001, 1_000_002


def build_environment(config: PolicyConfig, seed: int) -> Environment:
    """The environment of that name; it draws from its own seed."""
    if config.dataset == "rl":
        found = _made(config)[0]
        found.generator.manual_seed(seed)
        return found
    kind: Any = ENVIRONMENTS[config.dataset]
    own = {"threads": config.threads} if issubclass(kind, Locomotion) else {}
    made: Environment = kind(**own, seed=seed)
    return made


def build_learner(config: PolicyConfig, device: torch.device) -> rl.MetaPolicy:
    """The policy, initialised from the configuration's seed, and how it learns."""
    environment = build_environment(config, config.seed)
    torch.manual_seed(config.seed)
    policy = _policy(config, environment).to(device, getattr(torch, config.dtype))
    gradient = gradient_of(config)
    return rl.MetaPolicy(
        policy,
        steps=config.inner_steps,
        rule=Scheduled(rule_of(config), (1.0, config.inner_decay)),
        surrogate=_surrogate(config),
        outer=_outer(config),
        advantages=rl.GAE(discount=config.discount, trace=config.trace, sparse=environment.sparse),
        gradient=gradient,
        scope=config.scope,
        executor=None if config.executor == "auto" else config.executor,
        backend=None if config.backend == "auto" else config.backend,
        tasks_chunk=config.tasks_chunk,
    )


def build_evaluator(
    config: PolicyConfig, device: torch.device, seed: int
) -> tuple[MAML, Callable[..., Evaluation]]:
    """A learner to load weights into, and ``evaluate(tasks, steps, after_batch)`` of it."""
    learner, untrained = build_learner(config, device), build_learner(config, device)
    environment = build_environment(config, seed)

    def evaluate(count: int, steps: int, *after: Callable[[int], None]) -> Evaluation:
        return evaluate_policy(learner, environment, config, count, steps, untrained, *after)

    return learner.maml, evaluate


def _policy(config: PolicyConfig, environment: Environment) -> nn.Module:
    own = _made(config)[1] if config.dataset == "rl" else None
    if own is not None:
        return own
    sizes = environment.observation_size, environment.action_size, (config.hidden,) * 2
    if environment.discrete:
        return rl.CategoricalPolicy(*sizes)
    return rl.GaussianPolicy(*sizes, deviation=config.deviation)


def _made(config: PolicyConfig) -> tuple[Environment, nn.Module | None]:
    """What the user's function makes."""
    if config.env is None:
        raise ValueError("`fastmaml train rl` needs --env module:function, which makes one.")
    made: Any = imported(config.env)()
    environment, policy = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(environment, Environment) or not isinstance(policy, nn.Module | None):
        raise ValueError(
            f"{config.env}() returned a {type(made).__name__}: return a fastmaml.rl.Environment "
            "(rl.Gymnasium makes one of yours), or a pair of it and a policy."
        )
    if isinstance(environment, rl.Gymnasium):
        environment.dtype = getattr(torch, config.dtype)
        environment.device = resolve_device(config.device)
    return environment, policy


def _surrogate(config: PolicyConfig) -> Surrogate:
    kinds = {"lvc": rl.LVC, "logprob": rl.LogProb, "dice": rl.LoadedDiCE}
    found: Surrogate = kinds[config.inner]()
    return found


def _outer(config: PolicyConfig) -> Outer:
    explores = config.exploration
    if config.outer == "trpo":
        return rl.TRPO(max_kl=config.max_kl, exploration=explores)
    if config.outer == "vpg":
        return rl.VPG(exploration=explores, clip_norm=config.clip)
    return rl.PPO(
        clip=config.ratio_clip,
        epochs=config.epochs,
        inner_kl=config.inner_kl,
        exploration=explores,
        clip_norm=config.clip,
    )
