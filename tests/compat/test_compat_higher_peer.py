"""The same scripts under higher itself, where it can be imported (`make peers`).

In float64 throughout: torch keeps counters of steps in the default dtype, and higher computes with
them, so that in float32 it would differ from torch.optim, and from us, by its rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from optimizers import OPTIMIZERS, initial, loss_of, stepped
from problems import tensor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten

import fastmaml.compat.higher as own

INSTALL = "`make peers` makes an environment that has it"

# Of those, higher 0.2.1 has no AdamW, and knows no `maximize`.
KNOWN = [
    name
    for name, (kind, options) in OPTIMIZERS.items()
    if kind is not torch.optim.AdamW and "maximize" not in options
]


pytestmark = pytest.mark.filterwarnings("ignore:Differentiable R")  # what higher says of its own


@pytest.fixture
def peer() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        higher = pytest.importorskip("higher", reason=INSTALL, exc_type=ImportError)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield higher
    torch.set_default_dtype(before)


def network() -> nn.Module:
    torch.manual_seed(0)
    # A bias before BatchNorm has no gradient but rounding, of which Adam makes whole steps.
    layers = (
        nn.Linear(3, 6, bias=False),
        nn.BatchNorm1d(6),
        nn.Tanh(),
        nn.Dropout(0.3),
        nn.Linear(6, 2),
    )
    return nn.Sequential(*layers).double()


def same(found: Any, expected: Any) -> None:
    """To 1e-10, and None where the other has None."""
    ours, theirs = (tree_flatten(x) for x in (found, expected))
    assert ours[1] == theirs[1]
    for mine, its in zip(ours[0], theirs[0], strict=True):
        assert (mine is None) == (its is None)
        if its is not None:
            torch.testing.assert_close(
                mine, its, rtol=1e-10, atol=1e-12, check_dtype=torch.is_tensor(its)
            )


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("before", [0, 3], ids=["new", "half-trained"])
def test_unrolled_parameters_and_their_derivatives(peer: Any, name: str, before: int) -> None:
    """Of Adam without its eps, which higher adds before the bias is corrected, and torch after."""
    kind, options = OPTIMIZERS[name]
    if kind is torch.optim.Adam:
        options = {**options, "eps": 0.0}
    found = []
    for higher in (own, peer):
        params = initial()
        opt = kind(params, **options)
        stepped(opt, params, before)
        rate = torch.tensor(options["lr"], requires_grad=True)
        # Of ASGD's rate, higher takes the value alone.
        override = None if kind is torch.optim.ASGD else {"lr": [rate]}
        diffopt = higher.get_diff_optim(opt, params, override=override)
        fast = start = [p.detach().clone().requires_grad_() for p in params]
        ways = []
        for _ in range(4):
            fast = diffopt.step(loss_of(fast), params=fast)
            ways += fast
        grads = torch.autograd.grad(loss_of(fast), [*start, rate], allow_unused=True)
        found.append([None if t is None else t.detach() for t in (*ways, *grads)])
    same(*found)
    assert all(g.abs().max() > 1e-6 for g in found[0][-3:-1])


@pytest.mark.parametrize("name", ["momentum", "adam"])
@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("tracks", [True, False])
@pytest.mark.parametrize("first_order", [True, False])
def test_a_whole_inner_loop(
    peer: Any, name: str, copies: bool, tracks: bool, first_order: bool
) -> None:
    """BatchNorm, dropout, a callback, a step with an override: losses, gradients, buffers."""
    kind, options = OPTIMIZERS[name]
    callback = (lambda grads: [g.detach() for g in grads]) if first_order else None
    ends = []
    for higher in (own, peer):
        model = network()
        opt = kind(model.parameters(), **{**options, **({"eps": 0.0} if name == "adam" else {})})
        torch.manual_seed(1)
        with higher.innerloop_ctx(
            model, opt, copy_initial_weights=copies, track_higher_grads=tracks
        ) as (fmodel, diffopt):
            losses = []
            for i in range(3):
                losses.append(F.mse_loss(fmodel(tensor(5, 3, seed=i)), tensor(5, 2, seed=9)))
                override = {"lr": [0.07]} if i == 1 else None
                diffopt.step(losses[-1], grad_callback=callback, override=override)
            losses.append(F.mse_loss(fmodel(tensor(4, 3, seed=5)), tensor(4, 2, seed=8)))
            begun = list(fmodel.parameters(time=0))
            losses[-1].backward()
            ends.append(
                {
                    "losses": torch.stack(losses).detach(),
                    "fast": [p.detach() for p in fmodel.parameters()],
                    "begun": [p.grad for p in begun if p.is_leaf],
                    "grads": [p.grad for p in model.parameters()],
                    "own buffers": dict(model.named_buffers()),
                    "buffers": dict(fmodel.named_buffers()),
                }
            )
    same(*ends)


@pytest.mark.parametrize("name", KNOWN)
def test_trainable_options(peer: Any, name: str) -> None:
    """The same values under the same names, but for switches, which higher makes tensors of."""
    kind, options = OPTIMIZERS[name]
    found = []
    for higher in (own, peer):
        opt = kind(initial(), **options)
        trainable = higher.optim.get_trainable_opt_params(opt)
        names = [n for n in trainable if not isinstance(opt.param_groups[0][n], bool)]
        found.append({n: higher.utils.flatten(trainable[n]) for n in names})
        doubled = {n: [twice(x) for x in trainable[n]] for n in names}
        higher.optim.apply_trainable_opt_params(opt, doubled)
        found[-1]["applied"] = [opt.param_groups[0][n] for n in names]
    same(*found)


def twice(x: Any) -> Any:
    return tuple(2 * y for y in x) if isinstance(x, tuple) else 2 * x


def test_monkeypatched_modules(peer: Any) -> None:
    """Calls with parameters given, shared layers, recurrent ones; names of parameters."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = nn.Linear(3, 3)
            self.rnn = nn.GRU(3, 3)

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.rnn(self.second(self.first(x).sin()).unsqueeze(0))[0] * scale

    torch.manual_seed(0)
    model = Shared().double()
    patched = [higher.monkeypatch(model, copy_initial_weights=False) for higher in (own, peer)]
    names, params = zip(*patched[1].named_parameters(), strict=True)
    assert [n for n, _ in patched[0].named_parameters()] == list(names)
    given = [2 * p for p in params]
    x = tensor(4, 3)
    same(*(fmodel(x, scale=3.0, params=given) for fmodel in patched))
    same(*(fmodel(x, scale=3.0) for fmodel in patched))
    for fmodel in patched:
        fmodel.update_params(given)
    same(*(fmodel(x) for fmodel in patched))
