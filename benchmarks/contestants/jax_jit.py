"""The same meta-steps in JAX, compiled by XLA: the tasks by vmap, or one after another."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.contestants import Built, Setup
from benchmarks.support.workloads import HEADS, LAYERS, Workload

Array = Any
Parameters = dict[str, Array]
EPSILON = 1e-5  # of the normalisations, as torch's


def build(name: str, setup: Setup) -> Built:
    jax.config.update("jax_enable_x64", setup.dtype == "float64")
    # Its own default on a GPU is TF32, which nobody else here uses unless asked to.
    precision = "tensorfloat32" if setup.tf32 else "float32"
    jax.config.update("jax_default_matmul_precision", precision)
    forward = forwards().get(setup.work.network)
    if forward is None:
        raise ValueError(f"{setup.work.network} is not written in JAX here")
    step = jax.jit(meta_gradient(setup.work, forward, by_map="lax.map" in name))
    theta = {n: jnp.asarray(inwards(w)) for n, w in setup.weights.items()}
    parts = ("support.inputs", "support.targets", "query.inputs", "query.targets")
    data = [jnp.asarray(images_last(setup.episodes[part])) for part in parts]

    def run() -> Parameters:
        gradient: Parameters = jax.block_until_ready(step(theta, *data))
        return gradient

    return Built(run, to_torch, {"jax": jax.__version__, "jaxlib": jax.lib.__version__})


def meta_gradient(
    work: Workload, forward: Callable[[Parameters, Array], Array], by_map: bool
) -> Callable[..., Parameters]:
    def loss(weights: Parameters, x: Array, y: Array) -> Array:
        found = forward(weights, x)
        if work.regression:
            return jnp.square(found - y).mean()
        return -jnp.take_along_axis(jax.nn.log_softmax(found), y[:, None], 1).mean()

    def task(weights: Parameters, x: Array, y: Array, query: Array, target: Array) -> Array:
        for _ in range(work.steps):
            grads = jax.grad(loss)(weights, x, y)
            weights = {n: w - work.lr * grads[n] for n, w in weights.items()}
        return loss(weights, query, target)

    def mean(weights: Parameters, *data: Array) -> Array:
        if by_map:
            return lax.map(lambda one: task(weights, *one), data).mean()
        return jax.vmap(task, (None, 0, 0, 0, 0))(weights, *data).mean()

    return jax.grad(mean)


# Weights and images lie in memory as XLA likes them: channels last.


def inwards(w: Any) -> Any:
    return w.transpose(2, 3, 1, 0) if w.ndim == 4 else w


def images_last(x: Any) -> Any:
    return x.transpose(0, 1, 3, 4, 2) if x.ndim == 5 else x


def to_torch(gradient: Parameters) -> dict[str, Any]:
    found = {n: np.asarray(g) for n, g in gradient.items()}
    return {n: g.transpose(3, 2, 0, 1) if g.ndim == 4 else g for n, g in found.items()}


def linear(weights: Parameters, name: str, x: Array) -> Array:
    return x @ weights[f"{name}weight"].T + weights[f"{name}bias"]


def forwards() -> dict[str, Callable[[Parameters, Array], Array]]:
    """By network."""
    policy = functools.partial(mlp, activation=jnp.tanh)
    return {"mlp": mlp, "policy": policy, "conv4": conv4, "transformer": transformer}


def mlp(weights: Parameters, x: Array, activation: Callable[[Array], Array] = jax.nn.relu) -> Array:
    for i in (0, 2):
        x = activation(linear(weights, f"features.{i}.", x))
    return linear(weights, "classifier.", x)


def conv4(weights: Parameters, x: Array) -> Array:
    for i in range(4):
        w, b = (weights[f"features.{i}.0.{n}"] for n in ("weight", "bias"))
        x = lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = normalised(x + b, (0, 1, 2), weights, f"features.{i}.1.")
        x = max_pool(jax.nn.relu(x))
    return linear(weights, "classifier.", x.transpose(0, 3, 1, 2).reshape(len(x), -1))


def max_pool(x: Array) -> Array:
    """Not by ``.max((2, 4))``, whose second derivative XLA compiles to nan on the CPU (0.10.2)."""
    examples, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = x.reshape(examples, height // 2, 2, width // 2, 2, channels)
    rows = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


def normalised(x: Array, over: tuple[int, ...], weights: Parameters, name: str) -> Array:
    centred = x - x.mean(over, keepdims=True)
    y = centred * lax.rsqrt(jnp.square(centred).mean(over, keepdims=True) + EPSILON)
    return y * weights[f"{name}weight"] + weights[f"{name}bias"]


def transformer(weights: Parameters, tokens: Array) -> Array:
    x = weights["embedding.weight"][tokens]
    for i in range(LAYERS):
        layer = f"layers.{i}."
        x = x + attention(weights, layer, normalised(x, (2,), weights, f"{layer}norm1."))
        hidden = linear(weights, f"{layer}linear1.", normalised(x, (2,), weights, f"{layer}norm2."))
        x = x + linear(weights, f"{layer}linear2.", jax.nn.gelu(hidden, approximate=False))
    return linear(weights, "classifier.", normalised(x, (2,), weights, "norm.").mean(1))


def attention(weights: Parameters, layer: str, x: Array) -> Array:
    examples, length, width = x.shape
    q, k, v = (
        part.reshape(examples, length, HEADS, width // HEADS).transpose(0, 2, 1, 3)
        for part in jnp.split(linear(weights, f"{layer}self_attn.in_proj_", x), 3, axis=2)
    )
    scores = jax.nn.softmax(q @ k.transpose(0, 1, 3, 2) / (width // HEADS) ** 0.5)
    mixed = (scores @ v).transpose(0, 2, 1, 3).reshape(x.shape)
    return linear(weights, f"{layer}self_attn.out_proj.", mixed)
