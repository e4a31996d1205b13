"""Modules of many kinds against the plain loop, and what the inner loop does to their state."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hand_loop import hand_loop
from problems import EXACT, meta_gradient, relative, tensor
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.gradients import Checkpointed, FirstOrder, MixedMode, Unrolled


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(3, 5, batch_first=True)
        self.out = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


class Branching(nn.Module):
    """Control flow that depends on the data, which vmap cannot run."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).sin() if x.sum() > 0 else self.b(x).tanh()


def conv(norm: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        norm,
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 2),
    )


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Linear(3, 8), layer, nn.Flatten(), nn.Linear(32, 2))


def sequence(n: int = 4) -> Callable[[int], Tensor]:
    return lambda seed: tensor(3, n, 4, 3, seed=seed)


def image(seed: int) -> Tensor:
    return tensor(3, 4, 1, 6, 6, seed=seed)


def flat(seed: int) -> Tensor:
    return tensor(3, 4, 3, seed=seed)


def mlp(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(3, 8), *copy.deepcopy(layers), nn.Linear(8, 2))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor], bool]] = {
    # name: (model, inputs, whether vmap runs it)
    "layer-norm": (mlp(nn.LayerNorm(8), nn.GELU()), flat, True),
    "rms-norm": (mlp(nn.RMSNorm(8), nn.SiLU()), flat, True),
    "group-norm": (lambda: conv(nn.GroupNorm(2, 4)), image, True),
    "instance-norm": (lambda: conv(nn.InstanceNorm2d(4, track_running_stats=True)), image, True),
    "batch-norm-2d": (lambda: conv(nn.BatchNorm2d(4)), image, True),
    "mish": (mlp(nn.Mish()), flat, True),
    "softmax": (mlp(nn.Softmax(-1)), flat, True),
    "attention": (transformer, sequence(), True),
    "lstm": (lambda: Recurrent(nn.LSTM), sequence(), False),
    "gru": (lambda: Recurrent(nn.GRU), sequence(), False),
    "branching": (Branching, flat, False),
}


def episodes(inputs: Callable[[int], Tensor]) -> fm.Episodes:
    return fm.Episodes(
        fm.Batch(inputs(1), tensor(3, 4, 2, seed=2)), fm.Batch(inputs(3), tensor(3, 4, 2, seed=4))
    )


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("method", [*EXACT, None])
@pytest.mark.parametrize("name", MODELS)
def test_every_module_equals_the_plain_loop(name: str, method: str | None) -> None:
    build, inputs, batched = MODELS[name]
    torch.manual_seed(0)
    model, data = build().double(), episodes(inputs)
    gradient = EXACT[method] if method else None
    maml = fm.MAML(model, 0.3, steps=2, loss=F.mse_loss, gradient=gradient)
    if method in {"mixed-mode", "mixed-mode-2"} and name in {"lstm", "gru"}:
        pytest.skip("torch has no forward-mode derivative of its recurrent layers' backward")
    if method in {"mixed-mode", "mixed-mode-2"} and name == "branching":
        with pytest.raises(fm.MissingDerivative, match="reads values"):
            meta_gradient(maml, data)
        return
    found = meta_gradient(maml, data)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = hand_loop(copy.deepcopy(model), F.mse_loss, data, 0.3, 2)[1]
    assert relative(found, torch.cat([g.flatten() for g in expected.values()])) < 1e-9
    plan = maml.explain(data)
    assert plan.batched == batched
    assert ("because vmap cannot" in str(plan)) == (not batched)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("mode", [True, False])
def test_batch_norm_uses_the_tasks_own_statistics(mode: bool) -> None:
    """In training and evaluation alike, and the running statistics stay as they were."""
    torch.manual_seed(0)
    model = conv(nn.BatchNorm2d(4)).double()
    with torch.no_grad():
        model[1].running_mean.fill_(3.0)
    free = copy.deepcopy(model)
    free[1] = nn.BatchNorm2d(4, track_running_stats=False).double()
    before, data = copy.deepcopy(model.state_dict()), episodes(image)
    maml = fm.MAML(model, 0.3, steps=2, loss=F.mse_loss).train(mode)
    other = fm.MAML(free, 0.3, steps=2, loss=F.mse_loss)
    assert torch.equal(meta_gradient(maml, data), meta_gradient(other, data))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    learner = maml.adapt_to(fm.Batch(data.support.inputs[0], data.support.targets[0]))
    for learner_mode in (True, False):
        output = learner.train(learner_mode)(data.query.inputs[0])
        torch.testing.assert_close(output, maml.evaluate(data).outputs[0])


def test_batch_norm_as_the_module_says() -> None:
    torch.manual_seed(0)
    model, data = conv(nn.BatchNorm2d(4)).double(), episodes(image)
    maml = fm.MAML(model, 0.3, steps=1, loss=F.mse_loss, batch_norm="module")
    maml(data)
    means = []
    for task in range(3):  # what one plain forward pass of each adapted model would leave
        alone = fm.MAML(copy.deepcopy(model), 0.3, steps=1, loss=F.mse_loss, batch_norm="module")
        alone.module[1].reset_running_stats()
        learner = alone.adapt_to(fm.Batch(data.support.inputs[task], data.support.targets[task]))
        learner(data.query.inputs[task])
        means.append(learner[1].running_mean)
    torch.testing.assert_close(model[1].running_mean, torch.stack(means).mean(0))
    assert model[1].num_batches_tracked == 1
    before = copy.deepcopy(model.state_dict())
    maml.eval()
    meta_gradient(maml, data)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    expected = hand_loop(model.eval(), F.mse_loss, data, 0.3, 1)[1]  # running statistics used
    assert (
        relative(meta_gradient(maml, data), torch.cat([g.flatten() for g in expected.values()]))
        < 1e-9
    )


def drop_model(p: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 32), nn.Dropout(p), nn.Linear(32, 2)).double()


def test_dropout_is_fresh_for_task_and_step_and_follows_the_seed_and_mode() -> None:
    seen: list[Tensor] = []

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.drop = nn.Parameter(torch.ones(1, dtype=torch.float64)), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.drop(x) * self.w
            if not torch._C._functorch.is_batchedtensor(y):
                seen.append(y.detach().clone())
            return y

    ones = torch.ones(2, 50, 40, dtype=torch.float64)
    data = fm.Episodes(fm.Batch(ones, ones), fm.Batch(ones, ones))
    maml = fm.MAML(
        Scaled(), 1e-9, steps=2, loss=F.mse_loss, tasks_chunk=1, gradient=FirstOrder(),
        executor="eager",  # the model notes its masks at every pass
    )  # fmt: skip
    maml(data)  # makes the plan
    seen.clear()
    torch.manual_seed(1)
    first = maml(data)
    masks = [x != 0 for x in seen]
    assert len(masks) == 6  # two tasks, two support passes and one query pass each
    shares = torch.stack([m.double().mean() for m in masks])
    assert (shares - 0.5).abs().max() < 0.05
    for i in range(6):
        for j in range(i):
            agreement = (masks[i] == masks[j]).double().mean()
            assert abs(agreement - 0.5) < 0.05, (i, j)
    torch.manual_seed(1)
    assert torch.equal(maml(data).losses, first.losses)
    assert not torch.equal(maml(data).losses, first.losses)
    maml.eval()
    assert torch.equal(maml(data).losses, maml(data).losses)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("layer", [nn.Dropout1d(0.5), nn.Dropout(0.3), nn.AlphaDropout(0.3)])
@pytest.mark.parametrize("gradient", [Checkpointed(), MixedMode()])
def test_random_layers_are_the_same_when_a_step_runs_again(
    layer: nn.Module, gradient: fm.gradients.GradientMethod
) -> None:
    """Else methods that run steps again would be silently wrong."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), copy.deepcopy(layer), nn.Linear(8, 2)).double()
    target = tensor(3, 4, 4, 2, seed=2)
    data = fm.Episodes(fm.Batch(sequence()(1), target), fm.Batch(sequence()(3), target))
    exact = meta_gradient(fm.MAML(model, 0.3, steps=2, loss=F.mse_loss, gradient=Unrolled()), data)
    maml = fm.MAML(model, 0.3, steps=2, loss=F.mse_loss, gradient=gradient)
    assert relative(meta_gradient(maml, data), exact) < 1e-12
    assert relative(meta_gradient(maml, data, seed=6), exact) > 1e-3


@pytest.mark.slow
def test_dropout_inside_attention() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.3, batch_first=True)
    model = nn.Sequential(nn.Linear(3, 8), layer, nn.Flatten(), nn.Linear(32, 2)).double()
    data = episodes(sequence())
    results = [
        meta_gradient(
            fm.MAML(model, 0.3, steps=2, loss=F.mse_loss, gradient=g, tasks_chunk=c), data
        )
        for g in (Unrolled(), Checkpointed(), MixedMode())
        for c in (1, 3)
    ]
    assert all(relative(r, results[0]) < 1e-12 for r in results)


def test_modules_that_write_to_their_buffers_leave_no_trace() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.linear(x) * self.calls

    model, data = Counting().double(), episodes(flat)
    maml = fm.MAML(model, 0.3, steps=2, loss=F.mse_loss)
    meta_gradient(maml, data)
    assert model.calls == 0
    assert maml.explain(data).batched


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("method", EXACT)
def test_weight_norm_whose_second_derivative_torch_has_wrong(method: str) -> None:
    class ByHand(nn.Module):
        def __init__(self, theirs: nn.Module) -> None:
            super().__init__()
            self.bias = nn.Parameter(theirs.bias.detach().clone())
            self.g, self.v = (
                nn.Parameter(p.detach().clone())
                for p in (
                    theirs.parametrizations.weight.original0,
                    theirs.parametrizations.weight.original1,
                )
            )

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.g * self.v / self.v.norm(dim=1, keepdim=True), self.bias)

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 8)), nn.Tanh(), nn.Linear(8, 2)
    ).double()
    data = episodes(flat)
    by_hand = nn.Sequential(ByHand(model[0]), nn.Tanh(), model[2])
    maml = fm.MAML(model, 0.3, steps=2, loss=F.mse_loss, gradient=EXACT[method])
    expected = hand_loop(by_hand, F.mse_loss, data, 0.3, 2)[1]
    assert maml.explain(data).batched
    found = meta_gradient(maml, data)
    assert relative(found, torch.cat([g.flatten() for g in expected.values()])) < 1e-12


def test_hardsigmoid_which_torch_cannot_differentiate_twice() -> None:
    class ByHand(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu6(x + 3) / 6

    data = episodes(flat)
    for gradient in (Unrolled(), MixedMode()):
        torch.manual_seed(0)
        model = mlp(nn.Hardsigmoid())().double()
        by_hand = nn.Sequential(model[0], ByHand(), model[2])
        found = meta_gradient(fm.MAML(model, 0.3, loss=F.mse_loss, gradient=gradient), data)
        expected = hand_loop(by_hand, F.mse_loss, data, 0.3, 1)[1]
        assert relative(found, torch.cat([g.flatten() for g in expected.values()])) < 1e-12


def test_non_contiguous_inputs_and_uneven_supports() -> None:
    model = mlp(nn.Tanh())().double()
    x = tensor(4, 3, 3, seed=1).transpose(0, 1)  # [3, 4, 3], strided
    y = tensor(3, 4, 2, seed=2)
    data = fm.Episodes(fm.Batch(x, y), fm.Batch(x[:, ::2], y[:, ::2]))
    maml = fm.MAML(model, 0.3, steps=2, loss=F.mse_loss)
    expected = hand_loop(model, F.mse_loss, data, 0.3, 2)[1]
    found = meta_gradient(maml, data)
    assert relative(found, torch.cat([g.flatten() for g in expected.values()])) < 1e-12
    assert relative(meta_gradient(maml, data[:1]), found) > 0  # one task alone runs too


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (F.huber_loss, 2),
        (F.smooth_l1_loss, 2),
        (F.soft_margin_loss, 2),
        (nn.MSELoss(reduction="sum"), 2),
        (F.binary_cross_entropy_with_logits, 2),
        (nn.CrossEntropyLoss(label_smoothing=0.1), 0),
    ],
)
@pytest.mark.parametrize("method", ["unrolled", "mixed-mode"])
def test_losses(loss: Callable[[Tensor, Tensor], Tensor], targets: int, method: str) -> None:
    model = mlp(nn.Tanh())().double()
    y = tensor(3, 4, targets, seed=2).sigmoid() if targets else torch.randint(2, (3, 4))
    data = fm.Episodes(fm.Batch(flat(1), y), fm.Batch(flat(3), y))
    maml = fm.MAML(model, 0.3, steps=2, loss=loss, gradient=EXACT[method])
    expected = hand_loop(model, loss, data, 0.3, 2)[1]
    found = meta_gradient(maml, data)
    assert relative(found, torch.cat([g.flatten() for g in expected.values()])) < 1e-10
