"""Recording a function as a flat list of tensor operations, with views resolved.

A `TorchDispatchMode` sees every operation after autograd and vmap have been worked off. A tensor is
known by its place in memory (storage, offset, shape, strides), not by its identity: aliases such as
``detach`` then vanish by themselves, and every other view is one step from the tensor that owns the
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastmaml.engine.base import functorch
from fastmaml.engine.base.seeds import foreign_state
from fastmaml.engine.base.storages import has_memory
from fastmaml.engine.base.trees import exchanged, found_in
from fastmaml.engine.base.zero_tensors import with_memory
from fastmaml.engine.derivatives.value_reads import ABOUT_SHAPES, AS_NUMBERS, OWN, door, reads
from fastmaml.engine.recording.operation_facts import about, draws


class UncapturableError(Exception):
    """A function cannot be replayed from a recording; the message says why."""


class Ref(NamedTuple):
    """A value of the tape, as an argument."""

    value: int


class View(NamedTuple):
    """Another way to look at a value's memory; `offset` counts elements from where that begins."""

    source: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class Geometry(NamedTuple):
    """How a value's elements lie in memory."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(x: Tensor) -> Geometry:
        """The geometry of a tensor."""
        return Geometry(tuple(x.shape), tuple(x.stride()), x.dtype)

    def reach(self) -> int:
        """Bytes of memory from the first element to the last."""
        if 0 in self.size:
            return 0
        last = sum((n - 1) * by for n, by in zip(self.size, self.stride, strict=True))
        return (1 + last) * self.dtype.itemsize


class Operation(NamedTuple):
    """A call of an operation.

    `results` are value numbers, in tuples where it returns tuples or lists, and None for what is
    not new.
    """

    function: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    results: Any

    def made(self) -> list[int]:
        """The values that it makes."""
        return [self.results] if type(self.results) is int else found_in(self.results, int)


@dataclass
class Tape:
    """What was recorded: values are numbered, inputs first.

    Attributes:
        inputs: how many inputs there are.
        steps: views (by the number of the value that they make) and operations, in order.
        constants: tensors from outside, which are read anew at every replay.
        outputs: of the function, in order.
        owner: for each value, the value that owns its memory.
        geometry: for each value, its shape, strides and dtype.
        written: owners that some operation writes to.
        fixed: tensors from outside on whose values shapes depend, or what the code does, with
            copies: once one of them was written to (by numpy, say, which tells nobody), the tape is
            no longer right.
    """

    inputs: int
    steps: list[tuple[int, View] | Operation] = field(default_factory=list)
    constants: dict[int, Tensor] = field(default_factory=dict)
    outputs: list[int] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)
    geometry: list[Geometry] = field(default_factory=list)
    written: set[int] = field(default_factory=set)
    fixed: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def copy(self) -> Tape:
        """Another one of the same steps and constants."""
        return replace(
            self,
            steps=list(self.steps),
            outputs=list(self.outputs),
            owner=list(self.owner),
            geometry=list(self.geometry),
            constants=dict(self.constants),
            written=set(self.written),
            fixed=list(self.fixed),
        )

    def outside(self) -> set[int]:
        """The owners of memory that a replay finds and must leave as it is, views included."""
        return {self.owner[v] for v in (*range(self.inputs), *self.constants)}


def record(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], tape: Tape | None = None
) -> tuple[Tape, Sequence[Tensor]]:
    """The tape of ``function(*inputs)``, which is run once, and its results.

    Args:
        function: of tensors, returns tensors; pure, but for what it draws from its inputs.
        inputs: no two of them may share memory.
        tape: an empty one to fill, which the function may look at meanwhile.

    Raises:
        UncapturableError: it reads a value back that its inputs decide, draws random numbers, or
            writes to what is not its own.
    """
    recorder = _Recorder(inputs, tape)
    state = foreign_state()
    try:
        with recorder, _NoEscape(recorder):
            results = function(*inputs)
    except Exception as error:
        if recorder.refused not in (None, error):  # TorchScript makes it an error of its own
            raise recorder.refused from error
        raise
    if recorder.refused is not None:  # and the function caught it
        raise recorder.refused
    if foreign_state() != state:
        raise UncapturableError("it draws from Python's random or numpy.random")
    recorder.tape.outputs = [recorder.number(x) for x in results]
    return recorder.tape, results


class _Recorder(TorchDispatchMode):
    def __init__(self, inputs: Sequence[Tensor], tape: Tape | None) -> None:
        super().__init__()
        self.tape = tape or Tape(len(inputs))
        self.refused: UncapturableError | None = None
        # The references keep an address from being used again while it names a value here.
        self._storages: dict[int, tuple[StorageWeakRef, int, int]] = {}
        self._places: dict[Any, int] = {}
        for x in inputs:
            self._own(x)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: the default loads all of torch.compile, for most of a second, to keep it off."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, args = kwargs or {}, with_memory(func, args)
        if func in ABOUT_SHAPES:
            return func(*args, **kwargs)
        if func is torch.ops.aten.native_batch_norm.default and args[3] is not None and args[5]:
            func = torch.ops.aten._native_batch_norm_legit.default  # which owns up to its writes
        facts = about(func)
        if facts.seeded and draws(func, args, kwargs):
            self._refuse(f"it calls {func}, which draws random numbers")
        if facts.list_in_place and torch.is_grad_enabled():
            # Under a dispatch mode torch forgets what they take their gradients to (seen in 2.13).
            self._refuse(f"it calls {func}, whose derivative PyTorch loses while it is recorded")
        if not facts.has_derivative and _learns(args, kwargs):
            self._refuse(
                f"it calls {func}, inside of which PyTorch differentiates nothing meanwhile"
            )
        arguments = tuple([self._argument(x) for x in args])
        keywords = {name: self._argument(x) for name, x in kwargs.items()}
        result = func(*args, **kwargs)
        if reads(func, result):
            if found_in(result, Tensor) or not self.fixed(found_in((args, kwargs), Tensor)):
                self._refuse(f"it calls {func}, which reads a value back from a tensor")
            return result  # the same at every replay
        if facts.other_memory:
            self._refuse(f"it calls {func}, which changes what memory a tensor has")
        if facts.other_view:
            return result  # another shape for the same memory: seen at the tensor's next use
        if facts.shape_of_values and not self._same_shape(func, args):
            self._refuse(f"it calls {func}, the shape of whose result depends on values")
        results = self._results(result)
        if facts.writes:
            self._note_writes(func, arguments, keywords)
        operation = Operation(func, arguments, keywords, results)
        if facts.writes or operation.made():
            self.tape.steps.append(operation)
        return result

    def _argument(self, x: Any) -> Any:
        """What stands for it on the tape."""
        if isinstance(x, Tensor):
            return Ref(self.number(x))
        if isinstance(x, list | tuple | dict):
            return exchanged(x, Tensor, lambda y: Ref(self.number(y)))
        return x

    def _same_shape(self, func: Any, args: Any) -> bool:
        """Whether it is ``x[indices]``, and masks among these depend on no input.

        On a GPU the number of a mask's entries would be read back all the same.
        """
        if func is not torch.ops.aten.index.Tensor:
            return False
        masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
        if not masks:
            return True
        return all(x.device.type == "cpu" for x in (args[0], *masks)) and self.fixed(masks)

    def fixed(self, tensors: Iterable[Tensor]) -> bool:
        """Whether their numbers depend on no input, as those of ``torch.arange``.

        What they are made of must then stay as it is.
        """
        owners = {self.tape.owner[self.number(x)] for x in tensors}
        if not owners.isdisjoint(self._from_inputs()):
            return False
        made_of, constants = self._made_of(owners), self.tape.constants
        noted = {_place(x) for x, _ in self.tape.fixed}
        with torch._C._DisableTorchDispatch(), torch.no_grad():  # this is no part of the tape
            for x in (constants[v] for v in made_of if v in constants):
                for view in (x, *self._views(x)):
                    if _place(view) not in noted:
                        self.tape.fixed.append((view, view.clone()))
        return True

    def _views(self, x: Tensor) -> list[Tensor]:
        """What was seen of the memory of a constant, besides itself."""
        owner = self._storages[x.untyped_storage()._cdata][1]
        return [
            x.detach().as_strided(size, stride, offset)
            for of, offset, size, stride, dtype in self._places
            if of == owner and dtype == x.dtype
        ]

    def _made_of(self, owners: set[int]) -> set[int]:
        """The owners of all memory that went into these."""
        owner, found = self.tape.owner, set(owners)
        for step in reversed(self.tape.steps):
            if isinstance(step, Operation):
                given = {owner[r.value] for r in _refs((step.arguments, step.keywords))}
                made = {owner[v] for v in step.made()}
                if not found.isdisjoint(made | (given & self.tape.written)):
                    found |= given
        return found

    def _from_inputs(self) -> set[int]:
        """The owners of memory that depends on the inputs."""
        owner, found = self.tape.owner, set(range(self.tape.inputs))
        for step in self.tape.steps:
            if isinstance(step, Operation):
                given = {owner[r.value] for r in _refs((step.arguments, step.keywords))}
                if not found.isdisjoint(given) or step.function.namespace not in OWN:
                    found |= {owner[v] for v in step.made()}
                    if step.function._schema.is_mutable:
                        found |= given & self.tape.written
        return found

    def number(self, x: Tensor) -> int:
        """The value that this tensor is; one from outside becomes a constant."""
        if x._is_zerotensor():
            return self._zeros(x)
        found = self._known(x)
        if found is not None:
            return found
        if not has_memory(x):
            self._refuse(f"it uses a {type(x).__name__}, which has no memory of its own")
        value = self._own(x)
        self.tape.constants[value] = x
        return value

    def _results(self, x: Any) -> Any:
        """The values of results that own their memory; None for an alias, a view or nothing."""
        if isinstance(x, tuple | list):
            return tuple([self._results(y) for y in x])
        if x is None or x._is_zerotensor() or self._known(x) is not None:
            return None
        return self._own(x)

    def _known(self, x: Tensor) -> int | None:
        """The value at this tensor's place; a view step makes it if it is known memory only."""
        if x.layout != torch.strided or x.is_nested or x.is_conj() or x.is_neg():
            self._refuse(f"it uses a tensor of layout {x.layout}, or a nested or conjugated one")
        storage = self._storages.get(x.untyped_storage()._cdata)
        if storage is None:
            return None
        _, owner, begin = storage
        place = (owner, x.storage_offset(), x.shape, x.stride(), x.dtype)
        if place not in self._places:
            if x.dtype != self.tape.geometry[owner].dtype:
                self._refuse("it reinterprets a tensor's memory in another dtype")
            offset = int(x.storage_offset()) - begin
            view = View(owner, tuple(x.shape), tuple(x.stride()), offset)
            value = self._new(owner, Geometry.of(x))
            self.tape.steps.append((value, view))
            self._places[place] = value
        return self._places[place]

    def _own(self, x: Tensor) -> int:
        value = self._new(len(self.tape.owner), Geometry.of(x))
        storage = x.untyped_storage()
        self._storages[storage._cdata] = (StorageWeakRef(storage), value, int(x.storage_offset()))
        self._places[(value, x.storage_offset(), x.shape, x.stride(), x.dtype)] = value
        return value

    def _new(self, owner: int, geometry: Geometry) -> int:
        self.tape.owner.append(owner)
        self.tape.geometry.append(geometry)
        return len(self.tape.owner) - 1

    def _refuse(self, why: str) -> NoReturn:
        self.refused = UncapturableError(why)
        raise self.refused

    def _zeros(self, x: Tensor) -> int:
        """Forward-mode differentiation's stand-ins for zero have no memory: make real zeros."""
        value = self._new(len(self.tape.owner), Geometry.of(x))
        keywords = {"dtype": x.dtype, "device": x.device}
        function = torch.ops.aten.zeros.default
        self.tape.steps.append(Operation(function, (list(x.shape),), keywords, value))
        return value

    def _note_writes(self, func: Any, args: Any, kwargs: Any) -> None:
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            given = args[i] if i < len(args) else kwargs.get(argument.name)
            for ref in _refs(given):
                owner = self.tape.owner[ref.value]
                if owner < self.tape.inputs or owner in self.tape.constants:
                    self._refuse(f"it writes to a tensor from outside ({func})")
                self.tape.written.add(owner)


def _learns(args: Any, kwargs: Any) -> bool:
    """Whether something given has a gradient."""
    given = found_in((args, kwargs), Tensor)
    return torch.is_grad_enabled() and any(x.requires_grad for x in given)


def _place(x: Tensor) -> tuple[Any, ...]:
    return x.untyped_storage()._cdata, x.storage_offset(), x.shape, x.stride()


def _refs(arguments: Any) -> list[Ref]:
    return found_in(arguments, Ref)


class _NoEscape(TorchFunctionMode):
    """Refuses what reads values without an operation, which the recorder would not see."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if through := door(func, args, kwargs or {}):
            fixed = func in AS_NUMBERS and self.recorder.fixed([functorch.unwrapped(args[0])])
            if not fixed:
                self.recorder._refuse(f"it calls {through}, which reads a value back")
        return func(*args, **(kwargs or {}))
