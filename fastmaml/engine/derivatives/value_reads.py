"""Whether code takes numbers out of tensors: what it does may then depend on them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, final

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastmaml.engine.base.trees import found_in
from fastmaml.engine.base.zero_tensors import with_memory

AS_NUMBERS = frozenset(
    {
        Tensor.tolist,
        Tensor.__float__,
        Tensor.__int__,
        Tensor.__index__,
        Tensor.__complex__,
    }
)
"""What returns numbers of Python's; all but the first do inside of ``torch.Tensor([x, y])``."""

DOORS = AS_NUMBERS | frozenset(
    {
        Tensor.numpy,
        Tensor.storage,
        Tensor.apply_,
        Tensor.map_,
        Tensor.__array__,
        Tensor.__dlpack__,
        Tensor.__deepcopy__,
        Tensor.__repr__,
        Tensor.__format__,
        Tensor.__reduce_ex__,
    }
)
"""What reads values without an operation."""

_MAKERS = frozenset(
    {
        torch.tensor,
        torch.as_tensor,
        torch.asarray,
        torch.sparse_coo_tensor,
        torch.sparse_csr_tensor,
        torch.sparse_csc_tensor,
        torch.sparse_bsr_tensor,
        torch.sparse_bsc_tensor,
        torch.sparse_compressed_tensor,
        Tensor.new_tensor,
        Tensor.new,
    }
)
"""What makes a tensor of a list; tensors in that are read without an operation."""

OWN = frozenset({"aten", "prims", "fastmaml"})
"""Operations that read nothing but what they are given; others may hold tensors of their own."""

ABOUT_SHAPES = {
    torch.ops.aten.is_same_size.default,
    torch.ops.aten._has_same_storage_numel.default,
    torch.ops.aten.is_coalesced.default,
    torch.ops.aten.sparse_dim.default,
    torch.ops.aten.dense_dim.default,
}
"""What forward-mode differentiation and sparse products ask; no values are read."""


_BY_SIZES = frozenset(
    {
        torch.tensor_split,
        Tensor.tensor_split,
        torch._VF._pad_packed_sequence,
        *(getattr(torch._VF, name) for name in ("gru", "lstm", "rnn_tanh", "rnn_relu")),
    }
)
"""What reads a tensor of whole numbers, beside what it is about, in its memory."""


def door(func: Any, args: Any, kwargs: dict[str, Any]) -> str:
    """How a function of torch's reads values without an operation; nothing if it does not."""
    if func in DOORS:
        return str(func.__name__)
    if func in _BY_SIZES:
        given = [*args[1:], *(x for name, x in kwargs.items() if name != "input")]
        sizes = any(isinstance(x, Tensor) and not x.is_floating_point() for x in given)
        return f"{func.__name__} with sizes in a tensor" if sizes else ""
    if func in (Tensor.__getitem__, Tensor.__setitem__):
        index, value = args[1], args[2:]
        made = (*(index if isinstance(index, tuple | list) else ()), *value)
    else:
        made = (*args, *kwargs.values()) if func in _MAKERS else ()
    if any(not isinstance(x, Tensor) and _has_tensors(x) for x in made):
        return f"{func.__name__} with a list of tensors"
    return ""


def _has_tensors(x: Any) -> bool:
    """Whether it is one, or a list with some, at any depth.

    What else has entries and a length counts as a list, as it does where tensors are made.
    """
    if isinstance(x, Tensor):
        return True
    if isinstance(x, str | bytes | dict) or type(x).__module__ == "numpy":
        return False
    listed = hasattr(type(x), "__len__") and hasattr(type(x), "__getitem__")
    return listed and any(_has_tensors(x[i]) for i in range(len(x)))


def reads(func: Any, result: Any) -> bool:
    """Whether an operation that returned this read a value back."""
    if isinstance(result, Tensor) or func in ABOUT_SHAPES:
        return False
    return any(x is not None and not isinstance(x, Tensor) for x in tree_leaves(result))


@final
class ValueReads:
    """Watches while it is active.

    A shape that depends on numbers counts, as code can ask for it.

    What no tensor from outside had a part in is read freely: it is the same every time.

    Attributes:
        numbers: what read one first; nothing if nothing did.
        shapes: what made such a shape first, but for masks, which vmap refuses where it must.
        seen: what did any of these.
    """

    def __init__(self) -> None:
        self.numbers = self.shapes = self.seen = ""
        self._stack = ExitStack()

    def __enter__(self) -> ValueReads:
        self._stack.enter_context(_Operations(self))
        self._stack.enter_context(_Doors(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


_MASKS = (torch.bool, torch.uint8)


class _Operations(TorchDispatchMode):
    supports_higher_order_operators = True  # as torch.cond is one; it reads its condition

    def __init__(self, found: ValueReads) -> None:
        super().__init__()
        self.found = found
        self.fixed: dict[int, StorageWeakRef] = {}
        """Memory whose numbers nothing from outside had a part in, and that is still there."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: the default loads all of torch.compile, for most of a second, to keep it off."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # A stand-in for zero without memory would end the interpreter under a dispatch mode.
        result = func(*with_memory(func, args), **(kwargs or {}))
        found, fixed = self.found, self._follow(func, (args, kwargs), result)
        if torch._C._current_graph_task_id() != -1:
            return result  # some of PyTorch's own derivatives look at values, and know why
        if func is torch.ops.aten.index.Tensor:
            shapes = any(i is not None and i.dtype in _MASKS for i in args[1])
        else:
            tags = getattr(func, "tags", ())
            shapes = torch.Tag.dynamic_output_shape in tags
            found.shapes = found.shapes or str(func) * shapes
        if (reads(func, result) and not fixed) or not isinstance(func, OpOverload):
            found.numbers = found.numbers or str(func)
        found.seen = found.seen or found.numbers or str(func) * shapes
        return result

    def _follow(self, func: Any, given: Any, result: Any) -> bool:
        """Whether an operation gives the same whenever it runs, as ``torch.arange(4)`` does."""
        tensors, made = found_in(given, Tensor), found_in(result, Tensor)
        known = isinstance(func, OpOverload) and func.namespace in OWN
        fixed = known and torch.Tag.nondeterministic_seeded not in func.tags
        fixed = fixed and all(map(self._is_fixed, tensors))
        # Without a schema it may write to anything.
        writes = not known or func._schema.is_mutable
        for x in (*(tensors if writes else ()), *made):
            if torch._C._has_storage(x):
                storage = x.untyped_storage()
                self.fixed.pop(storage._cdata, None)
                if fixed:
                    self.fixed[storage._cdata] = StorageWeakRef(storage)
        return fixed

    def _is_fixed(self, x: Tensor) -> bool:
        found = self.fixed.get(x.untyped_storage()._cdata) if torch._C._has_storage(x) else None
        return found is not None and not found.expired()


class _Doors(TorchFunctionMode):
    def __init__(self, found: ValueReads) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if through := door(func, args, kwargs or {}):
            self.found.numbers = self.found.numbers or through
            self.found.seen = self.found.seen or through
        return func(*args, **(kwargs or {}))
