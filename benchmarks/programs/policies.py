"""What do policies cost that adapt, and what do they learn?

    python -m benchmarks.programs.policies [--parts costs learning] [--seeds 5]

Costs: acting, a meta-gradient and the product of TRPO with 20 tasks of 20 trajectories of 100
steps, beside loops over tasks and torch.func; all are compared in float64 first, then take turns.
Learning: `fastmaml train navigation` and `corners` with several seeds, exactly and to first order,
with the return after each inner step on tasks that were not trained on. Writes
benchmarks/results/DEVICE/policies.json after every row.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vjp, vmap

from benchmarks.support.results import about, place, quartiles, save
from fastmaml import rl
from fastmaml.rl.policies import divergence
from fastmaml.training.presets import PRESETS
from fastmaml.training.recipes import build_trainer

LOOP, FUNC, OURS = "loop over tasks", "torch.func vmap", "fastmaml"
TITLE = "2-64-64-2 tanh, 20 tasks of 20 trajectories of 100 steps, K=1"
RATE = 0.1

Tensors = dict[str, Tensor]
Call = Callable[[], Any]


class Problem:
    """Trajectories of navigation, and a policy that adapts to them."""

    def __init__(self, dtype: torch.dtype, small: bool) -> None:
        torch.manual_seed(0)
        tasks, n, horizon = (3, 4, 10) if small else (20, 20, 100)
        environment = rl.Navigation(low=0.6, high=0.9, horizon=horizon)  # none ends early
        self.learner = rl.MetaPolicy(
            rl.GaussianPolicy(2, 2, deviation=0.5).to(dtype), RATE, outer=rl.TRPO()
        )
        goals = environment.sample_tasks(tasks).to(dtype)
        before = rl.sample(environment, goals, self.learner.act, n)
        self.adapted = self.learner.adapted(before)
        after = rl.sample(environment, goals, self.adapted, n)
        self.support, self.query = self.learner.data(before), self.learner.data(after)
        self.seen = after.observations[:, 0]
        self.policy = self.learner.policy
        self.start = {n: p.detach() for n, p in self.policy.named_parameters()}
        torch.manual_seed(1)
        self.v = {n: torch.randn_like(p) for n, p in self.start.items()}

    # What a task computes, with its data in the order of NAMES.

    def act(self, parameters: Tensors, seen: Tensor) -> tuple[Tensor, Tensor]:
        normal = functional_call(self.policy, parameters, (seen,)).base_dist
        return normal.loc, normal.scale

    def log_prob(self, parameters: Tensors, data: Sequence[Tensor]) -> Tensor:
        found: Tensor = functional_call(self.policy, parameters, (data[0],)).log_prob(data[1])
        return found

    def loss(self, parameters: Tensors, data: Sequence[Tensor]) -> Tensor:
        ratio = (self.log_prob(parameters, data) - data[3]).exp()
        return -(ratio * data[2]).mean()

    def moved(self, parameters: Tensors, data: Sequence[Tensor]) -> Tensors:
        slope = grad(self.loss)(parameters, data)
        return {n: p - RATE * slope[n] for n, p in parameters.items()}

    def data(self, of: dict[str, Any]) -> list[Tensor]:
        return [of[n] for n in ("observations", "actions", "advantages", "log_probs")]


def acting(problem: Problem) -> dict[str, Call]:
    """What each task's policy does where it stands."""
    parameters, seen = problem.adapted.parameters, problem.seen

    def loop() -> tuple[Tensor, Tensor]:
        tasks = range(len(seen))
        each = [problem.act({n: p[t] for n, p in parameters.items()}, seen[t]) for t in tasks]
        mean, deviation = zip(*each, strict=True)
        return torch.stack(mean), torch.stack(deviation)

    def ours() -> tuple[Tensor, Tensor]:
        normal = problem.adapted(seen).base_dist
        return normal.loc, normal.scale

    contestants = {LOOP: loop, FUNC: lambda: vmap(problem.act)(parameters, seen), OURS: ours}
    return {name: _without_graphs(call) for name, call in contestants.items()}


def meta_gradient(problem: Problem) -> dict[str, Call]:
    """Of the outer loss."""
    support, query = problem.data(problem.support), problem.data(problem.query)
    parameters = dict(problem.policy.named_parameters())

    def loop() -> Any:
        losses = []
        for task in range(len(support[0])):
            one = [x[task] for x in support]
            inner = problem.loss(parameters, one)
            slopes = torch.autograd.grad(inner, list(parameters.values()), create_graph=True)
            pairs = zip(parameters.items(), slopes, strict=True)
            adapted = {n: p - RATE * g for (n, p), g in pairs}
            losses.append(problem.loss(adapted, [x[task] for x in query]))
        return torch.autograd.grad(torch.stack(losses).mean(), list(parameters.values()))

    def func() -> Any:
        def task(start: Tensors, one: Any, other: Any) -> Tensor:
            return problem.loss(problem.moved(start, one), other)

        def total(start: Tensors) -> Tensor:
            return vmap(task, (None, 0, 0))(start, support, query).mean()

        return tuple(grad(total)(problem.start).values())

    def ours() -> Any:
        out = problem.learner.meta_step([problem.support], problem.query)
        return torch.autograd.grad(out.loss, list(parameters.values()))

    return {LOOP: loop, FUNC: func, OURS: ours}


def trpo_product(problem: Problem) -> dict[str, Call]:
    """Of the divergence's Hessian through the inner loop with a vector."""
    support, query = problem.data(problem.support), problem.data(problem.query)
    parameters, v = dict(problem.policy.named_parameters()), problem.v
    tasks, rows = len(support[0]), problem.query["mask"][0].numel()

    def graph() -> list[Tensor]:
        total: Any = 0.0
        for task in range(tasks):
            inner = problem.loss(parameters, [x[task] for x in support])
            slopes = torch.autograd.grad(inner, list(parameters.values()), create_graph=True)
            pairs = zip(parameters.items(), slopes, strict=True)
            adapted = {n: p - RATE * g for (n, p), g in pairs}
            now = functional_call(problem.policy, adapted, (query[0][task],))
            fixed = torch.distributions.Independent(
                torch.distributions.Normal(
                    now.base_dist.loc.detach(), now.base_dist.scale.detach(), validate_args=False
                ),
                1,
                validate_args=False,
            )
            total = total + divergence(fixed, now).mean() / tasks
        return list(torch.autograd.grad(total, list(parameters.values()), create_graph=True))

    kept = graph()

    def loop() -> Any:
        along = sum((g * x).sum() for g, x in zip(kept, v.values(), strict=True))
        return torch.autograd.grad(along, list(parameters.values()), retain_graph=True)

    def outputs(start: Tensors) -> Any:
        def task(one: Any, seen: Tensor) -> Any:
            return problem.act(problem.moved(start, one), seen)

        return vmap(task)(support, query[0])

    def func() -> Any:
        (_, deviation), (along, wider) = jvp(outputs, (problem.start,), (v,))
        count = tasks * rows
        up = along / deviation**2 / count, 2 * wider / deviation**2 / count
        return tuple(vjp(outputs, problem.start)[1](up)[0].values())

    product = problem.learner.fisher([problem.support], problem.query)
    return {LOOP: loop, FUNC: func, OURS: lambda: product(list(v.values()))}


ROWS: dict[str, tuple[str, Callable[[Problem], dict[str, Call]]]] = {
    "acting": ("acting, 20 in each of 20 tasks, a step", acting),
    "meta-gradient": ("meta-gradient", meta_gradient),
    "trpo": ("product of TRPO", trpo_product),
}


def _without_graphs(call: Call) -> Call:
    def run() -> Any:
        with torch.no_grad():
            return call()

    return run


def error(make: Callable[[Problem], dict[str, Call]]) -> float:
    """The largest difference from the loop, in float64, relative to the largest number."""
    calls = make(Problem(torch.float64, small=True))
    expected = calls[LOOP]()
    return max(
        float((a - b).abs().max() / b.abs().max())
        for name in (FUNC, OURS)
        for _ in range(2)
        for a, b in zip(calls[name](), expected, strict=True)
    )


def costs(rounds: int, small: bool) -> list[dict[str, Any]]:
    """Seconds of each contestant, in turns."""
    found = []
    for key, (title, make) in ROWS.items():
        wrong = error(make)
        if not wrong < 1e-9:
            raise SystemExit(f"{title}: {wrong:.1e} off the loop.")
        calls = make(Problem(torch.float32, small))
        turns: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds + 4):  # the first ones look at the model, and hold it to what it was
            for name, call in calls.items():
                begin = time.perf_counter()
                call()
                turns[name].append(time.perf_counter() - begin)
        contestants = {
            name: {"median_s": statistics.median(s[4:]), "quartiles_s": quartiles(s[4:], 9)}
            for name, s in turns.items()
        }
        found.append({"row": key, "title": title, "error": wrong, "contestants": contestants})
        print(title, f"{wrong:.0e}", contestants, flush=True)
    return found


def learned(environment: str, gradient: str, seed: int, **changes: Any) -> dict[str, Any]:
    """One run as of the command line."""
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(
            PRESETS[environment],
            gradient=gradient,
            seed=seed,
            out=folder,
            plots=False,
            evaluate_every=0,
            checkpoint_every=0,
            **changes,
        )
        trainer = build_trainer(config)
        trainer.screen = False
        begin = time.perf_counter()
        while trainer.iteration < config.iterations:
            trainer.step()
        seconds = time.perf_counter() - begin
        test = trainer._tested(lambda done: None)
        assert test is not None
    return {"seed": seed, "seconds": seconds, "iterations": config.iterations, **test.as_dict()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="+", choices=("costs", "learning"))
    parser.add_argument("--environments", nargs="+", default=["navigation", "corners"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="little of everything")
    parser.add_argument("--json", type=Path, help="where the results go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = place(options.json, "cpu", "policies", options.quick)
    parts = options.parts or ["costs", "learning"]
    result: dict[str, Any] = {**about("cpu"), "quick": options.quick, "title": TITLE}
    if "costs" in parts:
        result["costs"] = costs(3 if options.quick else options.rounds, options.quick)
        save(path, result)
    if "learning" not in parts:
        return
    result["learning"], few = [], {}
    if options.quick:
        few = {"iterations": 2, "tasks": 2, "horizon": 5, "test_episodes": 2}
    for environment in options.environments:
        for gradient in ("auto", "first-order"):
            runs: list[dict[str, Any]] = []
            row = {"environment": environment, "gradient": gradient, "runs": runs}
            result["learning"].append(row)
            for seed in range(1 if options.quick else options.seeds):
                runs.append(learned(environment, gradient, seed, **few))
                save(path, result)
                said = [f"{x:.4g}" for x in runs[-1]["per_step"]]
                print(environment, gradient, seed, said, f"{runs[-1]['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
