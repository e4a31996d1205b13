"""The examples of `examples/extending` run and say what they should; their pages are true."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from own_classes import EXAMPLES, ROOT, example, problem
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.gradients import Checkpointed, FirstOrder, MixedMode, Unrolled

# Of what torch loads at its first dual number.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

PAGES = sorted(ROOT.glob("docs/extending/*.md"))
OWN_PAGES = [page for page in PAGES if page.name != "index.md"]
SAID = {
    "rule": r"Momentum.*= (\S+)\nHeavyBall.*= \1\n(?s:.*)agrees: True\n.*accuracy [5-9]\d%",
    "gradient_method": r"Unrolled.*: 0\.00%(?s:.*)as FirstOrder, bit for bit: True",
    "finite_differences": r"FirstOrder.*: [1-9]\d\.\d+% .*\nCentralDifferences.*: 0\.0\d+% ",
    "head": r"Zero.* 20% without(?s:.*)LeastSquares.*: [6-9]\d% without.* [6-9]\d% after",
    "loss": r"cross_entropy.*= (\S+)\n.*0\.0: .*= \1\n(?s:.*)label 5 \(task 2, example 7\)",
    "op": r"Unrolled\(\) True\n(?s:.*)Checkpointed.* True\n(?s:.*)MixedMode.* True\n",
}


def test_every_example_is_on_a_page() -> None:
    shown = re.findall(r'^--8<-- "(.*)"$', "\n".join(p.read_text() for p in PAGES), re.MULTILINE)
    assert sorted(ROOT / path for path in shown) == EXAMPLES
    assert [path.stem for path in EXAMPLES] == sorted(SAID)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = example(path.stem)
    capsys.readouterr()
    module.main()
    printed = capsys.readouterr().out
    assert re.search(SAID[path.stem], printed), printed
    assert len(path.read_text().splitlines()) < 80


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("page", OWN_PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page: Path) -> None:
    fences = re.findall(
        r"^(<!-- not run: .* -->\n)?```python\n((?:.*\n)*?)```$", page.read_text(), re.MULTILINE
    )
    torch.manual_seed(0)
    scope: dict[str, object] = {"__name__": "page"}
    code = [code for mark, code in fences if not mark]
    assert code
    for block in code:
        exec(compile(block, page.name, "exec", dont_inherit=True), scope)


def test_the_page_of_ops_lists_every_place() -> None:
    stem, launched = "task_" + "mse", "Mse" + "Args"  # this file is none of them
    folders = ("fastmaml", "csrc", "kernels", "tests", "benchmarks")
    found = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in (".py", ".cpp", ".cu", ".cuh", ".h")
        if stem in path.name or re.search(rf"{stem}|{launched}", path.read_text())
    }
    page = (ROOT / "docs" / "extending" / "op.md").read_text()
    listed = re.findall(r"^\| `(\S+)` \|", page, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == found


class Plain(example("op").ScaledLinear):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) * self.bias


class WithoutTangents(torch.autograd.Function):
    """The example's, without a rule for forward mode."""

    own = example("op").Scale
    forward, vmap = staticmethod(own.forward), own.__dict__["vmap"]
    setup_context, backward = staticmethod(own.setup_context), staticmethod(own.backward)


class Backwards(example("op").ScaledLinear):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight).unsqueeze(0)
        found: Tensor = WithoutTangents.apply(y, self.bias.unsqueeze(0)).squeeze(0)
        return found


def gradient_with(layer: type[nn.Linear], **options: Any) -> Tensor:
    torch.manual_seed(0)
    model = nn.Sequential(layer(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    maml = fm.MAML(model, lr=0.5, steps=3, loss=F.cross_entropy, **options)
    episodes = problem("all")[1].to(torch.float64)
    for _ in range(2):
        maml.zero_grad()
        maml(episodes).loss.backward()
    return torch.cat([p.grad.flatten() for p in maml.parameters() if p.grad is not None])


@functools.cache
def plain(first_order: bool) -> Tensor:
    method = FirstOrder() if first_order else Unrolled()
    return gradient_with(Plain, gradient=method, executor="eager", backend="reference")


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("executor", ["captured", "eager"])
@pytest.mark.parametrize("method", [Unrolled(), Checkpointed(), MixedMode(), FirstOrder()], ids=str)
def test_an_op_of_ones_own_is_plain_pytorch(method: Any, executor: str) -> None:
    found = gradient_with(example("op").ScaledLinear, gradient=method, executor=executor)
    expected = plain(method == FirstOrder())
    assert float((found - expected).norm() / expected.norm()) < 1e-13
    assert float((plain(True) - plain(False)).norm() / plain(False).norm()) > 1e-2


def test_the_derivatives_of_an_op_of_ones_own() -> None:
    shapes: dict[Any, tuple[tuple[int, ...], tuple[int, ...]]] = {
        example("op").Scale: ((2, 3, 4), (2, 4)),
        example("op").ScaleWgrad: ((2, 3, 4), (2, 3, 4)),
    }
    for function, sizes in shapes.items():
        given = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
        each: Callable[..., Tensor] = function.apply
        assert torch.autograd.gradcheck(each, given, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(each, given, check_fwd_over_rev=True)


def test_without_a_jvp_one_method_refuses() -> None:
    found = gradient_with(Backwards, gradient=Checkpointed())
    assert float((found - plain(False)).norm() / plain(False).norm()) < 1e-13
    with pytest.raises(ValueError, match=r"without jvp.*Unrolled\(\) or Checkpointed\(\)"):
        gradient_with(Backwards, gradient=MixedMode())
