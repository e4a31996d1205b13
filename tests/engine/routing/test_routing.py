"""Which calls of an unmodified model reach the task-batched ops, and that all numbers are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from outcomes import EAGER, outcome, require
from problems import relative, tensor
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.engine.recording.captured import Captured
from fastmaml.engine.recording.replay_code import compiled
from fastmaml.engine.recording.tape import Operation, Tape

Function = Callable[[nn.ParameterDict, Tensor], Tensor]


@pytest.fixture(autouse=True)
def _native() -> None:
    require("cpp")


def operations(maml: fm.MAML, episodes: fm.Episodes) -> list[str]:
    """What the recording of a meta-step calls."""
    found: list[str] = []

    def prepare(tape: Tape) -> Callable[..., list[Tensor]]:
        found.extend(s.function._schema.name for s in tape.steps if isinstance(s, Operation))
        return compiled(tape)

    maml._execute = Captured(prepare, required=True)
    maml(episodes)
    return found


class Calls(nn.Module):
    """A model that calls one function with parameters of these shapes."""

    def __init__(self, function: Function, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        parameters = {n: tensor(*s, seed=i) for i, (n, s) in enumerate(sorted(shapes.items()), 31)}
        self.p = nn.ParameterDict({n: nn.Parameter(0.5 * x) for n, x in parameters.items()})
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.p, x)


def squares(output: Tensor, target: Tensor) -> Tensor:
    return (output * output).mean() + output.sin().mean()


def learner(
    function: Function, shapes: dict[str, tuple[int, ...]], input: tuple[int, ...], **options: Any
) -> tuple[fm.MAML, fm.Episodes]:
    x = [tensor(2, *input, seed=s) for s in (41, 42)]
    labels = torch.arange(input[0]).remainder(2).expand(2, -1)
    episodes = fm.Episodes(*(fm.Batch(v, labels) for v in x))
    return fm.MAML(Calls(function, shapes), 0.1, steps=2, loss=squares, **options), episodes


def check(
    function: Function, shapes: dict[str, tuple[int, ...]], input: tuple[int, ...]
) -> list[str]:
    """Equal to plain PyTorch, captured and eager, batched as that is; the operations called."""
    maml, episodes = learner(function, shapes, input, **EAGER)
    expected = outcome(maml, episodes)
    assert float(expected.gradient.abs().max()) > 1e-3
    for executor in ("eager", "captured"):
        native, _ = learner(function, shapes, input, executor=executor, backend="cpp")
        outcome(native, episodes).check_close(expected, 1e-10)
        assert native.explain(episodes).batched == maml.explain(episodes).batched
    return operations(native, episodes)


W, B = {"w": (3, 4)}, {"w": (3, 4), "b": (3,)}
C, CB = {"w": (3, 2, 3, 3)}, {"w": (3, 2, 3, 3), "b": (3,)}
N, S = {"w": (2,), "b": (2,)}, {"s": (1,)}  # of norms; a scale for functions without parameters
ROWS, IMAGES = (4, 4), (3, 2, 6, 6)


def normed(p: nn.ParameterDict, x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, p["w"], p["b"], True)


LINEAR, CONV, ACT = ("task_linear", "mm"), ("task_conv2d", "convolution"), "task_act"
NORM, LAYER = ("task_batch_norm", "native_batch_norm"), ("task_layer_norm", "native_layer_norm")
# name: (function, parameters, inputs, op, PyTorch's operation that must not be left)
COVERED: dict[str, tuple[Function, dict[str, tuple[int, ...]], tuple[int, ...], str, str]] = {
    "linear": (lambda p, x: F.linear(x, p["w"]), W, ROWS, *LINEAR),
    "linear, positional": (lambda p, x: F.linear(x, p["w"], p["b"]), B, ROWS, *LINEAR),
    "linear, keywords": (
        lambda p, x: F.linear(input=x, weight=p["w"], bias=p["b"]), B, ROWS, *LINEAR,
    ),
    "linear of three dimensions": (lambda p, x: F.linear(x, p["w"]), W, (4, 2, 4), *LINEAR),
    "linear, relu": (lambda p, x: F.relu(F.linear(x, p["w"])), W, ROWS, "task_linear", "relu"),
    "linear, torch.relu": (
        lambda p, x: torch.relu(F.linear(x, p["w"])), W, ROWS, "task_linear", "relu",
    ),
    "linear, x.relu": (lambda p, x: F.linear(x, p["w"]).relu(), W, ROWS, "task_linear", "relu"),
    "conv": (lambda p, x: F.conv2d(x, p["w"]), C, IMAGES, *CONV),
    "conv, positional": (
        lambda p, x: F.conv2d(x, p["w"], p["b"], 2, 1, 1, 1), CB, IMAGES, *CONV,
    ),
    "conv, keywords": (
        lambda p, x: F.conv2d(
            x, weight=p["w"], bias=p["b"], stride=(2, 1), padding=(1, 0), dilation=2
        ), CB, IMAGES, *CONV,
    ),
    "batch norm": (normed, N, IMAGES, *NORM),
    "batch norm, keywords": (
        lambda p, x: F.batch_norm(
            x, running_mean=None, running_var=None, weight=p["w"], training=True, eps=0.1
        ), N, IMAGES, *NORM,
    ),
    "batch norm of rows": (normed, N, (5, 2), *NORM),
    "batch norm of sequences": (normed, N, (3, 2, 5), *NORM),
    "batch norm, relu": (lambda p, x: F.relu(normed(p, x)), N, IMAGES, "task_batch_norm", "relu"),
    "batch norm, relu, pool": (
        lambda p, x: F.max_pool2d(F.relu(normed(p, x)), 2),
        N, IMAGES, "task_batch_norm", "max_pool2d_with_indices",
    ),
    "batch norm, relu, pool, keywords": (
        lambda p, x: F.max_pool2d(F.relu(normed(p, x)), kernel_size=(2, 2), stride=2),
        N, IMAGES, "task_batch_norm", "max_pool2d_with_indices",
    ),
    "layer norm": (lambda p, x: F.layer_norm(x, (6,), p["w"], p["b"]),
                   {"w": (6,), "b": (6,)}, (3, 6), *LAYER),
    "layer norm of two dimensions": (
        lambda p, x: F.layer_norm(x, normalized_shape=[6, 6], weight=p["w"], eps=0.1),
        {"w": (6, 6)}, IMAGES, *LAYER,
    ),
    "gelu": (lambda p, x: F.gelu(x * p["s"]), S, ROWS, ACT, "gelu"),
    "gelu, tanh": (lambda p, x: F.gelu(x * p["s"], approximate="tanh"), S, ROWS, ACT, "gelu"),
    "silu": (lambda p, x: F.silu(x * p["s"]), S, ROWS, ACT, "silu"),
    "silu in place": (
        lambda p, x: F.silu(x * p["s"], inplace=True), S, ROWS, ACT, "silu",
    ),
    "torch.tanh": (lambda p, x: torch.tanh(x * p["s"]), S, ROWS, ACT, "tanh"),
    "x.tanh": (lambda p, x: (x * p["s"]).tanh(), S, ROWS, ACT, "tanh"),
    "torch.sigmoid": (lambda p, x: torch.sigmoid(x * p["s"]), S, ROWS, ACT, "sigmoid"),
    "x.sigmoid": (lambda p, x: (x * p["s"]).sigmoid(), S, ROWS, ACT, "sigmoid"),
    "mse": (lambda p, x: F.mse_loss(x * p["s"], x), S, ROWS, "task_mse", "mse_loss"),
}  # fmt: skip


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("name", COVERED)
def test_covered_calls_reach_their_op(name: str) -> None:
    function, shapes, input, op, gone = COVERED[name]
    found = check(function, shapes, input)
    assert f"fastmaml::{op}" in found
    assert f"aten::{gone}" not in found


NOT_COVERED: dict[str, tuple[Function, dict[str, tuple[int, ...]], tuple[int, ...], str]] = {
    "grouped conv": (
        lambda p, x: F.conv2d(x, p["w"], groups=2), {"w": (4, 1, 3, 3)}, IMAGES, "task_conv2d",
    ),
    "conv, padding same": (
        lambda p, x: F.conv2d(x, p["w"], padding="same"), C, IMAGES, "task_conv2d",
    ),
    "conv of one image": (lambda p, x: F.conv2d(x[0], p["w"]), C, IMAGES, "task_conv2d"),
    "conv of sequences": (
        lambda p, x: F.conv1d(x, p["w"]), {"w": (3, 2, 3)}, (3, 2, 6), "task_conv2d",
    ),
    "batch norm of volumes": (normed, N, (3, 2, 2, 2, 2), "task_batch_norm"),
    "half": (lambda p, x: torch.tanh((x * p["s"]).bfloat16()).double(), S, ROWS, ACT),
    "integers": (lambda p, x: torch.sigmoid((x * 9).long()).double() * p["s"], S, ROWS, ACT),
    "mse, sum": (lambda p, x: F.mse_loss(x * p["s"], x, reduction="sum"), S, ROWS, "task_mse"),
    "mse, broadcast": (
        lambda p, x: (x * p["s"] - x[:1]).square().mean(), S, ROWS, "task_mse",
    ),
}  # fmt: skip


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("name", NOT_COVERED)
def test_other_calls_go_to_pytorch(name: str) -> None:
    function, shapes, input, op = NOT_COVERED[name]
    assert f"fastmaml::{op}" not in check(function, shapes, input)


POOLS: dict[str, Function] = {
    "ceil mode": lambda p, x: F.max_pool2d(x, 2, ceil_mode=True),
    "padding": lambda p, x: F.max_pool2d(x, 2, padding=1),
    "dilation": lambda p, x: F.max_pool2d(x, 2, dilation=2),
    "another stride": lambda p, x: F.max_pool2d(x, 2, 1),
    "another window": lambda p, x: F.max_pool2d(x, (3, 2)),
    "indices": lambda p, x: F.max_pool2d(x, 2, return_indices=True)[0],
    "mean": lambda p, x: F.avg_pool2d(x, 2),
}


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize("name", POOLS)
def test_pools_that_are_not_fused(name: str, size: int) -> None:
    found = check(lambda p, x: POOLS[name](p, F.relu(normed(p, x))), N, (3, 2, size, size))
    assert "fastmaml::task_batch_norm" in found
    assert "pool" in " ".join(found)


def changed(change: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], Tensor]:
    def apply(y: Tensor, x: Tensor) -> Tensor:
        change(y, x)
        return y

    return apply


def add_in_place(y: Tensor, x: Tensor) -> Tensor:
    y += x
    return y


BETWEEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "residual": add_in_place,
    "method": changed(lambda y, x: y.mul_(2).add_(1)),
    "row": changed(lambda y, x: y.__setitem__(0, 0.5)),
    "view": changed(lambda y, x: y[1:].neg_()),
    "relu in place": changed(lambda y, x: F.relu(y.sub_(0.1), inplace=True)),
    "dropout in place": changed(lambda y, x: F.dropout(y, 0.5, True, True)),
    "detached": changed(lambda y, x: y.detach().mul_(3)),
}


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("name", BETWEEN)
def test_what_was_written_to_is_not_made_anew(name: str) -> None:
    """``relu(y)`` is fused into what made y only if y is still that."""
    between = BETWEEN[name]

    def images(p: nn.ParameterDict, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(between(normed(p, x), x)), 2)

    def rows(p: nn.ParameterDict, x: Tensor) -> Tensor:
        return torch.relu(between(F.linear(x, p["w"]), x))

    check(images, N, IMAGES)
    check(rows, {"w": (4, 4)}, ROWS)


def test_a_block_with_relu_in_place() -> None:
    check(lambda p, x: F.max_pool2d(F.relu(normed(p, x), inplace=True), 2), N, IMAGES)


AFTER_CONV: dict[str, Function] = {  # which the kernels leave channels-last in memory
    "view": lambda p, y: y.view(y.size(0), -1),
    "view of channels": lambda p, y: y.view(3, 3, -1).mean(-1),
    "view of a sum": lambda p, y: y.sum(0).view(-1),
    "view of a list": lambda p, y: y.view([3, 48]),
    "reshape": lambda p, y: y.reshape(3, -1),
    "flatten": lambda p, y: y.flatten(1),
    "unflatten": lambda p, y: y.unflatten(1, (1, 3)).sum(2),
    "permute": lambda p, y: y.permute(0, 2, 3, 1).reshape(-1, 3).softmax(-1),
    "adaptive mean": lambda p, y: F.adaptive_avg_pool2d(y, 1).flatten(1),
    "adaptive mean of four": lambda p, y: F.adaptive_avg_pool2d(y, (2, 2)),
    "adaptive max": lambda p, y: F.adaptive_max_pool2d(y, 2),
    "mean": lambda p, y: F.avg_pool2d(y, 2),
    "max": lambda p, y: F.max_pool2d(y, 3, 1),
    "group norm": lambda p, y: F.group_norm(y, 3, eps=0.1),
    "instance norm": lambda p, y: F.instance_norm(y),
    "upsampling": lambda p, y: F.interpolate(y, scale_factor=2.0, mode="bilinear"),
    "nearest": lambda p, y: F.interpolate(y, scale_factor=2.0),
    "unfold": lambda p, y: F.unfold(y, 2),
    "padding": lambda p, y: F.pad(y, (1, 1, 1, 1), mode="reflect"),
    "channel dropout": lambda p, y: F.dropout2d(y, 0.3),
    "transposed conv": lambda p, y: F.conv_transpose2d(y, p["w"]),
    "concatenation": lambda p, y: torch.cat([y, y.relu()], 1).view(3, -1),
}


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("name", AFTER_CONV)
def test_what_follows_a_convolution(name: str) -> None:
    check(lambda p, x: AFTER_CONV[name](p, F.conv2d(x, p["w"])), C, IMAGES)


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], bool]] = {
    "usual": (F.cross_entropy, True),
    "keywords": (lambda y, t: F.cross_entropy(input=y, target=t, ignore_index=1), True),
    "module": (nn.CrossEntropyLoss(), True),
    "class weights": (lambda y, t: F.cross_entropy(y, t, torch.tensor([1.0, 3.0]).to(y)), False),
    "label smoothing": (lambda y, t: F.cross_entropy(y, t, label_smoothing=0.1), False),
    "sum": (lambda y, t: F.cross_entropy(y, t, reduction="sum"), False),
    "none": (lambda y, t: F.cross_entropy(y, t, reduction="none").mean(), False),
    "size_average": (
        lambda y, t: F.nll_loss(y.log_softmax(-1), t), False,
    ),
    "probabilities": (lambda y, t: F.cross_entropy(y, F.one_hot(t, 2).to(y)), False),
    "one example": (lambda y, t: F.cross_entropy(y[0], t[0]), False),
}  # fmt: skip


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("name", LOSSES)
def test_cross_entropies(name: str) -> None:
    loss, covered = LOSSES[name]

    def made(**options: Any) -> tuple[fm.MAML, fm.Episodes]:
        maml, episodes = learner(lambda p, x: F.linear(x, p["w"]), {"w": (2, 4)}, ROWS, **options)
        maml.loss = loss
        return maml, episodes

    expected = outcome(*made(**EAGER))
    outcome(*made(backend="cpp", executor="eager")).check_close(expected, 1e-11)
    maml, episodes = made(backend="cpp", executor="captured")
    outcome(maml, episodes).check_close(expected, 1e-11)
    assert ("fastmaml::task_cross_entropy" in operations(maml, episodes)) == covered


WRONG: dict[str, tuple[Function, dict[str, tuple[int, ...]], tuple[int, ...]]] = {
    "linear": (lambda p, x: F.linear(x, p["w"]), {"w": (3, 5)}, ROWS),
    "linear's bias": (lambda p, x: F.linear(x, p["w"], p["b"]), {"w": (3, 4), "b": (2,)}, ROWS),
    "conv's channels": (lambda p, x: F.conv2d(x, p["w"]), {"w": (3, 1, 3, 3)}, IMAGES),
    "conv's window": (lambda p, x: F.conv2d(x, p["w"]), {"w": (3, 2, 7, 7)}, IMAGES),
    "conv's bias": (lambda p, x: F.conv2d(x, p["w"], p["b"]), {**C, "b": (2,)}, IMAGES),
    "batch norm's weight": (normed, {"w": (3,), "b": (2,)}, IMAGES),
    "batch norm of one value": (normed, N, (1, 2)),
    "layer norm": (lambda p, x: F.layer_norm(x, (5,), p["w"]), {"w": (5,)}, ROWS),
    "pool": (lambda p, x: F.max_pool2d(normed(p, x), 9), N, IMAGES),
    "an argument too many": (lambda p, x: F.linear(x, p["w"], None, 3), W, ROWS),
    "an unknown keyword": (lambda p, x: F.relu(x * p["s"], slope=3), S, ROWS),
    "view": (lambda p, x: F.conv2d(x, p["w"]).view(7, -1), C, IMAGES),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_shapes_raise_pytorchs_own_errors(name: str) -> None:
    errors = []
    for options in (EAGER, {"backend": "cpp"}):
        maml, episodes = learner(*WRONG[name], **options)
        with pytest.raises((RuntimeError, ValueError, TypeError)) as error:
            maml(episodes)
        errors.append((type(error.value), str(error.value)))
    assert errors[0] == errors[1]


def images(ways: int, size: int, channels: int = 1) -> fm.Episodes:
    x = torch.randn(2, 2, ways, channels, size, size, generator=torch.Generator().manual_seed(1))
    y = torch.arange(ways).repeat(2, 1)
    return fm.Episodes(fm.Batch(x[0], y), fm.Batch(x[1], y))


def test_a_whole_convolutional_network() -> None:
    torch.manual_seed(0)
    model = fm.models.conv4(5, filters=8, pool="max")
    maml = fm.MAML(model, 0.4, steps=1, loss=F.cross_entropy, backend="cpp")
    found = operations(maml, images(5, 28))
    left = {name for name in found if name.startswith("aten::")}
    for word in ("conv", "norm", "pool", "relu", "threshold", "softmax", "nll", "mm", "clone"):
        assert not [name for name in left if word in name]
    assert len(found) <= 165  # 150 at the time of writing


def test_a_whole_perceptron() -> None:
    x = tensor(2, 2, 5, 3)
    maml = fm.MAML(fm.models.mlp(3, 1, (40, 40)).double(), 0.1, loss=F.mse_loss, backend="cpp")
    batches = (fm.Batch(v, v[..., :1]) for v in x)
    found = operations(maml, fm.Episodes(*batches))
    assert {name for name in found if name.startswith("aten::")} <= {
        "aten::add", "aten::add_", "aten::mul", "aten::mul_", "aten::sum", "aten::ones_like",
    }  # fmt: skip
    assert len(found) <= 80  # 72 at the time of writing


@pytest.mark.slow
def test_residual_networks_stay_right() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(2))
            self.bn1, self.bn2 = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
            self.relu = nn.ReLU(inplace=True)
            self.pool, self.head = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            out = self.relu(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(out))
            out += x
            out = self.pool(F.relu(out))
            return self.head(out.view(out.size(0), -1))

    def result(**options: Any) -> Tensor:
        torch.manual_seed(0)
        maml = fm.MAML(Block(), 0.1, steps=2, loss=F.cross_entropy, **options).double()
        x = images(3, 6, channels=2)
        batches = (fm.Batch(b.inputs.double(), b.targets) for b in (x.support, x.query))
        return outcome(maml, fm.Episodes(*batches)).gradient

    assert relative(result(), result(**EAGER)) < 1e-11
