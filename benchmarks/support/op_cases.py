"""The ops that are timed: realistic shapes, the public op, and what plain torch does instead.

Plain torch is a loop over tasks with weights of their own, as a meta-learner without batched ops
runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmaml import ops

Outputs = Sequence[Tensor]


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
        family: the public op.
        shapes: in words.
        inputs: the differentiable ones, all tasks at once.
        op: the public op of a backend; takes ``backend`` and the inputs.
        plain: the same of one task in plain torch; takes that task's inputs.
        flops: of the forward pass, where the op is matrix products; its backward has twice as
            many, its double backward four times.
    """

    family: str
    shapes: str
    inputs: list[Tensor]
    op: Callable[..., Any]
    plain: Callable[..., Any]
    flops: float = 0.0

    @property
    def tasks(self) -> int:
        """How many tasks there are."""
        return len(self.inputs[0])


def cases(device: str) -> Iterator[Case]:
    """Every family, in shapes of the networks that the meta-steps are timed with."""
    for family in (
        linears,
        convolutions,
        batch_norms,
        layer_norms,
        attentions,
        embeddings,
        dropouts,
        activations,
        losses,
        updates,
    ):
        yield from family(device)


def random(device: str, *shape: int) -> Tensor:
    return torch.randn(shape, device=device)


def linears(device: str) -> Iterator[Case]:
    for tasks, rows, inputs, outputs, activation in (
        (25, 10, 40, 40, "relu"),  # the sinusoid's MLP
        (32, 5, 64, 5, None),  # the head of conv4
        (4, 256, 128, 384, None),  # the transformer
        (4, 256, 128, 512, "gelu"),
    ):
        act = {"relu": F.relu, "gelu": F.gelu, None: lambda y: y}[activation]
        yield Case(
            "task_linear",
            f"{tasks} x [{rows}x{inputs}] -> {outputs}" + (f", {activation}" if activation else ""),
            [
                random(device, tasks, rows, inputs),
                random(device, tasks, outputs, inputs) / inputs**0.5,
                random(device, tasks, outputs),
            ],
            lambda x, w, b, backend, a=activation: ops.task_linear(
                x, w, b, activation=a, backend=backend
            ),
            lambda x, w, b, act=act: act(F.linear(x, w, b)),
            2.0 * tasks * rows * inputs * outputs,
        )


def convolutions(device: str) -> Iterator[Case]:
    for tasks, examples, channels, size, outputs in (
        (32, 5, 1, 28, 64),  # Omniglot, 5-way 1-shot
        (32, 5, 64, 14, 64),
        (32, 5, 64, 7, 64),
        (4, 25, 32, 16, 32),
    ):
        x = random(device, tasks, examples, size, size, channels).permute(0, 1, 4, 2, 3)
        yield Case(
            "task_conv2d",
            f"{tasks} x [{examples}x{channels}x{size}x{size}] -> {outputs}, 3x3",
            [
                x,
                random(device, tasks, outputs, channels, 3, 3) / (9 * channels) ** 0.5,
                random(device, tasks, outputs),
            ],
            lambda x, w, b, backend: ops.task_conv2d(x, w, b, padding=1, backend=backend),
            lambda x, w, b: F.conv2d(x, w, b, padding=1),
            2.0 * tasks * examples * size**2 * 9 * channels * outputs,
        )


def batch_norms(device: str) -> Iterator[Case]:
    for tasks, examples, channels, size in ((32, 5, 64, 28), (32, 5, 64, 14), (4, 25, 32, 32)):
        x = random(device, tasks, examples, size, size, channels).permute(0, 1, 4, 2, 3)
        yield Case(
            "task_batch_norm",
            f"{tasks} x [{examples}x{channels}x{size}x{size}], ReLU, 2x2 max-pooling",
            [x, random(device, tasks, channels), random(device, tasks, channels)],
            lambda x, w, b, backend: ops.task_batch_norm(
                x, w, b, relu=True, pool=True, backend=backend
            ),
            lambda x, w, b: F.max_pool2d(
                F.relu(F.batch_norm(x, None, None, w, b, training=True)), 2
            ),
        )


def layer_norms(device: str) -> Iterator[Case]:
    for tasks, rows, features in ((4, 256, 128), (32, 512, 768)):
        yield Case(
            "task_layer_norm",
            f"{tasks} x [{rows}x{features}]",
            [
                random(device, tasks, rows, features),
                random(device, tasks, features),
                random(device, tasks, features),
            ],
            lambda x, w, b, backend: ops.task_layer_norm(x, w, b, backend=backend),
            lambda x, w, b: F.layer_norm(x, w.shape, w, b),
        )


def attentions(device: str) -> Iterator[Case]:
    """Heads as projections give them, and a padding mask; torch's fused kernels end at backward."""
    for tasks, batch, heads, length, size in ((4, 16, 12, 32, 32), (4, 4, 12, 128, 32)):
        there = torch.arange(length, device=device) < length - 5
        mask = torch.zeros(length, device=device).masked_fill(~there, -torch.inf)
        yield Case(
            "task_attention",
            f"{tasks} x [{batch}x{heads}x{length}x{size}], padding mask",
            [random(device, tasks, batch, length, heads, size).transpose(2, 3) for _ in "qkv"],
            lambda q, k, v, backend, mask=mask: ops.task_attention(
                q, k, v, mask.to(q), backend=backend
            ),
            lambda q, k, v, mask=mask: (q @ k.mT * q.shape[-1] ** -0.5 + mask).softmax(-1) @ v,
            4.0 * tasks * batch * heads * length**2 * size,
        )


def embeddings(device: str) -> Iterator[Case]:
    for tasks, rows, features, examples in ((4, 2000, 384, 2048),):
        ids = torch.randint(rows, (examples,), generator=torch.Generator().manual_seed(0))
        ids = ids.to(device)
        yield Case(
            "task_embedding",
            f"{tasks} x [{rows}x{features}], {examples} ids",
            [random(device, tasks, rows, features)],
            lambda w, backend, ids=ids: ops.task_embedding(
                w, ids.expand(len(w), -1), backend=backend
            ),
            lambda w, ids=ids: F.embedding(ids, w),
        )


def dropouts(device: str) -> Iterator[Case]:
    """A mask and its product; in plain torch the same bits, as others cannot be compared."""
    key = torch.arange(1, 2, device=device) << 20
    yield Case(
        "dropout_mask",
        "4 x [512x384]",
        [random(device, 4, 512, 384)],
        lambda x, backend: (
            x * ops.dropout_mask(key.expand(len(x)), x.shape[1:], 0.1, x, backend=backend)
        ),
        lambda x: x * ops.dropout_mask(key, x.shape, 0.1, x)[0],
    )


def activations(device: str) -> Iterator[Case]:
    for name, function in (("gelu", F.gelu), ("tanh", torch.tanh), ("relu", F.relu)):
        yield Case(
            "task_act",
            f"4 x [256x512], {name}",
            [random(device, 4, 256, 512)],
            lambda x, backend, name=name: ops.task_act(x, name, backend=backend),
            lambda x, function=function: function(x),
        )


def losses(device: str) -> Iterator[Case]:
    for tasks, examples, classes in ((32, 5, 5), (4, 2048, 1000)):
        labels = torch.arange(examples, device=device) % classes
        yield Case(
            "task_cross_entropy",
            f"{tasks} x [{examples}x{classes}]",
            [random(device, tasks, examples, classes)],
            lambda x, backend, labels=labels: ops.task_cross_entropy(
                x, labels.expand(len(x), -1), backend=backend
            ),
            lambda x, labels=labels: F.cross_entropy(x, labels),
        )
    for tasks, examples, outputs in ((25, 10, 1), (4, 2048, 128)):
        target = random(device, examples, outputs)
        yield Case(
            "task_mse",
            f"{tasks} x [{examples}x{outputs}]",
            [random(device, tasks, examples, outputs)],
            lambda x, backend, target=target: ops.task_mse(
                x, target.to(x).expand_as(x), backend=backend
            ),
            lambda x, target=target: F.mse_loss(x, target),
        )


def updates(device: str) -> Iterator[Case]:
    """Parameters then gradients, of all tasks; on a GPU also a gigabyte of each."""
    conv4 = [(64, 1, 3, 3), *[(64, 64, 3, 3)] * 3, *[(64,)] * 12, (5, 64), (5,)]
    sets = [
        ("the sinusoid MLP", 25, [(40, 1), (40,), (40, 40), (40,), (1, 40), (1,)]),
        ("conv4-64", 32, conv4),
    ]
    if device == "cuda":
        sets.append(("1 GB", 32, [(7812500,)]))
    for name, tasks, shapes in sets:
        p = [random(device, tasks, *shape) for shape in shapes]
        g = [random(device, tasks, *shape) for shape in shapes]
        yield from updates_of(f"{tasks} x {name}", p, g)


def updates_of(shapes: str, p: list[Tensor], g: list[Tensor]) -> Iterator[Case]:
    n = len(p)
    yield Case(
        "inner_update",
        shapes,
        [*p, *g],
        lambda *x, backend: ops.inner_update(x[:n], x[n:], scale=-0.1, backend=backend),
        lambda *x: [a - 0.1 * b for a, b in zip(x[:n], x[n:], strict=True)],
    )
    if sum(x.nbytes for x in p) >= 1e9:
        return  # with every contestant's gradients, momentum would not fit
    v = [torch.randn_like(x) for x in p]
    yield Case(
        "inner_momentum",
        shapes,
        [*p, *g, *v],
        lambda *x, backend: flat(
            ops.inner_momentum(
                x[:n], x[n : 2 * n], x[2 * n :], scale=-0.1, momentum=0.9, backend=backend
            )
        ),
        lambda *x: momentum(x[:n], x[n : 2 * n], x[2 * n :]),
    )


def momentum(p: Outputs, g: Outputs, v: Outputs) -> Outputs:
    new = [0.9 * a + b for a, b in zip(v, g, strict=True)]
    return [a - 0.1 * b for a, b in zip(p, new, strict=True)] + new


def flat(pair: tuple[Outputs, Outputs]) -> Outputs:
    return [*pair[0], *pair[1]]
