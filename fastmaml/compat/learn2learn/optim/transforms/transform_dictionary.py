"""`TransformDictionary`: another transform for each part of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fastmaml.compat.learn2learn.optim.parameter_update import Transform


class TransformDictionary:
    """Makes transforms by what a parameter belongs to; None for a parameter of none of these.

    Args:
        dictionary: transforms by modules, for all their parameters, or by parameters. Later entries
            overrule earlier ones.

    Raises:
        ValueError: a key that is neither.
    """

    def __init__(self, dictionary: Mapping[Any, Transform]) -> None:
        self.param_to_transform: dict[Tensor, Transform] = {}
        for key, transform in dictionary.items():
            if not isinstance(key, nn.Module | nn.Parameter):
                raise ValueError(
                    f"a TransformDictionary has modules and parameters as keys, not a "
                    f"{type(key).__name__}."
                )
            parameters = key.parameters() if isinstance(key, nn.Module) else [key]
            self.param_to_transform.update(dict.fromkeys(parameters, transform))

    def __call__(self, param: Tensor, *args: Any, **kwargs: Any) -> nn.Module | None:
        """The transform for `param`, if there is one."""
        transform = self.param_to_transform.get(param)
        return None if transform is None else transform(param, *args, **kwargs)
