"""Augmentations: each example of a meta-batch changed by random numbers of its own."""

from __future__ import annotations

import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from fastmaml.episodes.batch import Tree
from fastmaml.episodes.colour import jittered
from fastmaml.episodes.shifts import flipped, shifted, turned

Augment = str | Callable[[Any], Any]
"""Names divided by commas, or a function of one example."""

NAMES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "flip": flipped,
    "crop": shifted,
    "jitter": jittered,
    "rotate": turned,
}
"""Of images uint8 ``[images, channels, height, width]``, all at once."""


class Augmentation(ABC):
    """From examples to changed ones; random numbers come from a generator that is given."""

    @abstractmethod
    def __call__(self, inputs: Tree, generator: torch.Generator) -> Tree:
        """The examples ``[tasks, examples, ...]``, each changed by draws of its own."""


@final
@dataclass(frozen=True)
class Named(Augmentation):
    """Some of `NAMES`, one after the other, on the images' own device."""

    names: tuple[str, ...]

    def __call__(self, inputs: Tree, generator: torch.Generator) -> Tensor:
        """Images uint8 ``[tasks, examples, channels, height, width]``."""
        if not isinstance(inputs, Tensor) or inputs.dtype != torch.uint8 or inputs.ndim != 5:
            said = f"{inputs.dtype} {list(inputs.shape)}" if isinstance(inputs, Tensor) else inputs
            raise ValueError(
                f"augment={','.join(self.names)!r} is for images, uint8 [examples, channels, "
                f"height, width]; the examples are {said}. Give a function of one example."
            )
        images = inputs.flatten(0, 1)
        for name in self.names:
            images = NAMES[name](images, generator)
        return images.unflatten(0, inputs.shape[:2])


@final
@dataclass(frozen=True)
class PerExample(Augmentation):
    """A function of one example, called for each; it may draw from the global generators."""

    function: Callable[[Any], Any]

    def __call__(self, inputs: Tree, generator: torch.Generator) -> Tree:
        """The function's results, stacked."""
        leaves, structure = tree_flatten(inputs)
        shape = leaves[0].shape[:2]
        flat = [x.flatten(0, 1) for x in leaves]
        with _seeded(generator):
            found = [
                tree_flatten(_own(self.function(tree_unflatten([x[i] for x in flat], structure))))
                for i in range(len(flat[0]))
            ]
        columns = zip(*(values for values, _ in found), strict=True)
        stacked = [_stacked(column).unflatten(0, shape) for column in columns]
        return tree_unflatten(stacked, found[0][1])


def augmentation(augment: Augment | None) -> Augmentation | None:
    """What `augment` means; None for nothing.

    Raises:
        ValueError: an unknown name, or no function.
    """
    if augment is None or augment == "":
        return None
    if isinstance(augment, str):
        names = tuple(name.strip() for name in augment.split(","))
        unknown = [name for name in names if name not in NAMES]
        if unknown:
            raise ValueError(
                f"augment={augment!r} has {unknown[0]!r}: choose of {', '.join(NAMES)}, divided by "
                "commas, or give a function of one example."
            )
        return Named(names)
    if not callable(augment):
        raise ValueError(
            f"augment={augment!r}: give names such as 'flip,crop', or a function of one example."
        )
    return PerExample(augment)


@contextmanager
def _seeded(generator: torch.Generator) -> Iterator[None]:
    """Inside, the global generators go on from a number of `generator`; then as before.

    Those of PyTorch on the CPU and the generator's device, of Python and, where it is imported, of
    numpy: transforms draw from all of them.
    """
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    numpy: Any = sys.modules.get("numpy")
    ours = [torch.default_generator]
    if generator.device.type == "cuda":
        ours.append(torch.cuda.default_generators[generator.device.index or 0])
    states = [one.get_state() for one in ours]
    python, arrays = random.getstate(), None if numpy is None else numpy.random.get_state()
    try:
        for one in ours:
            one.manual_seed(seed)
        random.seed(seed)
        if numpy is not None:
            numpy.random.seed(seed % 2**32)
        yield
    finally:
        for one, state in zip(ours, states, strict=True):
            one.set_state(state)
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(arrays)


def _own(result: Tree) -> Tree:
    """A copy: a function may fill one buffer, and return it, each time."""
    return tree_map_only(Tensor, lambda x: x.clone(), result)


def _stacked(column: tuple[Any, ...]) -> Tensor:
    odd = next((x for x in column if not isinstance(x, Tensor)), None)
    if odd is not None:
        raise ValueError(
            f"augment gives a {type(odd).__name__}: it has to return an example as it was given "
            "one, of tensors (torchvision.transforms.v2.ToImage makes one of a picture)."
        )
    shapes = sorted({tuple(x.shape) for x in column})
    if len(shapes) > 1:
        raise ValueError(
            f"augment gives examples of the shapes {list(shapes[0])} and {list(shapes[1])}: end "
            "with what makes them alike, such as a crop or resize to one size."
        )
    return torch.stack([x.as_subclass(Tensor) for x in column])
