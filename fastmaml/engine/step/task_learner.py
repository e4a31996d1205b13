"""`TaskLearner`: the model of one task, as a user's own function sees it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter, itemgetter
from typing import Any, NoReturn, final

import torch
from torch import Tensor, nn

from fastmaml.engine.base import functorch
from fastmaml.engine.base.seeds import step_keys
from fastmaml.engine.model.functional_call import functional
from fastmaml.engine.step.inner_loop import InnerLoop
from fastmaml.gradients.base import Carry, Meta
from fastmaml.models.per_step import row_of_pass
from fastmaml.rules.base import Tensors

Steps = tuple[Callable[[Any], Any], ...]
"""From the model to a part of it: `attrgetter` and `itemgetter`, one after the other."""

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size)
_INTERNAL = frozenset(nn.Module().__dict__) - {"training"}
_WAYS = {
    "zero_grad": "Gradients arrive at maml.parameters(): call maml.zero_grad() outside.",
    "state_dict": "Use maml.state_dict() outside, or maml.adapt_to(support) for an adapted module.",
}


@final
class TaskLearner:
    """The model of one task, as its function sees it: call it, and `adapt` it.

    The model's sub-modules, methods, parameters and plain attributes are this object's, too, and
    compute with the parameters as they are by now: ``learner.features(x)``.

    Inside, parameters have the dimension of the tasks, of which the function knows nothing: vmap
    shows it one task, and the gradient of all tasks' losses is taken below vmap, where autograd is.

    Args:
        loop: of the tasks that run together.
        meta: what is meta-learned.
        start: where these tasks begin.
        seed: this task's, by which a vmap is known.
        first_order: whether inner gradients are constants by default.
    """

    def __init__(
        self, loop: InnerLoop, meta: Meta, start: Carry, seed: Tensor, first_order: bool
    ) -> None:
        self._loop, self._meta, self._carry = loop, meta, start
        self._seed, self._first_order = seed, first_order
        self._level = functorch.maybe_get_level(seed)
        self._calls = [0]  # a list, as clones go on counting
        self._steps = 0
        self._queries = False  # whether what it is called on is known to be no support set
        self._shown: tuple[Carry | None, Tensors] = (None, {})

    @property
    def calls(self) -> int:
        """How often the model, or a part of it, was called."""
        return self._calls[0]

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The model's output with the parameters as they are by now."""
        return self._call((), inputs, named)

    forward = __call__

    def adapt(
        self,
        loss: Tensor,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> None:
        """One inner step on a scalar loss, computed with this learner.

        Args:
            loss: of this task.
            first_order: take the inner gradient as a constant; None as the `MAML` says.
            allow_unused, allow_nograd: accepted as in learn2learn; parameters that the loss does
                not reach, and frozen ones, always stay as they are.

        Raises:
            RuntimeError: the loss is no scalar, or does not depend on the parameters.
        """
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise RuntimeError(f"adapt(loss) needs a scalar loss of one task; this one has {got}.")
        every = self._below(loss)
        names = list(self._carry.parameters)
        if not every.requires_grad:
            raise RuntimeError(
                "the loss given to adapt() does not depend on the learner's parameters: compute it "
                "from learner(inputs), and detach nothing on the way."
            )
        second = not (self._first_order if first_order is None else first_order)
        found = torch.autograd.grad(
            every.sum(),
            [self._carry.parameters[n] for n in names],
            create_graph=second,
            retain_graph=True,
            materialize_grads=True,
        )
        gradient = dict(zip(names, found, strict=True))
        self._carry = self._loop.update(self._steps, self._carry, gradient, self._meta)
        self._steps += 1

    def clone(
        self,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> TaskLearner:
        """A learner that goes on from here, whose steps leave this one where it is.

        Args:
            first_order: of the clone; None for this learner's own.
            allow_unused, allow_nograd: as for `adapt`.
        """
        learner = copy.copy(self)
        if first_order is not None:
            learner._first_order = first_order
        return learner

    def train(self, mode: bool = True) -> TaskLearner:
        """This learner, whose model is in that mode already.

        Raises:
            RuntimeError: it is not; the mode is chosen outside, for all tasks.
        """
        if any(m.training != mode for m in self._loop.forward.model.modules()):
            raise RuntimeError(
                f"learner.{'train' if mode else 'eval'}() would change the mode of the model or of "
                "some of its layers, which is the same for all tasks and steps of a per-task "
                f"function: call maml.{'train' if mode else 'eval'}() before it, and leave it out "
                "here."
            )
        return self

    def eval(self) -> TaskLearner:
        """Switch to evaluation mode, as ``train(False)`` does."""
        return self.train(False)

    def parameters(self) -> Iterator[Tensor]:
        """This task's adapted parameters, as they are by now."""
        return iter(self._adapted().values())

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The same with their names in the model."""
        return iter(self._adapted().items())

    @property
    def module(self) -> ModulePart:
        """The model of this task, as learn2learn's learners have it."""
        return ModulePart(self, ())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_loop" not in self.__dict__:
            raise AttributeError(name)
        return self._part((), name)

    # ------------------------------------------------------------------ what the above stand on

    def _call(self, steps: Steps, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """The output of a part of the model."""
        forward = self._loop.forward
        key = step_keys(self._seed, self.calls, query=False)
        self._calls[0] += 1
        same = {**forward.constants({}), **self._meta.shared}
        tensors, model = {**same, **self._adapted()}, forward.model
        if steps:
            tensors = {f"whole.{name}": x for name, x in tensors.items()}
            model = _Within(model, steps)
        kept = self._loop.kept(self._meta.shared, (steps, inputs, named))
        row = row_of_pass(self._steps, self._queries)
        with forward.surroundings(key, {}, {}, kept, (same, inputs, named), row):
            return functional(model, tensors, inputs, named)

    def _part(self, steps: Steps, name: str) -> Any:
        """An attribute of a part of the model."""
        module = _at(self._loop.forward.model, steps)
        if isinstance(module, nn.Module):
            own = {**module._parameters, **module._buffers}.get(name)
            if own is not None:
                return self._current(own)
        if name in _INTERNAL or (hasattr(nn.Module, name) and name != "forward"):
            _refuse(name, f"has no {name!r}")
        try:
            value = getattr(module, name)
        except AttributeError:
            _refuse(name, f"has no {name!r}, nor has its {type(module).__name__}")
        if callable(value):
            return ModulePart(self, (*steps, attrgetter(name)))
        if not isinstance(value, _PLAIN):
            _refuse(
                name,
                f"does not hand out {name!r}, a {type(value).__name__}, as what it holds would not "
                "be this task's",
            )
        return value

    def _current(self, tensor: Tensor) -> Tensor:
        """What stands for a parameter or buffer of the model by now."""
        model = self._loop.forward.model
        names = (n for n, x in (*model.named_parameters(), *model.named_buffers()) if x is tensor)
        return self._tensors()[next(names)]

    def _tensors(self) -> Tensors:
        """All that the model computes with."""
        return {**self._loop.forward.constants({}), **self._meta.shared, **self._adapted()}

    def _adapted(self) -> Tensors:
        """The very same tensors until the next step: a task may differentiate by them."""
        if self._shown[0] is not self._carry:
            with torch.enable_grad():  # they outlive a no_grad() of the task's
                shown = {n: self._above(p) for n, p in self._carry.parameters.items()}
            self._shown = self._carry, shown
        return self._shown[1]

    def _above(self, x: Tensor) -> Tensor:
        """One task's share of ``[tasks, ...]``."""
        if self._level < 0:
            return x.squeeze(0)
        return functorch.add_batch_dim(x, 0, self._level)

    def _below(self, x: Tensor) -> Tensor:
        """What stands for all tasks."""
        if self._level < 0 or functorch.maybe_get_level(x) != self._level:
            return x
        return functorch.get_unwrapped(x)


@final
class ModulePart:
    """A sub-module or method of a task's model: call it, or look further into it.

    Args:
        learner: the task's.
        steps: from the model to the part.
    """

    def __init__(self, learner: TaskLearner, steps: Steps) -> None:
        self._learner, self._steps = learner, steps

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Its output with the parameters as they are by now."""
        return self._learner._call(self._steps, inputs, named)

    def parameters(self) -> Iterator[Tensor]:
        """All of this part's parameters, as they are by now."""
        return (p for _, p in self.named_parameters())

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The same with their names in this part."""
        named = self._at().named_parameters()
        return ((n, self._learner._current(p)) for n, p in named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_learner" not in self.__dict__:
            raise AttributeError(name)
        return self._learner._part(self._steps, name)

    def __getitem__(self, key: Any) -> ModulePart:
        self._at()[key]  # an IndexError ends a loop over the layers
        return ModulePart(self._learner, (*self._steps, itemgetter(key)))

    def __len__(self) -> int:
        return len(self._at())

    def __bool__(self) -> bool:
        return True

    def _at(self) -> Any:
        return _at(self._learner._loop.forward.model, self._steps)


class _Within(nn.Module):
    """Calls a part of a model whose tensors are exchanged as a whole."""

    def __init__(self, whole: nn.Module, steps: Steps) -> None:
        super().__init__()
        self.whole, self.steps = whole, steps

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return _at(self.whole, self.steps)(*inputs, **named)


def _at(model: nn.Module, steps: Steps) -> Any:
    found: Any = model
    for step in steps:
        found = step(found)
    return found


def _refuse(name: str, what: str) -> NoReturn:
    way = _WAYS.get(name, "What changes or copies the model is for outside of the function.")
    raise AttributeError(
        f"the learner of a per-task function {what}. It has the model's sub-modules, methods, "
        "parameters and plain attributes, and adapt(), clone(), module, parameters(), "
        f"named_parameters(), train() and eval(). {way}"
    )
