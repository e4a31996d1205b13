"""`task_conv2d` and its two gradients: implicit matrix products on channels-last images."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import checks, tuning
from .conv_gather import gather, gather_kernel
from .conv_wgrad import wgrad, wgrad_kernel
from .launch import Launch, Product, precision
from .tiles import Tile

# [T, N, C, H, W] is [T, N, H, W, C] in memory, [T, O, C, kh, kw] is [T, kh, kw, C, O].
CHANNELS_LAST, IMAGE = (0, 1, 3, 4, 2), (0, 1, 4, 2, 3)
TAPS_FIRST, WEIGHT = (0, 3, 4, 2, 1), (0, 4, 3, 1, 2)


@torch.library.custom_op("fastmaml_triton::task_conv2d", mutates_args=())
def task_conv2d(
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Tensor:
    """Each task's images convolved with its own weights (groups = 1).

    Args:
        x: [tasks, examples, channels, height, width]; a task stride of 0 shares it. Not
            channels-last, it is copied.
        w: [tasks, outputs, channels, kernel height, kernel width], likewise.
        b: [tasks, outputs] or None.
        stride, padding, dilation: (vertical, horizontal).

    Returns:
        [tasks, examples, outputs, height, width], channels-last.

    Raises:
        ValueError: shapes, dtypes, devices or the three pairs do not fit.
    """
    op = "task_conv2d"
    checks.tensors(op, gather_kernel, {"x": 5, "w": 5, "b": 2}, x=x, w=w, b=b)
    checks.sizes(op, "w's number of channels", w.shape[2:3], x.shape[2:3])
    if b is not None:
        checks.sizes(op, "the shape of b", b.shape, w.shape[:2])
    high, wide = out_size(op, x.shape[3:], w.shape[3:], stride, padding, dilation)
    if x.dtype == torch.float64:
        return channels_last(conv_float64(x, w, b, stride, padding, dilation))
    y = x.new_empty((*x.shape[:2], high, wide, w.shape[1]))
    image, weight = channels_last(x).permute(CHANNELS_LAST), packed(w).permute(TAPS_FIRST)
    work = product(op, y, weight)

    def plan(tile: Tile) -> list[Launch]:
        return [gather(work, tile, image, weight, y, b, stride, padding, dilation, False)]

    tuning.run(work, plan)
    return y.permute(IMAGE)


@task_conv2d.register_fake
def _(
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Tensor:
    size = out_size("task_conv2d", x.shape[3:], w.shape[3:], stride, padding, dilation)
    return x.new_empty((*x.shape[:2], *size, w.shape[1])).permute(IMAGE)


@torch.library.custom_op("fastmaml_triton::task_conv2d_dgrad", mutates_args=())
def task_conv2d_dgrad(
    g: torch.Tensor,
    w: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
) -> torch.Tensor:
    """The gradient of x, whose (height, width) is ``size``; g is like the output.

    Raises:
        ValueError: shapes, dtypes, devices or the pairs do not fit.
    """
    op = "task_conv2d_dgrad"
    checks.tensors(op, gather_kernel, {"g": 5, "w": 5}, g=g, w=w)
    checks.sizes(op, "w's number of outputs", w.shape[1:2], g.shape[2:3])
    image = out_size(op, size, w.shape[3:], stride, padding, dilation)
    checks.sizes(op, "g's height and width", g.shape[3:], image)
    if g.dtype == torch.float64:
        x = g.new_empty((*g.shape[:2], w.shape[2], *size))
        return channels_last(gradients_float64(g, x, w, stride, padding, dilation)[0])
    if max(stride) > 1 and max(dilation) > 1:
        g, stride = spread(g, stride, w.shape[3:], padding, dilation, size), (1, 1)
    gx = g.new_empty((*g.shape[:2], *size, w.shape[2]))
    read, weight = channels_last(g).permute(CHANNELS_LAST), packed(w).permute(TAPS_FIRST).mT
    work = product(op, gx, weight, phases=(stride[0], stride[1]))

    def plan(tile: Tile) -> list[Launch]:
        return [gather(work, tile, read, weight, gx, None, stride, padding, dilation, True)]

    tuning.run(work, plan)
    return gx.permute(IMAGE)


@task_conv2d_dgrad.register_fake
def _(
    g: torch.Tensor,
    w: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
) -> torch.Tensor:
    return g.new_empty((*g.shape[:2], *size, w.shape[2])).permute(IMAGE)


@torch.library.custom_op("fastmaml_triton::task_conv2d_wgrad", mutates_args=())
def task_conv2d_wgrad(
    g: torch.Tensor,
    x: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    kernel: Sequence[int],
    bias: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of w, whose (height, width) is ``kernel``, and of b.

    Returns:
        [tasks, outputs, channels, height, width] in the memory order (tasks, height, width,
        channels, outputs), and [tasks, outputs], without elements unless ``bias``.

    Raises:
        ValueError: shapes, dtypes, devices or the pairs do not fit.
    """
    op = "task_conv2d_wgrad"
    checks.tensors(op, wgrad_kernel, {"g": 5, "x": 5}, g=g, x=x)
    checks.sizes(op, "x's number of examples", x.shape[1:2], g.shape[1:2])
    image = out_size(op, x.shape[3:], kernel, stride, padding, dilation)
    checks.sizes(op, "g's height and width", g.shape[3:], image)
    (tasks, examples, outputs), channels = g.shape[:3], x.shape[2]
    if g.dtype == torch.float64:
        w = g.new_empty((tasks, outputs, channels, *kernel))
        gw = gradients_float64(g, x, w, stride, padding, dilation)[1]
        gw = gw.permute(TAPS_FIRST).contiguous().permute(WEIGHT)
        return gw, g.sum((1, 3, 4)) if bias else g.new_empty(0)
    gw = g.new_empty((tasks, *kernel, channels, outputs))
    gb = g.new_empty((tasks, outputs)) if bias else None
    if bias and gw.numel() == 0:  # no tile of gw exists that would sum the pixels
        return gw.permute(WEIGHT), g.sum((1, 3, 4))
    read, given = (channels_last(i).permute(CHANNELS_LAST) for i in (x, g))
    checks.limits(op, pixels=examples * image[0] * image[1], weights=gw[:1].numel())
    sizes = kernel[0] * kernel[1] * channels, outputs, examples * image[0] * image[1]
    work = Product(op, tasks, *sizes, g.dtype, precision(g.dtype), g.device, splittable=True)
    tuning.run(work, lambda tile: wgrad(work, tile, read, given, gw, gb, stride, padding, dilation))
    return gw.permute(WEIGHT), g.new_empty(0) if gb is None else gb


@task_conv2d_wgrad.register_fake
def _(
    g: torch.Tensor,
    x: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    kernel: Sequence[int],
    bias: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    gw = g.new_empty((g.shape[0], *kernel, x.shape[2], g.shape[2])).permute(WEIGHT)
    return gw, g.new_empty((g.shape[0], g.shape[2]) if bias else (0,))


def product(
    op: str, out: torch.Tensor, w: torch.Tensor, phases: tuple[int, int] = (1, 1)
) -> Product:
    """Of out [T, N, H, W, O] and w [T, kh, kw, C, O]; a phase is as good as a task."""
    tasks, examples, high, wide, outputs = out.shape
    rows = examples * -(-high // phases[0]) * -(-wide // phases[1])
    count = phases[0] * phases[1]
    terms = -(-w[0].numel() // (max(outputs, 1) * count)) if tasks else 0
    checks.limits(op, pixels=examples * high * wide, terms=terms * count)
    settings = out.dtype, precision(out.dtype), out.device
    return Product(op, tasks * count, rows, outputs, terms, *settings)


def out_size(
    op: str,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Height and width of the output; complains of settings that give none."""
    named = {"stride": (stride, 1), "padding": (padding, 0), "dilation": (dilation, 1)}
    for name, (pair, least) in (named | {"kernel": (kernel, 1)}).items():
        if len(pair) != 2 or min(pair) < least:
            raise ValueError(f"{op}: {name} is {list(pair)}, not two integers from {least}.")
    settings = zip(size, kernel, stride, padding, dilation, strict=True)
    out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in settings]
    if min(out) < 1:
        raise ValueError(
            f"{op}: the kernel {list(kernel)} with dilation {list(dilation)} is larger than the "
            f"image {list(size)} with padding {list(padding)}."
        )
    return out


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """[T, N, C, H, W] with channels next to each other, copied if they are not; shared stays so."""
    if x.shape[2] == 1 or x.stride(2) == 1:
        return x
    if x.stride(0) == 0 and x.shape[0] > 1:
        return channels_last(x[:1]).expand_as(x)
    return x.permute(CHANNELS_LAST).contiguous().permute(IMAGE)


def packed(w: torch.Tensor) -> torch.Tensor:
    """[T, O, C, kh, kw] with outputs or channels next to each other; shared stays shared."""
    if 1 in (w.stride(1), w.stride(2), w.shape[1], w.shape[2]):
        return w
    if w.stride(0) == 0 and w.shape[0] > 1:
        return packed(w[:1]).expand_as(w)
    return w.permute(TAPS_FIRST).contiguous().permute(WEIGHT)


def spread(
    g: torch.Tensor,
    stride: Sequence[int],
    kernel: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
) -> torch.Tensor:
    """The output gradient of the same convolution with stride 1: zeros where that one skips."""
    dense = out_size("task_conv2d_dgrad", size, kernel, (1, 1), padding, dilation)
    wide = g.new_zeros((*g.shape[:2], *dense, g.shape[2])).permute(IMAGE)
    wide[..., :: stride[0], :: stride[1]] = g
    return wide


def conv_float64(
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Tensor:
    """The definition, by PyTorch's grouped convolution: a group a task."""
    flat = None if b is None else b.reshape(-1)
    groups = x.shape[0]
    if groups == 0:  # PyTorch has no convolution of none
        high, wide = out_size("task_conv2d", x.shape[3:], w.shape[3:], stride, padding, dilation)
        return x.new_empty((0, x.shape[1], w.shape[1], high, wide))
    y = torch.nn.functional.conv2d(
        x.transpose(0, 1).flatten(1, 2), w.flatten(0, 1), flat, stride, padding, dilation, groups
    )
    return y.unflatten(1, (x.shape[0], w.shape[1])).transpose(0, 1)


def gradients_float64(
    g: torch.Tensor,
    x: torch.Tensor,
    w: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of x and w; only the shape of the one that is wanted is read."""
    if x.shape[0] == 0:  # as above
        return torch.empty_like(x), torch.empty_like(w)
    gx, gw, _ = torch.ops.aten.convolution_backward(
        g.transpose(0, 1).flatten(1, 2),
        x.transpose(0, 1).flatten(1, 2),
        w.flatten(0, 1),
        None,
        list(stride),
        list(padding),
        list(dilation),
        False,
        [0, 0],
        x.shape[0],
        [True, True, False],
    )
    gx = gx.unflatten(1, (x.shape[0], x.shape[2])).transpose(0, 1)
    return gx, gw.unflatten(0, (w.shape[0], w.shape[1]))
