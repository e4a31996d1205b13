"""The defaults of each data set.

The sinusoid's are the MAML paper's (Finn et al., 2017). Omniglot has the paper's inner loop and
meta-batch, with an outer loop made for a few thousand iterations instead of sixty. Language models
get a head per task, as their tasks share no classes, and an outer loop as in fine-tuning. Policies
have ProMP's outer loop (Rothfuss et al., 2019), with a rate for a hundred iterations.
"""

from __future__ import annotations

from fastmaml.training.config import (
    GlueConfig,
    InstructionsConfig,
    IntentsConfig,
    PolicyConfig,
    RunConfig,
    TableConfig,
    TrainConfig,
)

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

PRESETS: dict[str, RunConfig] = {
    "digits": TrainConfig(
        dataset="digits",
        out="runs/digits",
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
        out="runs/omniglot",
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
        out="runs/sinusoid",
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
    "intents": IntentsConfig(
        out="runs/intents",
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
        out="runs/glue",
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
        out="runs/instructions",
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
    "table": TableConfig(
        out="runs/table",
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
    "navigation": PolicyConfig(
        dataset="navigation",
        out="runs/navigation",
        **_POLICIES | {"iterations": 60},  # type: ignore[arg-type]
    ),
    "corners": PolicyConfig(
        dataset="corners",
        out="runs/corners",
        **_POLICIES | {"trace": 1.0},  # type: ignore[arg-type]
    ),
    **{
        name: PolicyConfig(
            dataset=name,
            out=f"runs/{name}",
            **_BODIES,  # type: ignore[arg-type]
        )
        for name in ("cheetah-dir", "cheetah-vel", "ant-dir", "ant-vel")
    },
    "rl": PolicyConfig(
        dataset="rl",
        out="runs/rl",
        **_POLICIES,  # type: ignore[arg-type]
    ),
}
"""The defaults of each data set."""
