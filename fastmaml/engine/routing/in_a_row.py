"""Modules that run one after the other, of which nobody sees what goes between them.

`nn.Sequential` hands each result to the next module and to nobody else. A convolution, its
BatchNorm, a ReLU and a max-pooling are then two calls of kernels, with nothing made for others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, final

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from fastmaml.engine.routing.one_task import OneTaskCalls
from fastmaml.engine.routing.region_layers import runs_its_own
from fastmaml.engine.routing.torch_regions import inside


@contextlib.contextmanager
def rows_of(
    modules: Iterable[nn.Module], calls: OneTaskCalls, harmless: Callable[..., Any]
) -> Iterator[None]:
    """Where rows of modules go to the kernels as a whole.

    Such a row is an `nn.Sequential`, or a module with a method ``modules_in_a_row()`` that lists
    what its ``forward`` calls, one after the other.

    Args:
        modules: all of a model's.
        calls: of this pass.
        harmless: the one hook that they may have.
    """
    changed = []
    try:
        if calls.normalises and not torch_module._has_any_global_hook():
            for owner in modules:
                row = _row(owner)
                if any(type(m) is nn.BatchNorm2d for m in row):
                    changed.append((owner, vars(owner).get("forward")))
                    vars(owner)["forward"] = _InARow(owner.forward, row, calls, harmless)
        yield
    finally:
        for owner, before in changed:
            if before is None:
                del vars(owner)["forward"]
            else:
                vars(owner)["forward"] = before


def _row(owner: nn.Module) -> list[nn.Module]:
    if type(owner).forward is nn.Sequential.forward:
        return list(owner._modules.values())  # type: ignore[arg-type]  # it would call None
    given = getattr(type(owner), "modules_in_a_row", None)
    return [] if given is None else list(given(owner))


@final
class _InARow:
    """The ``forward`` of such a module."""

    def __init__(
        self,
        forward: Callable[..., Any],
        row: list[nn.Module],
        calls: OneTaskCalls,
        harmless: Callable[..., Any],
    ) -> None:
        self.forward, self.row, self.calls, self.harmless = forward, row, calls, harmless
        self.__wrapped__ = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if inside() or len(args) != 1 or kwargs:
            return self.forward(*args, **kwargs)
        (x,) = args
        if not self.calls.worth(self.row[0], x):
            return self.forward(x)
        waiting: list[Any] = list(reversed(self.row))
        while waiting:
            module = waiting.pop()
            after: Any = waiting[-1] if waiting else None
            normalised = type(module) is nn.Conv2d and type(after) is nn.BatchNorm2d
            if normalised and self._plain(module, after):
                x, module = self.calls.unseen(module, x), waiting.pop()
            if type(module) is nn.BatchNorm2d and self._plain(module):
                x = self._normalised(x, module, waiting)
            else:
                x = module(x)
        return x

    def _normalised(self, x: Any, norm: nn.Module, waiting: list[Any]) -> Tensor:
        """The normalised `x`, with the modules that follow as far as the kernel has them."""
        relu = bool(waiting) and type(waiting[-1]) is nn.ReLU and self._plain(waiting[-1])
        after = waiting[-2] if relu and len(waiting) > 1 else None
        pool = after is not None and _halves(after) and self._plain(after)
        y, done = self.calls.normalised(norm, x, relu, pool)
        if done:
            del waiting[len(waiting) - relu - pool :]
        return y

    def _plain(self, *modules: nn.Module) -> bool:
        """Whether they are as torch has them, and nobody sees what goes in, or comes out."""
        return all(
            runs_its_own(m)
            and not (m._forward_hooks or m._backward_hooks or m._backward_pre_hooks)
            and all(hook is self.harmless for hook in m._forward_pre_hooks.values())
            for m in modules
        )


def _halves(module: nn.Module) -> bool:
    if type(module) is not nn.MaxPool2d or module.return_indices or module.ceil_mode:
        return False
    sizes = module.kernel_size, module.stride, module.padding, module.dilation
    return sizes in (((2,) * 2, (2,) * 2, 0, 1), (2, 2, 0, 1))
