"""What a model must not do inside a meta-step, noticed while it is tried out."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastmaml.engine.base import functorch
from fastmaml.engine.base.seeds import foreign_state
from fastmaml.engine.base.storages import address, parts
from fastmaml.engine.base.trees import found_in


class Audit(TorchFunctionMode):
    """Notices changed inputs and parameters, draws that nothing can draw again, and trainable
    tensors that are not the model's.

    Args:
        given: the tensors that the model runs on meanwhile.
        device: whose random generator is watched, beside the CPU's.
        own: the model's parameters, and the rule's.
        parameters: what the model computes with meanwhile in their places, by name.
    """

    def __init__(
        self,
        given: list[Tensor],
        device: torch.device,
        own: Iterable[Tensor],
        parameters: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        self.own = {id(x) for x in own}
        self.leaves: dict[int, weakref.ref[Tensor]] = {}  # trainable ones that are not its own
        self.made: dict[int, weakref.ref[Tensor]] = {}  # results, which the code may make leaves
        self.tensors = given
        self.versions = [x._version for x in self.tensors]
        self.parameters = [(n, x, x._version) for n, x in parameters.items()]
        self.names = {p: n for n, x in parameters.items() for p in map(address, parts(x))}
        self.assigned: list[str] = []  # parameters whose `data` was
        self.device = device
        self.own_generator = False
        self.states, self.foreign = self._random_states(), foreign_state()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`."""
        if kwargs and isinstance(kwargs.get("generator"), torch.Generator):
            self.own_generator = True
        if func in _DATA:
            return self._data(func, *args)
        for x in found_in((args, kwargs), Tensor) if torch.is_grad_enabled() else ():
            if id(x) not in self.own and _trainable_leaf(x):
                self._note(self.leaves, x)
        result = func(*args, **(kwargs or {}))
        for x in found_in(result, Tensor):
            if not x.requires_grad:
                self._note(self.made, x)
        return result

    def _note(self, where: dict[int, weakref.ref[Tensor]], x: Tensor) -> None:
        """Remember a tensor, unless it was made here and is a leaf since requires_grad_()."""
        known = self.made.get(id(x))
        if known is None or known() is not x:
            where[id(x)] = weakref.ref(x)

    def _data(self, func: Any, x: Tensor, *value: Any) -> Any:
        """`x.data`, whose changes do not count as changes of x."""
        name = next((n for p in parts(x) if (n := self.names.get(address(p)))), None)
        if name is not None and value:
            self.assigned.append(name)
        result = func(x, *value)
        if name is not None and not value:
            self.parameters.append((name, result, result._version))
        return result

    def unreached(self) -> str:
        """A line about a trainable tensor that would get no meta-gradient, or nothing.

        To be called when what ran is over: the engine makes leaves of its own meanwhile, which do
        not outlive it.
        """
        if any(leaf() is not None for leaf in self.leaves.values()):
            gc.collect()
        alive = [x for leaf in self.leaves.values() if (x := leaf()) is not None]
        if not alive:
            return ""
        return (
            f"a trainable tensor of shape {list(alive[0].shape)} that the model's or the loss's "
            "code uses is no parameter of this MAML's model: the meta-gradient does not reach it, "
            "and it would not be learned. Make it a part of the model (scope= says what adapts; "
            "the rest is learned all the same), or detach it, or freeze it with "
            "requires_grad_(False)."
        )

    def check_unchanged(self) -> None:
        """Raise ValueError if the model wrote to its inputs or to its parameters."""
        if [x._version for x in self.tensors] != self.versions:
            raise ValueError(
                "the model or the loss changes its inputs in place, so later steps and tasks would "
                "see other data: clone them first in forward()."
            )
        changed = [n for n, x, version in self.parameters if x._version != version]
        written = list(dict.fromkeys([*changed, *self.assigned]))
        if written:
            raise ValueError(
                f"the model changes its parameters in place in forward() ({', '.join(written[:5])})"
                ", which would change the meta-parameters whenever a task is adapted: compute with "
                "a changed copy instead (weight = self.weight.clamp(-1, 1)), or change them after "
                "every optimizer step."
            )

    def drew(self) -> bool:
        """Whether a random number was drawn that no key decides."""
        if self.own_generator or foreign_state() != self.foreign:
            return True
        pairs = zip(self.states, self._random_states(), strict=True)
        return any(not torch.equal(a, b) for a, b in pairs)

    def _random_states(self) -> list[torch.Tensor]:
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        return states


_DATA = (Tensor.data.__get__, Tensor.data.__set__)  # type: ignore[attr-defined]


def _trainable_leaf(x: Tensor) -> bool:
    return x.is_leaf and x.requires_grad and not functorch.is_functorch_wrapped_tensor(x)
