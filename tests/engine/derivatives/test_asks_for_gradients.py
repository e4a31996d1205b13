"""Models that look at gradients or change them: right, one by one if need be, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hand_loop import hand_loop
from problems import meta_gradient, relative, tensor
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.gradients import Checkpointed, FirstOrder, MixedMode, Unrolled

LR, STEPS = 0.4, 2
EAGER: dict[str, Any] = {"executor": "eager", "backend": "reference"}


class Net(nn.Module):
    """Two layers, and what `between` does to the activation of the first."""

    def __init__(self, between: Callable[[Tensor], Tensor | None]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body, self.head = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).tanh()
        found = self.between(h)
        return self.head(h if found is None else found)


def reversal(h: Tensor) -> None:
    if h.requires_grad:
        h.register_hook(lambda g: -g)


def scaled(h: Tensor) -> None:
    if h.requires_grad:
        h.register_hook(lambda g: 0.3 * g)


def normalised(h: Tensor) -> None:
    """Of each task's own gradient, and without asking."""
    h.register_hook(lambda g: g / (1 + g.square().sum()))


def forgiving(h: Tensor) -> None:
    try:
        h.register_hook(lambda g: -g)
    except RuntimeError:
        return


def several(h: Tensor) -> None:
    if h.requires_grad:
        torch.autograd.graph.register_multi_grad_hook([h], lambda gs: None)
    h.register_hook(lambda g: -g)


def by_node(h: Tensor) -> None:
    if h.grad_fn is not None:
        h.grad_fn.register_prehook(lambda gs: tuple(-g for g in gs))


def by_leaf(h: Tensor) -> Tensor:
    return h if h.is_leaf else h.sin()


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -g


def function(h: Tensor) -> Tensor:
    return Reverse.apply(h)


def asked(h: Tensor) -> Tensor:
    """A branch that stands for many: what is computed depends on it."""
    return 2 * h if h.requires_grad else h


def kept(h: Tensor) -> None:
    h.retain_grad()


def select_scatter(h: Tensor) -> Tensor:
    return torch.select_scatter(h, h[:, 1].square(), 1, 2)


def as_strided_(h: Tensor) -> Tensor:
    return h.clone().as_strided_((5, 4), (4, 1), 0) * h.detach().exp()


def marked(h: Tensor) -> Tensor:
    """What libraries do to activations."""
    return h.requires_grad_()


def marked_constant(h: Tensor) -> Tensor:
    constant = torch.ones_like(h).requires_grad_(True)
    return h * constant


ALONE = [reversal, scaled, normalised, forgiving, several, by_node, function, kept]
ALONE += [select_scatter, as_strided_]
TOGETHER = [by_leaf, asked, marked, marked_constant]
HOOKS = {reversal, scaled, normalised, forgiving, several, by_node, function}


def loss(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean() + output.sin().mean()


def episodes() -> fm.Episodes:
    support, query = (
        fm.Batch(tensor(3, 5, 3, seed=s), tensor(3, 5, 2, seed=s + 1)) for s in (1, 3)
    )
    return fm.Episodes(support, query)


def by_hand(model: nn.Module, first_order: bool = False) -> tuple[Tensor, Tensor]:
    value, gradient = hand_loop(model, loss, episodes(), LR, STEPS, first_order)
    return value, torch.cat([g.flatten() for g in gradient.values()])


def learner(model: nn.Module, **options: Any) -> fm.MAML:
    return fm.MAML(model, LR, steps=STEPS, loss=loss, **options)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("method", [Unrolled(), Checkpointed(), FirstOrder()], ids=str)
@pytest.mark.parametrize("between", ALONE + TOGETHER)
def test_activations(between: Callable[[Tensor], Any], method: Any) -> None:
    model = Net(between)
    value, gradient = by_hand(model, isinstance(method, FirstOrder))
    plain = by_hand(Net(lambda h: None))[1]
    maml = learner(model, gradient=method, **EAGER)
    assert relative(meta_gradient(maml, episodes()), gradient) < 1e-10
    assert maml.explain(episodes()).batched is (between in TOGETHER)
    if between in HOOKS:
        assert relative(gradient, plain) > 1e-2
    out = maml(episodes())
    torch.testing.assert_close(out.loss.detach(), value, rtol=1e-12, atol=0)
    if between not in (
        asked,
        by_leaf,
    ):  # whose parameters are constants when nothing is to be learned
        torch.testing.assert_close(maml.evaluate(episodes()).loss, value, rtol=1e-12, atol=0)


@pytest.mark.sampled(at_most=9)
@pytest.mark.parametrize("between", ALONE + TOGETHER)
def test_forward_over_reverse(between: Callable[[Tensor], Any]) -> None:
    """Hooks make a gradient that is no scalar's, whose derivatives are not symmetric."""
    model = Net(between)
    maml = learner(model, gradient=MixedMode(), **EAGER)
    if between in HOOKS:
        with pytest.raises(ValueError, match="MixedMode cannot differentiate: use gradient=Unr"):
            maml(episodes())
    else:
        assert relative(meta_gradient(maml, episodes()), by_hand(model)[1]) < 1e-10


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("between", [reversal, normalised, by_node, function])
def test_recorded(between: Callable[[Tensor], Any]) -> None:
    model = Net(between)
    maml, gradient = learner(model, executor="captured"), by_hand(model)[1]
    for _ in range(3):
        assert relative(meta_gradient(maml, episodes()), gradient) < 1e-10


def test_modules_with_backward_hooks() -> None:
    for register in ("register_full_backward_hook", "register_full_backward_pre_hook"):
        model = Net(lambda h: None)
        plain = by_hand(model)[1]
        change = {
            "register_full_backward_hook": lambda m, inputs, outputs: (
                None if inputs[0] is None else 0.5 * inputs[0],
            ),
            "register_full_backward_pre_hook": lambda m, outputs: (0.5 * outputs[0],),
        }[register]
        getattr(model.head, register)(change)
        gradient = by_hand(model)[1]
        assert relative(gradient, plain) > 1e-2
        for method in (Unrolled(), Checkpointed()):
            maml = learner(model, gradient=method, **EAGER)
            assert relative(meta_gradient(maml, episodes()), gradient) < 1e-10
        with pytest.raises(ValueError, match="has a module with a backward hook, through which"):
            learner(model, gradient=MixedMode())(episodes())


def test_hooks_that_forward_hooks_register() -> None:
    model = Net(lambda h: None)
    model.body.register_forward_hook(
        lambda module, inputs, output: output.register_hook(lambda g: g.clamp(-0.05, 0.05)) and None
    )
    assert relative(meta_gradient(learner(model), episodes()), by_hand(model)[1]) < 1e-10


def test_per_task_function() -> None:
    model = Net(lambda h: None)
    maml = learner(model)

    @maml.per_task
    def run(own: Any, support: fm.Batch, query: fm.Batch) -> Tensor:
        def half(x: Tensor) -> Tensor:
            y = own(x)
            if y.requires_grad:
                y.register_hook(lambda g: 0.5 * g)
            return y

        for _ in range(STEPS):
            own.adapt(loss(half(support.inputs), support.targets))
        return loss(half(query.inputs), query.targets)

    class Half(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            y.register_hook(lambda g: 0.5 * g)
            return y

    gradient = by_hand(Half(lambda h: None))[1]
    run(episodes()).loss.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert relative(found, gradient) < 1e-10


def test_libraries_that_mark_a_frozen_layer_s_output_stay_batched() -> None:
    model = Net(lambda h: h.requires_grad_())
    model.body.requires_grad_(False)
    for method in (Unrolled(), Checkpointed(), MixedMode(), FirstOrder()):
        maml = learner(model, gradient=method, **EAGER)
        assert maml.explain(episodes()).batched
        gradient = by_hand(model, isinstance(method, FirstOrder))[1]
        assert relative(meta_gradient(maml, episodes()), gradient) < 1e-10


@pytest.mark.parametrize("method", [Unrolled(), Checkpointed(), MixedMode()], ids=str)
@pytest.mark.parametrize("where", ["loss", "model"])
def test_the_models_own_parameter_is_refused(where: str, method: Any) -> None:
    """It would be a constant, whatever the task adapts."""
    model = Net(lambda h: None)
    weight = model.head.weight
    if where == "model":
        model.between = lambda h: h * weight.square().sum()
    given = (lambda o, y: loss(o, y) + weight.square().sum()) if where == "loss" else loss
    for run in ("__call__", "evaluate"):
        maml = fm.MAML(model, LR, steps=STEPS, loss=given, gradient=method)
        with pytest.raises(ValueError, match=r"uses the parameter 'head.weight' itself"):
            getattr(maml, run)(episodes())


def test_a_constant_of_the_models_own_parameter() -> None:
    model = Net(lambda h: None)
    weight = model.head.weight
    given = lambda o, y: loss(o, y) * (1 + weight.detach().square().sum())  # noqa: E731
    maml = fm.MAML(model, LR, steps=STEPS, loss=given)
    _, gradient = hand_loop(model, given, episodes(), LR, STEPS)
    found = meta_gradient(maml, episodes())
    assert relative(found, torch.cat([g.flatten() for g in gradient.values()])) < 1e-10


def test_the_models_own_parameter_in_a_per_task_function() -> None:
    model = Net(lambda h: None)
    weight = model.head.weight
    maml = learner(model)

    @maml.per_task
    def run(own: Any, support: fm.Batch, query: fm.Batch) -> Tensor:
        own.adapt(loss(own(support.inputs), support.targets))
        return loss(own(query.inputs), query.targets) + torch.stack([weight]).square().sum()

    with pytest.raises(ValueError, match=r"uses the parameter 'head.weight' itself"):
        run(episodes())


def squares(x: Tensor, w: Tensor) -> Tensor:
    return x + w.square().sum()


@pytest.mark.sampled(at_most=1)
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("executor", ["eager", None])
def test_the_models_own_parameter_in_a_script(executor: str | None, detached: bool) -> None:
    model, script = Net(lambda h: None), torch.jit.script(squares)
    weight = model.head.weight
    given = lambda o, y: script(loss(o, y), weight.detach() if detached else weight)  # noqa: E731
    maml = fm.MAML(model, LR, steps=STEPS, loss=given, executor=executor)

    @maml.per_task
    def run(own: Any, support: fm.Batch, query: fm.Batch) -> Tensor:
        for _ in range(STEPS):
            own.adapt(given(own(support.inputs), support.targets))
        return given(own(query.inputs), query.targets)

    for way in (maml, run):
        if not detached:
            with pytest.raises(ValueError, match=r"uses the parameter 'head.weight' itself"):
                way(episodes())
            continue
        for _ in range(3):
            maml.zero_grad()
            way(episodes()).loss.backward()
        found = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert relative(found, by_hand(model)[1]) < 1e-10


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="this torch has it not")
@pytest.mark.parametrize("where", ["function", "module"])
def test_a_chunked_loss_is_refused(where: str) -> None:
    from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

    options = LinearCrossEntropyOptions(batch_chunk_size=2)

    class Classifier(Net):
        def __init__(self) -> None:
            super().__init__(lambda h: None)
            self.criterion = nn.LinearCrossEntropyLoss(4, 2, options=options).double()

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            h = self.body(x).tanh()
            if where == "module":
                return self.criterion(h, labels)
            return F.linear_cross_entropy(h, self.head.weight, labels, options=options)

    labels = torch.arange(5).remainder(2).expand(3, 5)
    batch = fm.Batch((tensor(3, 5, 3, seed=1), labels), labels)
    maml = fm.MAML(Classifier(), LR, loss=lambda o, y: o)
    with pytest.raises(ValueError, match=r"leave options out, which gives the same loss"):
        maml(fm.Episodes(batch, batch))


@pytest.mark.parametrize("scope", ["all", "head.*"])
def test_a_hook_on_a_parameter_is_refused(scope: str) -> None:
    model = Net(lambda h: None)
    model.between = lambda h: model.body.weight.register_hook(lambda g: -g) and None
    with pytest.raises(ValueError, match=r"registered on a parameter of shape \[4, 3\] inside"):
        learner(model, scope=scope)(episodes())


def test_a_parameter_that_forward_freezes_is_refused() -> None:
    model = Net(lambda h: None)
    model.between = lambda h: model.body.weight.requires_grad_(False) and None
    with pytest.raises(ValueError, match=r"freezes its parameter 'body.weight' inside forward"):
        learner(model, scope="head.*")(episodes())


def test_a_derivative_by_the_models_own_parameter_in_the_loss() -> None:
    model = Net(lambda h: None)

    def given(output: Tensor, target: Tensor) -> Tensor:
        slope = torch.autograd.grad(
            output.sum(), model.head.weight, create_graph=True, allow_unused=True
        )[0]
        return loss(output, target) + (0 if slope is None else slope.square().sum())

    maml = fm.MAML(model, LR, steps=STEPS, loss=given)
    with pytest.raises(ValueError, match=r"uses the parameter 'head.weight' itself"):
        maml(episodes())
