"""Steps of a tape as the native module takes them: its own kernels, PyTorch's operations, views,
and sums and products over numbers in memory.
"""

from __future__ import annotations

from typing import Any, final

import torch

from fastmaml.engine.recording.memory_reuse import made_by, read_by
from fastmaml.engine.recording.tape import Geometry, Operation, Ref, Tape

DTYPES = {
    torch.uint8: 0,
    torch.int8: 1,
    torch.int16: 2,
    torch.int32: 3,
    torch.int64: 4,
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.bool: 11,
    torch.bfloat16: 15,
}
"""As torch's headers number them."""

NONE, TENSOR, OPTIONAL, TENSORS = range(4)
INTEGER, NUMBER, BOOLEAN, INTEGERS, BOOLEANS, DTYPE, FORMAT = range(4, 11)

_FORMATS = {torch.contiguous_format: 0, torch.preserve_format: 1, torch.channels_last: 2}

_TYPES = {
    "int": INTEGER,
    "SymInt": INTEGER,
    "float": NUMBER,
    "bool": BOOLEAN,
    "List[int]": INTEGERS,
    "List[SymInt]": INTEGERS,
    "List[bool]": BOOLEANS,
}

_ADD, _SUB, _MUL, _DIV, _NEG, _SQUARE, _CUBE = range(7)

_aten = torch.ops.aten
_POINTWISE = {
    _aten.add.Tensor: _ADD,
    _aten.add_.Tensor: _ADD,
    _aten.sub.Tensor: _SUB,
    _aten.sub_.Tensor: _SUB,
    _aten.mul.Tensor: _MUL,
    _aten.mul_.Tensor: _MUL,
    _aten.mul.Scalar: _MUL,
    _aten.mul_.Scalar: _MUL,
    _aten.div.Tensor: _DIV,
    _aten.div.Scalar: _DIV,
    _aten.div_.Scalar: _DIV,
    _aten.neg.default: _NEG,
    _aten.neg_.default: _NEG,
}
_POWERS = {2: _SQUARE, 3: _CUBE}

_THROUGH_THE_DISPATCHER = {
    _aten.ones_like.default,
    _aten.zeros_like.default,
    _aten.sum.default,
    _aten.sum.dim_IntList,
    _aten.mean.dim,
    _aten.clone.default,
    _aten.rsqrt.default,
    _aten.cos.default,
    _aten.sin.default,
    _aten.exp.default,
    _aten.log.default,
    _aten.tanh.default,
    _aten.sigmoid.default,
    _aten.relu.default,
    _aten.abs.default,
    _aten.sqrt.default,
    _aten.where.self,
    _aten.bitwise_not.default,
    _aten.mm.default,
    _aten.bmm.default,
    _aten.cat.default,
    _aten.stack.default,
    _aten.max.default,
    _aten.gather.default,
    _aten.embedding.default,
    _aten.slice_backward.default,
    _aten.select_backward.default,
}
"""What allocates and computes, and takes no argument that the stable interface cannot hand over."""


class _NotNativeError(Exception):
    """A step that only Python calls."""


@final
class Encoder:
    """Steps of a tape as the native module takes them."""

    def __init__(self, tape: Tape, module: Any) -> None:
        self.tape, self.module = tape, module

    def step(self, step: Any) -> tuple[Any, ...] | None:
        """One step, but for what is over after it; None if it is Python's."""
        geometries = (self.tape.geometry[v] for v in (*read_by(step), *made_by(step)))
        if any(g.dtype not in DTYPES for g in geometries):
            return None
        if not isinstance(step, Operation):
            value, view = step
            return ("view", value, view.source, view.size, view.stride, view.offset)
        if not isinstance(step.function, torch._ops.OpOverload):  # a mark in a profile
            return None
        try:
            if step.function.namespace == "fastmaml":
                return self._kernel(step)
            if step.function in _POINTWISE or step.function is _aten.pow.Tensor_Scalar:
                return self._pointwise(step)
            if step.function in _THROUGH_THE_DISPATCHER:
                return self._dispatched(step)
        except _NotNativeError:
            return None
        return None

    def _kernel(self, step: Operation) -> tuple[Any, ...]:
        name = step.function._opname
        if not self.module.has_kernel(name):
            raise _NotNativeError
        return ("call", name, None, *self._call(step))

    def _dispatched(self, step: Operation) -> tuple[Any, ...]:
        schema = step.function._schema
        return ("call", schema.name, schema.overload_name, *self._call(step))

    def _call(self, step: Operation) -> tuple[Any, ...]:
        schema = step.function._schema
        if schema.is_mutable:
            raise _NotNativeError
        arguments = []
        for i, x in enumerate(schema.arguments):
            if i < len(step.arguments):
                given = step.arguments[i]
            else:
                given = step.keywords.get(x.name, x.default_value)
            arguments.append(self._argument(given, str(x.type)))
        returns = [str(r.type) for r in schema.returns]
        if returns == ["List[Tensor]"]:
            results, is_list = step.results, True
        elif all(r == "Tensor" for r in returns):
            results, is_list = step.results, False
            results = results if isinstance(results, tuple) else (results,)
        else:
            raise _NotNativeError
        if any(r is not None and type(r) is not int for r in results):
            raise _NotNativeError
        return arguments, [-1 if r is None else r for r in results], is_list, 0

    def _argument(self, given: Any, kind: str) -> tuple[Any, ...]:
        """(type, whether the schema calls it optional, what it is)."""
        optional = kind.startswith("Optional[")
        kind = kind[len("Optional[") : -1] if optional else kind
        if kind == "Tensor":
            if optional:
                return OPTIONAL, True, -1 if given is None else given.value
            return TENSOR, False, given.value
        if kind == "List[Tensor]" and not optional:
            return TENSORS, False, [ref.value for ref in given]
        if given is None and optional:
            return NONE, True, None
        if isinstance(given, torch.dtype) and given in DTYPES:
            return DTYPE, optional, DTYPES[given]
        if isinstance(given, torch.memory_format) and given in _FORMATS:
            return FORMAT, optional, _FORMATS[given]
        numbers = given if isinstance(given, list | tuple) else [given]
        if kind not in _TYPES or not all(type(x) in (bool, int, float) for x in numbers):
            raise _NotNativeError
        return _TYPES[kind], optional, given

    def _pointwise(self, step: Operation) -> tuple[Any, ...]:
        """A sum, product or the like of floating-point numbers of one dtype."""
        kind: Any = _POINTWISE.get(step.function)
        a, *rest = step.arguments
        b: Any = rest[0] if rest else 0.0
        if step.function is _aten.pow.Tensor_Scalar:
            # The first power is what the derivative of a square begins with.
            kind, b = (_MUL, 1.0) if b == 1 else (_POWERS.get(b), 0.0)
        made = step.results
        if kind is None or step.keywords or len(rest) > 1 or type(made) is not int:
            raise _NotNativeError
        if type(a) is not Ref or not (type(b) is Ref or type(b) in (int, float)):
            raise _NotNativeError
        out, left = self.tape.geometry[made], self.tape.geometry[a.value]
        right = self.tape.geometry[b.value] if type(b) is Ref else None
        dtypes = {g.dtype for g in (out, left, right) if g is not None}
        if len(dtypes) > 1 or out.dtype not in (torch.float32, torch.float64):
            raise _NotNativeError
        in_place = step.function._schema.is_mutable
        if in_place and left != out:
            raise _NotNativeError
        size, steps = _loops(out, left, right)
        second, number = (b.value, 0.0) if type(b) is Ref else (-1, float(b))
        return ("pointwise", kind, a.value, second, number, made, in_place, size, *steps)


def _loops(
    out: Geometry, left: Geometry, right: Geometry | None
) -> tuple[list[int], list[list[int]]]:
    """Sizes and steps of as few loops as do, the innermost last."""
    operands = [left, out if right is None else right, out]
    rank = len(out.size)
    found = []
    for d in range(rank):
        steps = []
        for g in operands:
            place = d - rank + len(g.size)
            own = place >= 0 and g.size[place] == out.size[d]
            if not own and place >= 0 and g.size[place] != 1:
                raise _NotNativeError
            steps.append(g.stride[place] if own else 0)
        found.append((out.size[d], steps))
    loops = [x for x in found if x[0] != 1]
    loops.sort(key=lambda x: x[1][2], reverse=True)  # by where results lie
    merged: list[tuple[int, list[int]]] = []
    for size, steps in loops:
        if merged and merged[-1][1] == [s * size for s in steps]:
            merged[-1] = (merged[-1][0] * size, steps)
        else:
            merged.append((size, steps))
    return [size for size, _ in merged], [[s[i] for _, s in merged] for i in (0, 1, 2)]


def renamed(code: tuple[Any, ...], names: dict[int, int]) -> tuple[Any, ...]:
    """The same of values with other numbers."""
    if code[0] == "view":
        return ("view", names[code[1]], names[code[2]], *code[3:])
    if code[0] == "pointwise":
        _, kind, a, b, number, made, *rest = code
        return ("pointwise", kind, names[a], names.get(b, -1), number, names[made], *rest)
    _, name, overload, arguments, results, is_list, inside = code
    given = []
    for kind, optional, x in arguments:
        if kind in (TENSOR, OPTIONAL):
            x = names.get(x, -1)
        elif kind == TENSORS:
            x = [names[v] for v in x]
        given.append((kind, optional, x))
    results = [names.get(r, -1) for r in results]
    return ("call", name, overload, given, results, is_list, inside)
