"""`PolicyConfig`: runs of reinforcement learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastmaml.training.config.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(RunConfig):
    """A whole run of a policy that adapts: environment, policy, inner loop and outer loop.

    Raises:
        ValueError: a value of the wrong type or out of range, or one that means nothing here.
    """

    dataset: Literal[
        "navigation", "corners", "cheetah-dir", "cheetah-vel", "ant-dir", "ant-vel", "rl"
    ] = "navigation"
    """Environment."""
    env: str | None = None
    """For rl: module:function, which makes an Environment, or (environment, policy)."""
    gradient: Literal["auto", "first-order"] = "auto"
    """How the inner loop is differentiated (auto: exactly)."""
    inner: Literal["lvc", "logprob", "dice"] = "lvc"
    """What the inner loop descends."""
    outer: Literal["promp", "vpg", "trpo"] = "promp"
    """What the outer loop does with adapted policies' trajectories."""
    trajectories: int = 20
    """Trajectories of a task, at every inner step."""
    horizon: int | None = None
    """Steps of a trajectory (none: as many as the environment has)."""
    hidden: int = 64
    """Units of each of the policy's two hidden layers."""
    deviation: float = 0.6
    """Standard deviation of actions that the policy begins with."""
    inner_decay: float = 0.5
    """Factor of the inner rate after the first inner step."""
    discount: float = 0.99
    """Of rewards."""
    trace: float = 1.0
    """Lambda of the advantages, from 0 to 1."""
    epochs: int = 5
    """Steps of the outer optimizer on the same trajectories (promp)."""
    ratio_clip: float = 0.3
    """How far the ratio to the policy that acted counts (promp)."""
    inner_kl: float = 5e-4
    """Weight of the divergence at the inner steps (promp)."""
    max_kl: float = 0.01
    """Divergence of adapted policies in one step (trpo)."""
    exploration: bool = False
    """Let what is done before adaptation be chosen for what is learned from it (E-MAML)."""
    test_trajectories: int = 40
    """Trajectories of a task, at every step, when evaluating."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("first_order_until", "multi_step_until"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)} means nothing for policies: leave it."
                )
        if self.accumulate != 1 or self.autocast != "none":
            raise ValueError(
                f"accumulate={self.accumulate}, autocast={self.autocast!r}: an iteration of "
                "policies is one meta-batch of tasks in full precision; give more tasks, or leave "
                "them."
            )
        if self.scope != "all" and self.outer == "trpo":
            raise ValueError("outer='trpo' needs scope='all': give promp or vpg.")
        if self.outer == "trpo" and self.clip is not None:
            raise ValueError(f"clip={self.clip} means nothing with outer='trpo', which has max_kl.")
        if self.env is not None and self.dataset != "rl":
            raise ValueError(f"env={self.env!r} goes with `train rl`, not with {self.dataset}.")

    @property
    def title(self) -> str:
        """Such as "navigation, 1 step of 20 trajectories"."""
        name = f"rl, {self.env or 'an environment'}" if self.dataset == "rl" else self.dataset
        steps = f"{self.inner_steps} step{'s' * (self.inner_steps != 1)}"
        return f"{name}, {steps} of {self.trajectories} trajectories"
