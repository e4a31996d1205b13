"""An op of your own: functions over all tasks that are each other's derivatives. See op.md."""
# ruff: noqa: D102

from typing import Any

import torch
from torch import Tensor, nn

import fastmaml as fm


@torch.library.custom_op("own::task_scale", mutates_args=())
def scale_kernel(x: Tensor, w: Tensor) -> Tensor:
    """``[tasks, rows, features]`` times ``[tasks, features]``; C++ or Triton could stand here."""
    return x * w.unsqueeze(1)


@torch.library.custom_op("own::task_scale_wgrad", mutates_args=())
def wgrad_kernel(g: Tensor, x: Tensor) -> Tensor:
    """The sum over rows of their product, ``[tasks, features]``."""
    return (g * x).sum(1)


class Scale(torch.autograd.Function):
    """x·w. Its derivatives call functions, never kernels, which have no derivative."""

    forward = staticmethod(lambda x, w: scale_kernel(x, w))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return Scale.apply(g, w), ScaleWgrad.apply(g, x)

    @classmethod
    def jvp(cls, ctx: Any, ta: Tensor | None, tb: Tensor | None) -> Tensor:
        a, b = ctx.saved_tensors  # the product rule; a tangent that is None is zero
        return sum(cls.apply(*p) for p in ((ta, b), (a, tb)) if all(x is not None for x in p))

    @classmethod
    def vmap(cls, info: Any, dims: tuple[int | None, ...], *args: Tensor) -> tuple[Tensor, int]:
        n, pairs = info.batch_size, zip(args, dims, strict=True)
        full = (x.expand(n, *x.shape) if d is None else x.movedim(d, 0) for x, d in pairs)
        return cls.apply(*(x.flatten(0, 1) for x in full)).unflatten(0, (n, -1)), 0


class ScaleWgrad(Scale):
    """Σ g·x, which is bilinear too: the rest is inherited."""

    forward = staticmethod(lambda g, x: wgrad_kernel(g, x))

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor]:
        g, x = ctx.saved_tensors
        return Scale.apply(x, h), Scale.apply(g, h)


class ScaledLinear(nn.Linear):
    """(x·Wᵀ)·bias. A model sees one task: the ``tasks`` dimension is added, and goes."""

    def forward(self, x: Tensor) -> Tensor:
        return Scale.apply(nn.functional.linear(x, self.weight)[None], self.bias[None])[0]


def main() -> None:
    """Recorded and batched over tasks, against a loop over tasks by autograd alone."""
    batch = fm.episodes.digits("train", ways=5, shots=5, tasks=4, seed=0).sample()
    net = nn.Sequential(nn.Flatten(), ScaledLinear(64, 32), nn.Tanh(), nn.Linear(32, 5))
    for method in (fm.gradients.Unrolled(), fm.gradients.Checkpointed(), fm.gradients.MixedMode()):
        maml = fm.MAML(net, 0.3, loss=nn.CrossEntropyLoss(), gradient=method, executor="captured")
        print(method, fm.verify(maml, batch).agrees)


if __name__ == "__main__":
    main()
