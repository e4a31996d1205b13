"""The public door: its result behaves in autograd as a loss should."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch
from hand_loop import hand_loop
from problems import meta_gradient, relative, tensor
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.gradients import Checkpointed, FirstOrder, MixedMode, Reptile, Unrolled


def classifier(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)


def episodes(tasks: int = 5, dtype: torch.dtype = torch.float64) -> fm.Episodes:
    labels = torch.arange(4).repeat(tasks, 2)
    return fm.Episodes(
        fm.Batch(tensor(tasks, 8, 3, seed=1).to(dtype), labels),
        fm.Batch(tensor(tasks, 8, 3, seed=2).to(dtype), labels),
    )


def make(**options: object) -> fm.MAML:
    options = {"lr": 0.5, "steps": 2, "loss": F.cross_entropy, **options}
    return fm.MAML(classifier(), **options)  # type: ignore[arg-type]


@pytest.fixture(params=[Unrolled(), MixedMode()], ids=["unrolled", "mixed-mode"])
def maml(request: pytest.FixtureRequest) -> fm.MAML:
    return make(gradient=request.param)


def grads(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.sampled(at_most=1)
def test_the_five_lines_equal_a_hand_written_loop(maml: fm.MAML) -> None:
    out = maml(episodes())
    out.loss.backward()
    loss, expected = hand_loop(maml.module, F.cross_entropy, episodes(), 0.5, 2)
    torch.testing.assert_close(out.loss.detach(), loss, rtol=1e-12, atol=0)
    for name, p in maml.module.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-14)
    assert out.losses.shape == (5,)
    assert out.outputs.shape == (5, 8, 4)
    assert 0 <= float(out.accuracy) <= 1
    assert out.accuracies.shape == (5,)


@pytest.mark.sampled(at_most=1)
def test_gradients_accumulate_and_scale(maml: fm.MAML) -> None:
    once = meta_gradient(maml, episodes())
    maml.zero_grad()
    for _ in range(2):
        maml(episodes()).loss.backward()
    assert relative(grads(maml), 2 * once) < 1e-13
    maml.zero_grad()
    (maml(episodes()).loss * 3 + 1).backward()
    assert relative(grads(maml), 3 * once) < 1e-13


@pytest.mark.sampled(at_most=1)
def test_torch_autograd_grad_and_retain_graph(maml: fm.MAML) -> None:
    expected = meta_gradient(maml, episodes())
    maml.zero_grad()
    out = maml(episodes())
    parameters = list(maml.parameters())
    first = torch.autograd.grad(out.loss, parameters, retain_graph=True)
    assert all(p.grad is None for p in parameters)
    again = torch.autograd.grad(out.loss, parameters)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    assert relative(torch.cat([g.flatten() for g in first]), expected) < 1e-13
    with pytest.raises(RuntimeError, match="second time"):
        out.loss.backward()


@pytest.mark.sampled(at_most=1)
def test_a_third_derivative_is_refused_not_wrong(maml: fm.MAML) -> None:
    parameters = list(maml.parameters())
    with pytest.raises(RuntimeError, match="without create_graph=True"):
        torch.autograd.grad(maml(episodes()).loss, parameters, create_graph=True)


@pytest.mark.sampled(at_most=1)
def test_losses_and_outputs_are_differentiable_too(maml: fm.MAML) -> None:
    """A loss of one's own over tasks and outputs gets the meta-gradient of just that loss."""
    data = episodes()
    weights = tensor(5, seed=3).abs()

    def own(losses: Tensor, outputs: Tensor) -> Tensor:
        return (losses * weights).sum() + outputs.square().mean()

    out = maml(data)
    (own(out.losses, out.outputs) + 0.5 * out.loss).backward()
    found = grads(maml)
    maml.zero_grad()
    losses, outputs = [], []
    for task in data:  # by hand, one task at a time
        theta = dict(maml.module.named_parameters())
        for _ in range(2):
            y = torch.func.functional_call(maml.module, theta, (task.support.inputs[0],))
            loss = F.cross_entropy(y, task.support.targets[0])
            g = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
            theta = {n: p - 0.5 * d for (n, p), d in zip(theta.items(), g, strict=True)}
        outputs.append(torch.func.functional_call(maml.module, theta, (task.query.inputs[0],)))
        losses.append(F.cross_entropy(outputs[-1], task.query.targets[0]))
    mine = torch.stack(losses)
    (own(mine, torch.stack(outputs)) + 0.5 * mine.mean()).backward()
    assert relative(found, grads(maml)) < 1e-12


@pytest.mark.sampled(at_most=1)
def test_parameters_changed_before_backward_are_noticed(maml: fm.MAML) -> None:
    out = maml(episodes())
    with torch.no_grad():
        next(maml.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.loss.backward()


@pytest.mark.sampled(at_most=1)
def test_no_grad_builds_no_graph_and_evaluate_changes_nothing(maml: fm.MAML) -> None:
    before = {n: x.clone() for n, x in maml.state_dict().items()}
    with torch.no_grad():
        assert not maml(episodes()).loss.requires_grad
    with torch.inference_mode():
        assert maml.evaluate(episodes()).losses.shape == (5,)
    out = maml.evaluate(episodes())
    assert not out.loss.requires_grad
    torch.testing.assert_close(out.losses, maml(episodes()).losses.detach())
    each = maml.evaluate_each_step(episodes(), steps=4)
    assert len(each) == 5
    assert torch.equal(each[2].losses, out.losses)
    torch.testing.assert_close(each[0].outputs[1], maml(episodes().query.inputs[1]))
    assert all(torch.equal(before[n], x) for n, x in maml.state_dict().items())
    assert all(p.grad is None for p in maml.parameters())


def test_adapt_to_gives_a_plain_module_like_evaluate(maml: fm.MAML) -> None:
    data = episodes()
    learner = maml.adapt_to(fm.Batch(data.support.inputs[0], data.support.targets[0]))
    assert type(learner) is type(maml.module)
    torch.testing.assert_close(learner(data.query.inputs[0]), maml.evaluate(data).outputs[0])
    own = {p.data_ptr() for p in maml.parameters()}
    assert not own & {p.data_ptr() for p in learner.parameters()}
    assert all(p.requires_grad and p.is_leaf for p in learner.parameters())
    same = maml.adapt_to(fm.Batch(data.support.inputs[0], data.support.targets[0]), steps=0)
    assert torch.equal(same(data.query.inputs[0]), maml.module(data.query.inputs[0]))


def test_grad_scaler_clipping_and_any_optimizer() -> None:
    maml, other = make(), make()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(maml.parameters(), 0.1, momentum=0.9)
    plain = torch.optim.SGD(other.parameters(), 0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(maml(episodes()).loss).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(maml.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        plain.zero_grad()
        other(episodes()).loss.backward()
        torch.testing.assert_close(nn.utils.clip_grad_norm_(other.parameters(), 0.1), norm)
        plain.step()
    for a, b in zip(maml.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("gradient", [Unrolled(), MixedMode()])
def test_autocast_is_as_near_as_plain_pytorch(gradient: fm.gradients.GradientMethod) -> None:
    """bf16 autocast: at most twice the error of the hand-written loop under the same autocast."""
    model, data = classifier(torch.float32), episodes(dtype=torch.float32)
    exact = hand_loop(classifier(), F.cross_entropy, episodes(), 0.5, 2)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        by_hand = hand_loop(model, F.cross_entropy, data, 0.5, 2)[1]
        out = fm.MAML(model, 0.5, steps=2, loss=F.cross_entropy, gradient=gradient)(data)
    out.loss.backward()
    flat = {
        k: torch.cat([v.double().flatten() for v in g.values()])
        for k, g in {"exact": exact, "hand": by_hand}.items()
    }
    error = relative(grads(model).double(), flat["exact"])
    assert 0 < error <= 2 * relative(flat["hand"], flat["exact"])


def test_first_order_is_really_first_order() -> None:
    """Equal to the hand-written first-order loop, and different from the exact gradient."""
    maml = make(first_order=True)
    assert isinstance(maml.gradient, FirstOrder)
    expected = hand_loop(maml.module, F.cross_entropy, episodes(), 0.5, 2, first_order=True)[1]
    found = meta_gradient(maml, episodes())
    assert relative(found, torch.cat([g.flatten() for g in expected.values()])) < 1e-12
    assert relative(found, meta_gradient(make(), episodes())) > 0.05
    per_call = meta_gradient(make(), episodes(), gradient=FirstOrder())
    assert torch.equal(found, per_call)


def test_reptile_is_the_mean_way_of_adaptation() -> None:
    maml, data = make(gradient=Reptile(), steps=3), episodes()
    found = meta_gradient(maml, data)
    ways = []
    for task in data:
        learner = maml.adapt_to(fm.Batch(task.support.inputs[0], task.support.targets[0]))
        pairs = zip(maml.module.parameters(), learner.parameters(), strict=True)
        ways.append(torch.cat([(a - b).detach().flatten() for a, b in pairs]))
    assert relative(found, torch.stack(ways).mean(0)) < 1e-12


@pytest.mark.slow
def test_plans_are_bounded_and_the_weights_are_read_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmaml.engine.guards.plans.MAX_PLANS", 16)
    maml = make()
    for tasks in range(1, 25):
        maml(episodes(tasks))
    assert len(maml._plans) == 16
    before = meta_gradient(maml, episodes())
    with torch.no_grad():
        for p in maml.parameters():
            p.mul_(1.5)
    assert relative(meta_gradient(maml, episodes()), before) > 0.01


def test_freezing_after_construction_is_respected() -> None:
    maml = make()
    maml.module[0].requires_grad_(False)
    maml(episodes()).loss.backward()
    assert maml.module[0].weight.grad is None
    expected = hand_loop(maml.module, F.cross_entropy, episodes(), 0.5, 2)[1]
    torch.testing.assert_close(maml.module[2].weight.grad, expected["2.weight"])


def test_gradient_is_chosen_by_memory() -> None:
    assert make().explain(episodes()).gradient == Unrolled()
    tight = make(memory_budget=1)
    plan = tight.explain(episodes())
    assert plan.gradient == Checkpointed()
    assert "may be used" in str(plan)
    assert relative(meta_gradient(tight, episodes()), meta_gradient(make(), episodes())) < 1e-12
    with pytest.raises(FrozenInstanceError):
        plan.chunk = 3  # type: ignore[misc]


def test_other_arguments_go_to_the_model() -> None:
    maml = make()
    x = tensor(2, 3)
    assert torch.equal(maml(x), maml.module(x))
    mlp = fm.models.mlp(3, 2)
    assert fm.MAML(mlp, 0.1).classifier is mlp.classifier
    with pytest.raises(AttributeError, match="no_such_attribute"):
        _ = maml.no_such_attribute


@pytest.mark.slow
def test_multi_task_weights_of_the_mean_do_not_depend_on_the_chunk() -> None:
    whole = meta_gradient(make(tasks_chunk=5), episodes())
    for chunk in (1, 2, 3, 4):
        assert relative(meta_gradient(make(tasks_chunk=chunk), episodes()), whole) < 1e-13
