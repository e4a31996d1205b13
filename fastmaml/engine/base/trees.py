"""Flattening the small trees of a meta-step; `torch.utils._pytree` is general, and slow at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

Spec = Any
"""Hashable: None for a leaf, (kind, keys, specs) for a container."""


def flatten(tree: Any) -> tuple[list[Any], Spec]:
    """The leaves, None and numbers among them, and what `unflatten` needs."""
    leaves: list[Any] = []
    return leaves, _flatten(tree, leaves)


_LEAVES = (Tensor, nn.Parameter, type(None), bool, int, float, str)


def _flatten(tree: Any, leaves: list[Any]) -> Spec:
    kind = type(tree)
    if kind in _LEAVES or isinstance(tree, Tensor):
        leaves.append(tree)
        return None
    if kind is dict:
        return dict, tuple(tree), tuple([_flatten(x, leaves) for x in tree.values()])
    if kind is tuple or kind is list:
        return kind, None, tuple([_flatten(x, leaves) for x in tree])
    if isinstance(tree, tuple) and hasattr(kind, "_make"):
        return kind._make, None, tuple([_flatten(x, leaves) for x in tree])
    own, spec = tree_flatten(tree)
    leaves += own
    return _Foreign, len(own), spec


def found_in(tree: Any, kind: type | tuple[type, ...]) -> list[Any]:
    """All of a kind among the arguments or the results of an operation, in order.

    Those are lists, tuples and dicts; what else there is counts as one.
    """
    found: list[Any] = []
    _find(tree, kind, found)
    return found


def _find(tree: Any, kind: type | tuple[type, ...], found: list[Any]) -> None:
    if isinstance(tree, kind):
        found.append(tree)
    elif isinstance(tree, list | tuple):
        for x in tree:
            _find(x, kind, found)
    elif isinstance(tree, dict):
        for x in tree.values():
            _find(x, kind, found)


def exchanged(tree: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """The arguments of an operation with `function` of all that are of a kind.

    A kind of list, tuple or dict of one's own becomes a plain one, as operations take them alike.
    """
    if isinstance(tree, kind):
        return function(tree)
    if isinstance(tree, list):
        return [exchanged(x, kind, function) for x in tree]
    if isinstance(tree, tuple):
        return tuple([exchanged(x, kind, function) for x in tree])
    if isinstance(tree, dict):
        return {k: exchanged(x, kind, function) for k, x in tree.items()}
    return tree


class _Foreign:
    """Marks what PyTorch's own registry took apart."""


def unflatten(leaves: Any, spec: Spec) -> Any:
    """The tree with these leaves."""
    return _unflatten(iter(leaves), spec)


def _unflatten(leaves: Iterator[Any], spec: Spec) -> Any:
    if spec is None:
        return next(leaves)
    kind, keys, specs = spec
    if kind is _Foreign:
        return tree_unflatten([next(leaves) for _ in range(keys)], specs)
    children = [_unflatten(leaves, s) for s in specs]
    return dict(zip(keys, children, strict=True)) if kind is dict else kind(children)
