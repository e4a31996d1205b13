"""Looking through autograd's graphs: for what no function mode sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

from fastmaml.engine.base.errors import MissingDerivative


def nodes(tensors: Iterable[Tensor]) -> Iterator[Any]:
    """The nodes of the graphs of these, each once."""
    seen, waiting = set(), [x.grad_fn for x in tensors]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [each for each, _ in node.next_functions]
            yield node


def leaves(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What the graphs of these lead to."""
    return [node.variable for node in nodes(tensors) if hasattr(node, "variable")]


def check_differentiable_twice(
    tensors: Iterable[Tensor], losses: Callable[[], Iterable[Tensor]]
) -> None:
    """Raise `MissingDerivative` where a function is marked ``@once_differentiable``.

    ``backward()`` raises where it comes by that mark. ``autograd.grad`` with inputs does not go
    there, as nothing that is asked for lies behind, and leaves the second derivative out.

    Args:
        tensors: what an inner step made, with its graph.
        losses: called for the losses that were differentiated, to say what function it is.
    """
    if not any(type(node).__name__ == "Error" for node in nodes(tensors)):
        return
    marked = {f"{f.__name__}, " for node in nodes(losses()) if (f := _marked(node)) is not None}
    raise MissingDerivative(
        "the model's or the loss's code differentiates through a torch.autograd.Function ("
        f"{''.join(sorted(marked))}whose backward() is marked @once_differentiable): it has no "
        "second derivative, which the meta-gradient needs. Use gradient=FirstOrder(), which needs "
        "none and is approximate; or take the mark off, if backward() is made of operations that "
        "PyTorch differentiates; or leave it out of what adapts (scope=)."
    )


def _marked(node: Any) -> Any:
    """The function whose backward() has the mark, which wraps it in one of PyTorch's."""
    function = getattr(type(node), "_forward_cls", None)
    code = getattr(getattr(function, "backward", None), "__code__", None)
    return function if code and code.co_filename.endswith("torch/autograd/function.py") else None
