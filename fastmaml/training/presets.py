"""The defaults of each data set.

The sinusoid's are the MAML paper's (Finn et al., 2017). Omniglot has the paper's inner loop and
meta-batch, with an outer loop made for a few thousand iterations instead of sixty. Photographs of
the literature have the paper's setting for miniImageNet, whole. Language models
get a head per task, as their tasks share no classes, and an outer loop as in fine-tuning. Policies
have ProMP's outer loop (Rothfuss et al., 2019), with a rate for a hundred iterations.
"""

from __future__ import annotations

from typing import Any

from fastmaml.training.config import (
    GlueConfig,
    ImagesConfig,
    InstructionsConfig,
    IntentsConfig,
    PolicyConfig,
    RunConfig,
    TableConfig,
    TrainConfig,
)
from fastmaml.training.config.loop import annealed

_POLICIES = {
    "iterations": 100,
    "meta_lr": 3e-3,
    "schedule": "cosine",
    "tasks": 20,
    "inner_lr": 0.1,
    "trace": 0.95,  # with 1, as in ProMP, navigation is learned more slowly
    "eval_steps": 3,
    "evaluate_every": 20,
    "validation_episodes": 40,
    "test_episodes": 40,
    "checkpoint_every": 20,
}
"""Of all environments."""
_BODIES = _POLICIES | {
    "iterations": 200,
    "meta_lr": 2e-3,
    "tasks": 10,
    "trajectories": 10,
    "inner_lr": 0.2,
    "evaluate_every": 50,
    "validation_episodes": 20,
    "test_trajectories": 20,
}
"""Of those on MuJoCo."""

_PHOTOGRAPHS = {
    "iterations": 60_000,
    "shots": 1,
    "queries": 15,
    "tasks": 4,  # the paper's has 2 with 5 shots
    "inner_lr": 0.01,
    "inner_steps": 5,
    "eval_steps": 10,
    "evaluate_every": 1000,
    "checkpoint_every": 1000,
}
"""Of the image data sets: the MAML paper's for miniImageNet."""

PRESETS: dict[str, RunConfig] = {
    "digits": TrainConfig(
        dataset="digits",
        iterations=400,
        schedule="cosine",
        shots=5,
        filters=32,
        inner_lr=0.1,
        inner_steps=2,
        evaluate_every=50,
        validation_episodes=200,
        threads=1,  # too small for two to help, and two suffer when the machine is busy
    ),
    "omniglot": TrainConfig(
        dataset="omniglot",
        iterations=2400,
        meta_lr=2e-3,
        schedule="cosine",
        pool="max",  # did better on new alphabets than the paper's strided network
        queries=3,
        tasks=32,
        validation_alphabets=0,
        eval_steps=3,
        evaluate_every=0,
        checkpoint_every=250,
    ),
    "sinusoid": TrainConfig(
        dataset="sinusoid",
        iterations=70_000,
        ways=1,
        shots=10,
        queries=10,
        tasks=25,
        filters=40,
        inner_lr=0.01,  # as the paper's text says; its code has 0.001
        eval_steps=5,
        evaluate_every=1000,
        checkpoint_every=1000,
        threads=1,
    ),
    "images": ImagesConfig(
        iterations=1000,
        schedule="cosine",
        tasks=4,
        inner_lr=0.1,
        inner_steps=2,
        eval_steps=3,
        evaluate_every=200,
        validation_episodes=200,
    ),
    **{
        name: ImagesConfig(
            dataset=name,
            **_PHOTOGRAPHS,  # type: ignore[arg-type]
        )
        for name in ("cifar-fs", "fc100", "mini-imagenet", "tiered-imagenet", "cub")
    },
    "table": TableConfig(
        iterations=2000,
        meta_lr=2e-3,
        schedule="cosine",
        clip=10.0,
        inner_lr=0.05,
        inner_steps=5,
        evaluate_every=200,
        validation_episodes=1000,  # all there are, if these are fewer
        test_episodes=10_000,
        checkpoint_every=200,
        threads=1,
    ),
    "intents": IntentsConfig(
        iterations=400,
        meta_lr=1e-5,
        optimizer="adamw",
        weight_decay=0.01,
        schedule="cosine",
        clip=1.0,
        pooling="mean",
        head="zero",
        tasks=4,
        inner_lr=0.05,
        inner_steps=3,
        max_length=64,
        evaluate_every=0,
        test_episodes=400,
    ),
    "glue": GlueConfig(
        iterations=400,
        meta_lr=1e-5,
        optimizer="adamw",
        weight_decay=0.01,
        schedule="cosine",
        clip=1.0,
        head="zero",
        tasks=4,
        inner_lr=0.1,
        inner_steps=3,
        evaluate_every=100,
        validation_episodes=40,
        test_episodes=120,
    ),
    "instructions": InstructionsConfig(
        model="HuggingFaceTB/SmolLM2-135M",
        iterations=400,
        meta_lr=3e-4,
        optimizer="adamw",
        schedule="cosine",
        clip=1.0,
        scope="lora",
        tasks=4,
        inner_lr=0.1,
        inner_steps=3,
        max_length=256,
        evaluate_every=100,
        validation_episodes=40,
        test_episodes=120,
    ),
    "navigation": PolicyConfig(
        dataset="navigation",
        **_POLICIES | {"iterations": 60},  # type: ignore[arg-type]
    ),
    "corners": PolicyConfig(
        dataset="corners",
        **_POLICIES | {"trace": 1.0},  # type: ignore[arg-type]
    ),
    **{
        name: PolicyConfig(
            dataset=name,
            **_BODIES,  # type: ignore[arg-type]
        )
        for name in ("cheetah-dir", "cheetah-vel", "ant-dir", "ant-vel")
    },
    "rl": PolicyConfig(
        dataset="rl",
        **_POLICIES,  # type: ignore[arg-type]
    ),
}
"""The defaults of each data set."""


def mamlpp_defaults(dataset: str, iterations: int) -> dict[str, Any]:
    """What MAML++ (Antoniou et al., 2019) changes of a data set's defaults.

    Args:
        dataset: the sinusoid's network has no BatchNorm.
        iterations: of the run, in which its annealing takes place.
    """
    return {
        **annealed(iterations),
        "rule": "lslr",
        "inner_lr": min(PRESETS[dataset].inner_lr, 0.1),  # 0.01 for photographs, as there
        "inner_steps": 5,
        "eval_steps": None,
        "per_step_batch_norm": dataset != "sinusoid",
    }
