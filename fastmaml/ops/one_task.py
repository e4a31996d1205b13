"""The ops of one task, for what runs task by task and call by call.

Tensors have no dimension ``tasks``: it comes and goes inside of the autograd functions, where it is
no node of a graph. Derivatives do not end at the second. No vmap and no forward mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.autograd import Function

from fastmaml.ops._load import Kernels, kernels
from fastmaml.ops.task_act import Act, act_code, reference_task_act
from fastmaml.ops.task_attention import Attention, reference_task_attention
from fastmaml.ops.task_batch_norm import BatchNorm, reference_task_batch_norm
from fastmaml.ops.task_conv2d import Conv2d, ConvGeometry
from fastmaml.ops.task_layer_norm import LayerNorm, reference_task_layer_norm

Pair = tuple[int, int]


@final
class OneTask:
    """A backend's raw ops for tensors of one task: what autograd functions take for `Kernels`.

    Args:
        found: the backend's.
        definition: the op in PyTorch, a function of the tensors by which it is derived.
        more: the last of these, which the ops' derivatives do not read.
    """

    is_of_one_task: Final = True

    def __init__(
        self,
        found: Kernels,
        definition: Callable[..., Tensor] | None = None,
        more: tuple[Tensor | None, ...] = (),
    ) -> None:
        self.found, self.definition, self.more = found, definition, more

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(_of_one, getattr(self.found, name))


def _of_one(raw: Callable[..., Any], *arguments: Any) -> Any:
    found = raw(*[x.unsqueeze(0) if isinstance(x, Tensor) else x for x in arguments])
    # In place, as what they return is new: a view would be refused where a user writes to it.
    if isinstance(found, Tensor):
        return found.squeeze_(0)
    return tuple([x.squeeze_(0) for x in found])


_LARGE: Final = 1 << 15
"""From so many elements on our copy is worth its way through Python."""


@final
class _ChannelsFirst(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        found: Tensor = torch.ops.fastmaml.channels_first(x)
        return found

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


@final
class _DenseGradient(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.contiguous()


def dense_gradient(x: Tensor) -> Tensor:
    """`x`, whose gradient a user may look at in any way: the kernels' are channels-last."""
    if not x.requires_grad or x.numel() == 0 or not x.is_contiguous():
        return x
    y: Tensor = _DenseGradient.apply(x)
    return y


def channels_first(x: Tensor) -> Tensor:
    """A copy of what one of these ops made, in PyTorch's usual layout."""
    if x.numel() < _LARGE or not x.is_cpu:
        return x.contiguous()
    y: Tensor = _ChannelsFirst.apply(x)
    return y


def conv2d(
    backend: str,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    """`task_conv2d` of images ``[examples, in, height, width]``; the result is channels-last."""
    sizes = (x.shape[2], x.shape[3]), (w.shape[2], w.shape[3])
    geometry = ConvGeometry(stride, padding, dilation, *sizes)
    y: Tensor = Conv2d.apply(OneTask(kernels(backend)), x, w, b, geometry)
    return y


@final
@dataclass(frozen=True)
class Normalisation:
    """The arguments of `task_batch_norm`, for images ``[examples, channels, height, width]``."""

    x: Tensor
    w: Tensor | None
    b: Tensor | None
    eps: float
    relu: bool = False
    pool: bool = False


def batch_norm(backend: str, of: Normalisation) -> tuple[Tensor, Tensor, Tensor]:
    """`task_batch_norm`, channels-last; and the batch's mean and 1/std ``[channels]``."""

    def definition(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        w, b = _for_tasks(w), _for_tasks(b)
        return reference_task_batch_norm(x[None], w, b, of.eps, of.relu, of.pool)[0]

    one = OneTask(kernels(backend), definition, (_apart(of.b),))
    y, mean, scale, *_ = BatchNorm.apply(one, of.x, of.w, of.b, of.eps, of.relu, of.pool)
    return y, mean, scale


def layer_norm(backend: str, x: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> Tensor:
    """`task_layer_norm` of ``[rows, features]``."""

    def definition(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        return reference_task_layer_norm(x[None], _for_tasks(w), _for_tasks(b), eps)[0]

    one = OneTask(kernels(backend), definition, (_apart(b),))
    y: Tensor = LayerNorm.apply(one, x, w, b, eps)[0]
    return y


def act(backend: str, x: Tensor, activation: str) -> Tensor:
    """`task_act`, of those whose derivative is taken at the input."""
    one = OneTask(kernels(backend), partial(reference_task_act, activation=activation))
    y: Tensor = Act.apply(one, x, act_code("task_act", activation))
    return y


def attention(
    backend: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
) -> Tensor:
    """`task_attention` of ``[batch, heads, rows, size]``, without dropout."""
    full = None if mask is None else mask.expand(*q.shape[:3], k.shape[2])

    def definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = None if full is None else full[None]
        return reference_task_attention(q[None], k[None], v[None], mask, None, causal, scale)[0]

    one = OneTask(kernels(backend), definition)
    o: Tensor = Attention.apply(one, q, k, v, full, None, causal, scale, 0.0)[0]
    return o


def _for_tasks(x: Tensor | None) -> Tensor | None:
    return None if x is None else x[None]


def _apart(x: Tensor | None) -> Tensor | None:
    """Its numbers, whatever is written to it later."""
    return None if x is None else x.detach().clone()
