"""The recorded meta-step, compiled by Inductor (`torch.compile`)."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fastmaml.engine.base.trees import exchanged
from fastmaml.engine.recording.tape import Operation, Ref, Tape


def compiled_by_inductor(tape: Tape) -> Callable[..., list[Tensor]]:
    """A function of the inputs; the first call compiles, for tens of seconds."""
    run = torch.compile(module_of(tape), fullgraph=True, dynamic=False)

    def call(*tensors: Tensor) -> list[Tensor]:
        with torch.no_grad(), warnings.catch_warnings():
            # Inductor's own modules warn of each other at import and of missing tensor cores.
            warnings.simplefilter("ignore")
            return list(run(*tensors))

    return call


def module_of(tape: Tape) -> fx.GraphModule:
    """The tape as a graph of ATen calls."""
    graph, root = fx.Graph(), torch.nn.Module()
    nodes: dict[int, Any] = {i: graph.placeholder(f"v{i}") for i in range(tape.inputs)}
    for value, x in tape.constants.items():
        root.register_buffer(f"c{value}", x)
        nodes[value] = graph.get_attr(f"c{value}")
    for step in tape.steps:
        if isinstance(step, Operation):
            arguments, keywords = exchanged(
                (step.arguments, step.keywords), Ref, lambda ref: nodes[ref.value]
            )
            made = graph.call_function(step.function, arguments, keywords)
            _name_results(graph, step.results, made, nodes)
        else:
            value, view = step
            look = torch.ops.aten.as_strided.default
            where = (list(view.size), list(view.stride), view.offset)
            nodes[value] = graph.call_function(look, (nodes[view.source], *where))
    graph.output([nodes[v] for v in tape.outputs])
    return fx.GraphModule(root, graph)


def _name_results(graph: fx.Graph, results: Any, made: fx.Node, nodes: dict[int, Any]) -> None:
    if isinstance(results, tuple):
        for i, inner in enumerate(results):
            if inner is not None:
                item = graph.call_function(operator.getitem, (made, i))
                _name_results(graph, inner, item, nodes)
    elif results is not None:
        nodes[results] = made
