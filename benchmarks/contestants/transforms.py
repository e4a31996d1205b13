"""All tasks at once by torch.func: vmap and grad, and compiled or captured on top.

With normalisations written out: under grad(vmap(grad(...))) torch's own ones take mean and variance
for constants in a part of the second derivative (PyTorch 2.13), and the meta-gradient of conv4 is
off by a percent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from benchmarks.contestants import Built, Setup
from benchmarks.contestants.torch_problem import Problem, built, problem

Parameters = dict[str, Tensor]


def build(name: str, setup: Setup) -> Built:
    p = problem(setup)
    write_out_norms(p.model)
    step = meta_gradient(p)
    theta = {n: w.detach() for n, w in p.model.named_parameters()}
    support, query = p.episodes.support, p.episodes.query
    data = (support.inputs, support.targets, query.inputs, query.targets)
    if name == "torch.compile of vmap":
        step = torch.compile(step, fullgraph=True)
    if name == "CUDA graph of vmap":
        return built(Graphed(lambda: step(theta, *data)), setup)
    return built(lambda: step(theta, *data), setup)


class Norm(nn.Module):
    """`nn.BatchNorm2d` without running statistics, or `nn.LayerNorm` over the last dimension."""

    def __init__(self, of: nn.BatchNorm2d | nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = of.weight, of.bias, of.eps
        images = isinstance(of, nn.BatchNorm2d)
        self.over, self.shape = ((0, 2, 3), (-1, 1, 1)) if images else ((-1,), (-1,))

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, self.over, correction=0, keepdim=True)
        scale = self.weight.view(self.shape) * (var + self.eps).rsqrt()
        return (x - mean) * scale + self.bias.view(self.shape)


def write_out_norms(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d | nn.LayerNorm):
                setattr(module, name, Norm(child))


def meta_gradient(p: Problem) -> Callable[..., Parameters]:
    """Of the weights and the episodes' four tensors."""

    def loss(weights: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return p.loss(functional_call(p.model, weights, (x,)), y)

    def task(weights: Parameters, x: Tensor, y: Tensor, query: Tensor, target: Tensor) -> Tensor:
        for _ in range(p.steps):
            grads = grad(loss)(weights, x, y)
            weights = {n: w - p.lr * grads[n] for n, w in weights.items()}
        return loss(weights, query, target)

    def mean(weights: Parameters, *data: Tensor) -> Tensor:
        return vmap(task, (None, 0, 0, 0, 0))(weights, *data).mean()

    return grad(mean)


class Graphed:
    """Replays a CUDA graph of a function without arguments, captured at the first call."""

    def __init__(self, function: Callable[[], Parameters]) -> None:
        self.function = function
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: Parameters = {}

    def __call__(self) -> Parameters:
        if self.graph is None:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self.function()
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.result = self.function()
        self.graph.replay()
        return self.result
