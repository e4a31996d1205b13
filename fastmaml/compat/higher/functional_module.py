"""A model whose parameters are exchanged at every inner step, with all of its past."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import MethodType
from typing import Any, final

from torch import Tensor

from fastmaml.compat.higher.tree import PrivateCopy
from fastmaml.engine.routing.called_by_hand import called

_OWN = ("_copy", "_times", "_tracks", "_fast_params", "fast_params", "track_higher_grads")


@final
class FunctionalModule:
    """What `monkeypatch` and `innerloop_ctx` return: ``fmodel(*inputs, params=None)``.

    It stands in front of a private copy of the model. Everything but the names below is the copy's:
    sub-modules, buffers, hooks, methods, ``train()`` and ``eval()``, ``state_dict()``, and
    ``isinstance(fmodel, YourModel)``. So ``fmodel.fc.weight`` is the latest fast weight, and
    ``fmodel.fc(x)`` and ``fmodel.your_method(x)`` compute with it. A method that returns its own
    module, as ``train()`` does, returns this object. The model itself is never written to, its
    buffers neither.

    *Times* count the updates of the parameters: 0 are the initial ones. All are kept while
    `track_higher_grads` is True, as their graph keeps them anyway; else only the latest are.
    """

    _copy: PrivateCopy
    _times: list[list[Tensor]]
    _tracks: bool

    def __init__(self, copy: PrivateCopy) -> None:
        self._copy = copy
        self._times = []
        self._tracks = True

    @property  # type: ignore[misc]  # what is assigned to it reaches the copy
    def __class__(self) -> type:
        """The model's class; ``type(fmodel)`` tells the truth."""
        return type(self._copy.module)

    def __call__(self, *args: Any, params: Iterable[Tensor] | None = None, **kwargs: Any) -> Any:
        """Call the model with the latest fast parameters, or with `params`, which become them.

        The very same parameters as the latest are no new time.

        Raises:
            ValueError: there are none yet, or `params` are not as many as the model has.
        """
        if params is not None:
            given = list(params)
            if not self._times or list(map(id, given)) != list(map(id, self._latest())):
                self.update_params(given)
        elif not self._times:
            raise ValueError(
                "this functional model has no parameters yet: pass params= (a list in the order "
                "of model.parameters()) at the first call, or make it with higher.monkeypatch."
            )
        self._adopt()
        return called(self._copy.module, self._tracks, self._copy.module, *args, **kwargs)

    def forward(self, *args: Any, params: Iterable[Tensor] | None = None, **kwargs: Any) -> Any:
        """The module's output: the same as calling it."""
        return self(*args, params=params, **kwargs)

    def parameters(self, recurse: bool = True, time: int | None = None) -> Iterator[Tensor]:
        """The fast parameters after `time` updates; the latest by default.

        Args:
            recurse: must be True; a model's own parameters are all that there are.
            time: 0 for the initial ones, k for those after k updates, -1 for the latest.

        Raises:
            ValueError: an earlier time is asked of a model that does not track higher gradients.
            IndexError: there was no such time.
        """
        if not recurse:
            warnings.warn("parameters(recurse=False) of a functional model are all.", stacklevel=2)
        latest = self._latest()
        if time is None:
            return iter(latest)
        if not self._tracks and time not in (-1, 0):
            raise ValueError(
                f"parameters(time={time}): without track_higher_grads only the latest parameters "
                "are kept. Make the model with track_higher_grads=True to ask for earlier ones."
            )
        if not -len(self._times) <= time < len(self._times):
            raise IndexError(
                f"parameters(time={time}): there are times 0 to {len(self._times) - 1}."
            )
        return iter(self._times[time])

    @property
    def fast_params(self) -> list[Tensor] | None:
        """The latest parameters, None before the first; what is assigned here becomes them."""
        return self._latest() if self._times else None

    @fast_params.setter
    def fast_params(self, value: Iterable[Tensor]) -> None:
        self.update_params(value)

    @property
    def init_fast_params(self) -> list[Tensor]:
        """The parameters at time 0.

        Raises:
            RuntimeError: the model does not track higher gradients, so they are gone.
        """
        if not self._tracks:
            raise RuntimeError(
                "the initial parameters are not kept without track_higher_grads: make the model "
                "with track_higher_grads=True."
            )
        self._latest()
        return self._times[0]

    @property
    def init_parameters(self) -> list[Tensor]:
        """The same as `init_fast_params`."""
        return self.init_fast_params

    def update_params(self, params: Iterable[Tensor]) -> None:
        """Make these the latest parameters, one time later.

        Raises:
            ValueError: they are not as many as the model's.
            TypeError: one is no tensor.
        """
        new = list(params)
        expected = self._copy.count
        if len(new) != expected:
            raise ValueError(
                f"{len(new)} parameters were given to a functional model that has {expected}: give "
                "all, in the order of model.parameters(), tied ones once."
            )
        for i, p in enumerate(new):
            if not isinstance(p, Tensor):
                raise TypeError(f"parameter {i} is a {type(p).__name__}: give tensors.")
        if not self._tracks:
            self._times.clear()
        self._times.append(new)
        self._copy.write(new)

    @property
    def track_higher_grads(self) -> bool:
        """Whether earlier parameters are kept; may be set."""
        return self._tracks

    @track_higher_grads.setter
    def track_higher_grads(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise ValueError(f"track_higher_grads = {value!r}: give True or False.")
        self._tracks = value
        if not value:
            del self._times[:-1]

    @property
    def _fast_params(self) -> tuple[tuple[Tensor, ...], ...] | None:
        """All times; scripts that know higher's inside let go of them by ``= None``, ``= [[]]``."""
        return tuple(map(tuple, self._times)) or None

    @_fast_params.setter
    def _fast_params(self, value: Iterable[Iterable[Tensor]] | None) -> None:
        given = [list(params) for params in value or ()]
        self._times.clear()
        for params in filter(None, given):
            self.update_params(params)

    @_fast_params.deleter
    def _fast_params(self) -> None:
        self._times.clear()

    def _latest(self) -> list[Tensor]:
        if not self._times:
            raise RuntimeError(
                "this functional model has no parameters yet: call it with params=, or make it "
                "with higher.monkeypatch."
            )
        self._adopt()
        return self._times[-1]

    def _adopt(self) -> None:
        """Parameters that were assigned to a sub-module become the latest."""
        assigned = self._copy.assigned(self._times[-1])
        if assigned:
            self.update_params(assigned.get(i, p) for i, p in enumerate(self._times[-1]))

    def __getattr__(self, name: str) -> Any:
        if name in _OWN:  # not set yet: else it would be looked up in itself for ever
            raise AttributeError(name)
        value = getattr(self._copy.module, name)
        if isinstance(value, MethodType) and value.__self__ is self._copy.module:
            return partial(self._called, value)
        return value

    def _called(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``fmodel = fmodel.train()`` goes on with the functional model, not with the copy."""
        result = called(self._copy.module, self._tracks, method, *args, **kwargs)
        return self if result is self._copy.module else result

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
        elif name in self._copy.module._parameters and isinstance(value, Tensor):
            self._copy.module._parameters[name] = value  # type: ignore[assignment]
            self._adopt()
        else:
            setattr(self._copy.module, name, value)

    def __delattr__(self, name: str) -> None:
        if name in _OWN:
            object.__delattr__(self, name)
        else:
            delattr(self._copy.module, name)

    def __repr__(self) -> str:
        return f"FunctionalModule({self._copy.module!r})"

    # Python looks these up on the class, so that they need a line each.
    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self._copy.module)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._copy.module)  # type: ignore[call-overload]

    def __getitem__(self, key: Any) -> Any:
        return self._copy.module[key]  # type: ignore[index]

    def __contains__(self, item: Any) -> bool:
        return item in self._copy.module  # type: ignore[operator]
