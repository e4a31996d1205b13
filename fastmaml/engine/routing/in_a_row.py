"""Modules that run one after the other, of which nobody sees what goes between them.

`nn.Sequential` hands each result to the next module and to nobody else. A convolution, its
BatchNorm, a ReLU and a max-pooling are then two calls of kernels, which keep images channels-last
from block to block; the row's result has the layout that PyTorch's has. Where somebody looks
between (a hook, a ``forward`` of one's own), the modules are called as they are.
"""

from __future__ import annotations

import copyreg
import functools
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack

from fastmaml.engine.routing.one_task import OneTaskCalls
from fastmaml.engine.routing.region_layers import runs_its_own
from fastmaml.engine.routing.torch_regions import inside
from fastmaml.ops import one_task


def in_rows(module: nn.Module) -> None:
    """Let the rows of a copy of a module tree run as such, where a learner calls it.

    A row is an `nn.Sequential`, or a module with a method ``modules_in_a_row()`` beside a
    ``forward`` that does nothing but call what it lists, one after the other.

    Args:
        module: changed in place: rows get a class of the same name below their own.
    """
    for owner in module.modules():
        normalises = any(type(m) is nn.BatchNorm2d for m in owner.modules())
        if normalises and not isinstance(owner, _Row) and _is_row(type(owner)):
            owner.__class__ = _row_class(type(owner))  # type: ignore[arg-type]  # it has a hash


def _is_row(kind: type[nn.Module]) -> bool:
    if kind.forward is nn.Sequential.forward and not hasattr(kind, "modules_in_a_row"):
        return kind.__iter__ is nn.Sequential.__iter__  # type: ignore[attr-defined]
    for base in kind.__mro__:
        if "forward" in vars(base):
            return "modules_in_a_row" in vars(base)
    return False


@functools.lru_cache(maxsize=256)
def _row_class(kind: type[nn.Module]) -> type[nn.Module]:
    names = {n: getattr(kind, n) for n in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (_Row, kind), names)


class _Row(nn.Module):
    """What such a class has beside its own."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        calls = _calls()
        if calls is None or len(args) != 1 or kwargs or not _plain_images(args[0]):
            return super().forward(*args, **kwargs)
        if inside() or torch_module._has_any_global_hook() or not calls.free():
            return super().forward(*args, **kwargs)
        return _Run(calls, _flat(self, calls)).of(args[0])

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copied and pickled as one of the class that it had."""
        found = super().__reduce_ex__(protocol)
        if isinstance(found, str) or found[1][:1] != (type(self),):
            return found
        # Not `copyreg.__newobj__`, which pickle holds against the object's class.
        made = copyreg._reconstructor  # type: ignore[attr-defined]
        return (made, (type(self).__bases__[1], object, None), *found[2:])


def _calls() -> OneTaskCalls | None:
    """Those of the pass of a learner that this thread is in, if nobody watches it from inside."""
    modes = _get_current_function_mode_stack()
    return getattr(modes[-1], "kernel_calls", None) if modes else None


def _plain_images(x: Any) -> bool:
    return type(x) is Tensor and x.ndim == 4 and x.is_contiguous()


def _flat(row: nn.Module, calls: OneTaskCalls) -> list[Any]:
    """The modules that run, those of rows in the row among them."""
    listed = getattr(row, "modules_in_a_row", None)
    given = row._modules.values() if listed is None else listed()
    found: list[Any] = []
    module: Any
    for module in given:
        deeper = isinstance(module, _Row) and _is_plain(module, calls)
        found += _flat(module, calls) if deeper else [module]
    return found


def _is_plain(module: nn.Module, calls: OneTaskCalls) -> bool:
    """Whether it is as torch has it, and nobody sees what goes in, or comes out."""
    return (
        runs_its_own(module)
        and not (module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)
        and all(hook is calls.harmless for hook in module._forward_pre_hooks.values())
    )


class _Run:
    """One pass through a row.

    Args:
        calls: of the pass.
        modules: in order.
    """

    def __init__(self, calls: OneTaskCalls, modules: list[Any]) -> None:
        self.calls, self.waiting = calls, modules[::-1]
        self.hidden = False
        """Whether what goes on is the kernels' and channels-last."""

    def of(self, x: Any) -> Any:
        """The row's result."""
        while self.waiting:
            module = self.waiting.pop()
            if self._begins_block(module) and self._is_worth(module, x):
                x = self._block(module, x)
            else:
                x = module(self._shown(x))
        return self._shown(x)

    def _begins_block(self, module: Any) -> bool:
        """Whether it is a BatchNorm, or a convolution and one follows."""
        if type(module) is nn.Conv2d:
            after = self._next(nn.BatchNorm2d)
            return after is not None and _normalises(after) and _is_plain(module, self.calls)
        return (
            type(module) is nn.BatchNorm2d and _normalises(module) and _is_plain(module, self.calls)
        )

    def _is_worth(self, module: nn.Module, x: Any) -> bool:
        if not self.hidden and not _plain_images(x):
            return False
        channels = module.out_channels if isinstance(module, nn.Conv2d) else x.shape[1]
        results = len(x) * channels * x.shape[2] * x.shape[3]
        return bool(results >= self.calls.least("rows, later" if self.hidden else "rows"))

    def _block(self, module: nn.Module, x: Any) -> Any:
        if type(module) is nn.Conv2d:
            y, done = self.calls.made(module, x)
            if not done:
                return y
            x, self.hidden, module = y, True, self.waiting.pop()
        relu = self._next(nn.ReLU)
        pool = None if relu is None else self._next(nn.MaxPool2d, 2)
        pools = pool is not None and _halves(pool) and min(x.shape[2:]) > 1
        y, done = self.calls.made(module, x, relu is not None, pools)
        if not done:  # PyTorch's has the layout of what it was given
            y, self.hidden = y.contiguous() if self.hidden else y, False
            return y
        del self.waiting[len(self.waiting) - (relu is not None) - pools :]
        self.hidden = True
        return y

    def _next(self, kind: type[nn.Module], place: int = 1) -> Any:
        """The module at that place of those that wait, if it is plain and such a one."""
        if len(self.waiting) < place or type(self.waiting[-place]) is not kind:
            return None
        found = self.waiting[-place]
        return found if _is_plain(found, self.calls) else None

    def _shown(self, x: Any) -> Any:
        """`x` as PyTorch has it."""
        if self.hidden:
            x, self.hidden = one_task.channels_first(x), False
        return x


def _normalises(norm: Any) -> bool:
    """Whether it does so by the batch at hand."""
    return bool(norm.training or (norm.running_mean is None and norm.running_var is None))


def _halves(pool: Any) -> bool:
    if pool.return_indices or pool.ceil_mode:
        return False
    sizes = [x if isinstance(x, tuple) else (x, x) for x in (pool.kernel_size, pool.stride)]
    return sizes == [(2, 2)] * 2 and pool.padding in (0, (0, 0)) and pool.dilation in (1, (1, 1))
