"""Checkpointed layers run again after the model has run: with nothing of a host's around them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any


def within(
    context: Callable[[], AbstractContextManager[Any]], checkpoint: Callable[..., Any]
) -> Callable[..., Any]:
    """``checkpoint(layer, *args)`` for layers that run, and run again, in such a context."""

    def kept(function: Any, *args: Any) -> Any:
        if not isinstance(function, partial):
            return checkpoint(function, *args)
        run, given, keywords = function.func, function.args, function.keywords
        module = given[0] if given else getattr(run, "__self__", None)
        return checkpoint(partial(again, module, run, given, **keywords), *args)

    def again(module: Any, run: Any, given: Any, *args: Any, **kwargs: Any) -> Any:
        with context():
            return run(*given, *args, **kwargs)

    return kept
