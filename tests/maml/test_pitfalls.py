"""What would otherwise go wrong without an error."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import precision
import pytest
import torch
from hand_loop import hand_loop
from problems import meta_gradient, relative, tensor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fastmaml as fm
from fastmaml.engine.model.inventory import take_inventory
from fastmaml.gradients import Checkpointed, FirstOrder, MixedMode, Unrolled
from fastmaml.maml.plan import meta_of
from fastmaml.rules import LSLR, Adam, MetaSGD, Momentum


class Function(nn.Module):
    """A linear layer, any function of its output, and another linear layer."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(3, 8), nn.Linear(8, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


def model(function: Callable[[Tensor], Any] = torch.tanh) -> nn.Module:
    torch.manual_seed(0)
    return Function(function).double()


def episodes() -> fm.Episodes:
    x, q = tensor(3, 5, 3, seed=1), tensor(3, 4, 3, seed=2)
    return fm.Episodes(fm.Batch(x, x[..., :2].sin()), fm.Batch(q, q[..., :2].cos()))


def make(net: nn.Module | None = None, **options: Any) -> fm.MAML:
    return fm.MAML(
        model() if net is None else net, **{"lr": 0.3, "steps": 2, "loss": F.mse_loss, **options}
    )


def flat(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradient.values()])


@pytest.mark.slow
def test_recurrent_layers_where_tf32_is_set_for_convolutions_alone() -> None:
    """torch.backends.cudnn.flags raises there."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x.unsqueeze(1))[0][:, -1])

    torch.manual_seed(0)
    maml = make(Net().double())
    expected = meta_gradient(maml, episodes())
    enabled = torch.backends.cudnn.enabled
    with precision.kept():
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        torch.backends.cudnn.rnn.fp32_precision = "tf32"
        assert relative(meta_gradient(make(maml.module), episodes()), expected) < 1e-12
        assert fm.verify(maml, episodes()).agrees
    assert torch.backends.cudnn.enabled == enabled


@pytest.mark.slow
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_dropout_inside_recurrent_layers_is_drawn_again(cell: type[nn.RNNBase]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = cell(3, 6, 2, batch_first=True, dropout=0.5), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x)[0][:, -1])

    torch.manual_seed(0)
    net, x, y = Net().double(), tensor(2, 4, 5, 3, seed=1), tensor(2, 4, 2, seed=2)
    data = fm.Episodes(fm.Batch(x, y), fm.Batch(x, y))
    exact = meta_gradient(make(net, gradient=Unrolled()), data)
    assert relative(meta_gradient(make(net, gradient=Checkpointed()), data), exact) < 1e-12
    assert relative(meta_gradient(make(net, gradient=Unrolled()), data, seed=6), exact) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.dropout(x, 0.5, True),
        lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
        lambda x: x + torch.randn_like(x),
        lambda x: x * torch.binomial(torch.full_like(x, 3.0), torch.full_like(x, 0.5)),
        lambda x: x * torch.distributions.Gamma(2.0, 1.0).sample(x.shape).to(x.dtype),
    ],
)
def test_random_functions_are_drawn_again(function: Callable[[Tensor], Tensor]) -> None:
    exact = meta_gradient(make(model(function), gradient=Unrolled()), episodes())
    for chunk in (1, 3):
        maml = make(model(function), gradient=Checkpointed(), tasks_chunk=chunk)
        assert relative(meta_gradient(maml, episodes()), exact) < 1e-12
    other = meta_gradient(make(model(function), gradient=Unrolled()), episodes(), seed=6)
    assert relative(other, exact) > 1e-3


def test_draws_that_cannot_be_repeated_are_refused_where_steps_run_again() -> None:
    def hidden(x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():  # as a compiled extension would
            return x * torch.empty(x.shape, dtype=x.dtype).bernoulli_(0.5)

    with pytest.raises(ValueError, match="draws random numbers in a way"):
        make(model(hidden), gradient=Checkpointed())(episodes())
    plan = make(model(hidden), memory_budget=1).explain(episodes())
    assert plan.gradient == Unrolled()
    out = make(model(hidden))(episodes())
    with pytest.raises(RuntimeError, match=r"use out\.loss"):
        out.losses.sum().backward(retain_graph=True)
    out.loss.backward()


def test_activation_checkpointing_of_a_function_changes_nothing() -> None:
    nets = (model(torch.tanh), model(lambda x: checkpoint(torch.tanh, x, use_reentrant=False)))
    found = []
    for net in nets:
        make(net)(episodes()).loss.backward()
        found.append([p.grad for p in net.parameters()])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_a_model_that_changes_its_inputs_is_refused_and_does_no_harm() -> None:
    class InPlace(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.add_(1))

    data, before = episodes(), episodes()
    with pytest.raises(ValueError, match="changes its inputs in place"):
        make(InPlace(3, 2).double())(data)
    assert torch.equal(data.support.inputs, before.support.inputs)


@dataclass
class Output:
    logits: Tensor
    cache: tuple[Tensor, None]
    count: int = 3


def test_outputs_and_inputs_may_hold_more_than_tensors() -> None:
    class Rich(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor, mask: None, flag: bool) -> Output:
            assert mask is None
            assert flag
            y = self.linear(x)
            return Output(y, (y.sum(0), None))

    torch.manual_seed(0)
    net, data = Rich().double(), episodes()
    rich = fm.Episodes(
        *(
            fm.Batch({"x": b.inputs, "mask": None, "flag": True}, b.targets)
            for b in (data.support, data.query)
        )
    )
    maml = make(net, loss=lambda output, y: F.mse_loss(output.logits, y))
    assert maml.explain(rich).batched
    out = maml(rich)
    assert out.outputs["logits"].shape == (3, 4, 2)
    assert out.outputs["cache"][0].shape == (3, 2)
    assert out.outputs["count"] == 3
    expected = hand_loop(net.linear, F.mse_loss, data, 0.3, 2)[1]
    assert relative(meta_gradient(maml, rich), flat(expected)) < 1e-12


def test_outputs_that_are_no_tree_of_tensors_are_refused() -> None:
    class Bad(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return {1, 2}

    with pytest.raises(ValueError, match="the model returned a set"):
        make(Bad(3, 2).double(), loss=lambda y, t: torch.ones(()))(episodes())


def test_a_loss_of_ones_own_sees_the_same_world_again() -> None:
    net, data = model(lambda x: F.dropout(x, 0.5)).float(), episodes().to(torch.float32)
    maml = make(net)
    gradients = []
    for use in (lambda out: out.loss, lambda out: out.losses.mean()):
        maml.zero_grad()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            out = maml(data)
        use(out).backward()  # outside autocast, as PyTorch recommends
        gradients.append(torch.cat([p.grad.flatten() for p in maml.parameters()]))
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-5)
    for disturb in (lambda: data.query.inputs.mul_(2), lambda: maml.eval()):
        out = maml(data)
        disturb()
        with pytest.raises(RuntimeError, match="needs both as they were"):
            out.losses.sum().backward()


def test_a_rate_that_would_not_learn_is_refused() -> None:
    log_rate = nn.Parameter(torch.zeros(()))
    with pytest.raises(ValueError, match=r"nn\.Parameter"):
        make(lr=log_rate.exp())
    with pytest.raises(ValueError, match=r"tensor of shape \[1, 1\]"):
        make(lr=nn.Parameter(torch.ones(1, 1)))


def test_what_is_unfrozen_or_added_later_adapts_too() -> None:
    net = model()
    net.a.requires_grad_(False)
    maml = make(net)
    net.a.requires_grad_(True)
    expected = hand_loop(net, F.mse_loss, episodes(), 0.3, 2)[1]
    assert relative(meta_gradient(maml, episodes()), flat(expected)) < 1e-12


@pytest.mark.parametrize("rule", [Momentum(0.1), Adam(0.1, eps=0.1), LSLR(0.1)])
def test_adapt_keeps_the_rules_state_whole(rule: fm.rules.Rule) -> None:
    """A parameter that is first reached at the second step, and a clone of an adapted clone."""
    maml = make(lr=None, rule=rule)
    learner, x = maml.clone(), tensor(5, 3)
    learner.adapt(learner.module.a(x).square().mean(), allow_unused=True)
    assert torch.equal(learner.module.b.weight, maml.module.b.weight)
    learner.adapt(learner(x).square().mean())
    twin = learner.clone()
    for each in (learner, twin):
        each.adapt(each(x).square().mean())
    torch.testing.assert_close(learner(x), twin(x), rtol=1e-12, atol=0)


def test_parameter_names_that_clash_with_containers() -> None:
    net = nn.Linear(3, 2).double()
    net.register_parameter("keys", nn.Parameter(torch.zeros(2, dtype=torch.float64)))
    net.register_forward_hook(lambda m, _, y: y + m.keys)
    maml = make(net, lr=None, rule=MetaSGD(0.1))
    maml(episodes()).loss.backward()
    assert all(p.grad is not None for p in maml.parameters())


def test_constant_buffers_are_not_rounded_away() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    net.register_buffer("constant", tensor(100, seed=4) / 3)
    before = net.constant.clone()
    maml = make(net, batch_norm="module")
    for _ in range(5):
        maml(episodes())
    assert torch.equal(net.constant, before)
    assert net[1].num_batches_tracked == 5


def test_head_and_body_with_a_parametrised_last_layer() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
    head, body = (
        set(meta_of(fm.MAML(net, 0.1, scope=s), take_inventory(net)).adapted)
        for s in ("head", "body")
    )
    assert {n.split(".")[0] for n in head} == {"1"}
    assert len(head) == 3
    assert {n.split(".")[0] for n in body} == {"0"}


def test_accuracy_takes_the_classes_where_cross_entropy_does() -> None:
    logits = tensor(2, 5, 3, 3)  # [tasks, examples, classes, positions]
    labels = torch.randint(3, (2, 5, 3), generator=torch.Generator().manual_seed(0))
    out = fm.MetaOutput(torch.zeros(()), torch.zeros(2), logits, labels)
    assert float(out.accuracy) == pytest.approx(float((logits.argmax(2) == labels).float().mean()))
    counts = fm.MetaOutput(torch.zeros(()), torch.zeros(2), tensor(2, 5, 1), labels[..., 0])
    assert counts.accuracy is None


@pytest.mark.slow
def test_explain_draws_nothing_and_pickles_and_copies_work() -> None:
    maml, data = make(), episodes()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    maml.explain(data)
    assert torch.equal(torch.get_rng_state(), state)
    twin = copy.deepcopy(maml)
    assert torch.equal(meta_gradient(twin, data), meta_gradient(maml, data))
    assert relative(meta_gradient(make(gradient=FirstOrder()), data), meta_gradient(maml, data)) > 0
    assert (
        relative(meta_gradient(make(gradient=MixedMode()), data), meta_gradient(maml, data)) < 1e-12
    )


def test_meta_steps_leave_no_cycles_for_the_collector() -> None:
    """Memory goes back at once, also where automatic collection is off."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(2, 5, 3)
    batch = fm.Batch(x, x[..., :2])
    # A spot check runs eagerly, where torch's own tree_flatten leaves cycles (without tensors).
    maml = fm.MAML(model, lr=0.1, steps=2, loss=F.mse_loss, spot_checks=False)
    for _ in range(3):
        maml(fm.Episodes(batch, batch)).loss.backward()
    gc.collect()
    gc.disable()
    left = []
    try:
        for _ in range(3):  # in one of them a cache may let go of what it had before
            for _ in range(5):
                maml(fm.Episodes(batch, batch)).loss.backward()
            left.append(gc.collect())
    finally:
        gc.enable()
    assert min(left) == 0, left
