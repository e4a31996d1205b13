"""Values that leave for the host, by every door: right, or refused, wherever it is caught."""

from __future__ import annotations

import copy
import ctypes
import functools
import io
import math
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hand_loop import hand_loop
from outcomes import as_by_hand, vectors
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import fastmaml as fm

Door = Callable[[Tensor], Any]


def numpy() -> Any:
    return pytest.importorskip("numpy")


def saved(x: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    loaded: Tensor = torch.load(file)
    return loaded.max()


def in_a_thread(x: Tensor) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: x.max() * 2).result()


def branches(x: Tensor) -> float:
    if bool(x.sum() > 0):
        return 1.0
    return 2.0


@functools.lru_cache
def as_script() -> Any:
    return torch.jit.script(branches)


DOORS: dict[str, Door] = {
    "asarray": lambda x: float(numpy().asarray(x).sum()),
    "array": lambda x: float(numpy().array(x).max()),
    "__array__": lambda x: float(x.__array__().max()),
    "ufunc": lambda x: float(numpy().sin(x).max()),
    "numpy": lambda x: float(x.numpy().max()),
    "tolist": lambda x: max(x.flatten().tolist()),
    "item": lambda x: x.sum().item(),
    "bool": lambda x: 1.0 if x.sum() > 0 else 2.0,
    "index": lambda x: [1.0, 2.0, 3.0][(10 * x.sum().abs()).long() % 3],
    "deepcopy": lambda x: copy.deepcopy(x).max(),
    "pickle": lambda x: pickle.loads(pickle.dumps(x)).max(),
    "save": saved,
    "dlpack": lambda x: torch.from_dlpack(x).max(),
    "to_dlpack": lambda x: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(x)).max(),
    "storage": lambda x: float(x.contiguous().untyped_storage().nbytes()) + x.storage()[0],
    "memory": lambda x: ctypes.c_double.from_address(x.data_ptr()).value,
    "repr": lambda x: float(repr(x.sum()).split("(")[1].split(",")[0]),
    "format": lambda x: float(f"{x.sum():.6f}"),
    "tensor of tensors": lambda x: torch.tensor([x.sum(), x.max()]).sum(),
    "math": lambda x: math.exp(x.mean()),
    "apply_": lambda x: x.clone().apply_(lambda v: 2 * v).max(),
    "in": lambda x: 1.0 if x.flatten()[0] in x[1:] else 2.0,
    "equal": lambda x: 1.0 if torch.equal(x, x.abs()) else 2.0,
    "length": lambda x: float(len((x > 0).nonzero())),
    "mask": lambda x: float(x[x > 0].shape[0]),
    "set_": lambda x: torch.empty(0, dtype=x.dtype).set_(x).max(),
    "thread": in_a_thread,
    "new_tensor": lambda x: x.new_tensor([x.sum(), x.max()]).sum(),
    "DoubleTensor": lambda x: torch.DoubleTensor([x.sum(), x.max()]).sum(),
    "list of comparisons": lambda x: torch.tensor([v > 0 for v in x.flatten()]).double().sum(),
    "list in an index": lambda x: x[[0, 1], [(x.sum() > 0).long(), 0]].sum(),
    "cond": lambda x: torch.cond(x.sum() > 0, lambda y: y.sum(), lambda y: y.max(), (x,)),
    "script": lambda x: as_script()(x),
}


def _weighted(door: Door, catches: bool) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        try:
            weight = door(output.detach())
        except Exception:
            if not catches:
                raise
            weight = 5.0
        return (1 + 0.1 * weight) * F.mse_loss(output, target)

    return loss


def _as_by_hand(model: nn.Module, loss: Any, **options: Any) -> None:
    """A few calls on other episodes each, with gradients, and in evaluation."""
    maml = fm.MAML(model, lr=0.3, steps=2, loss=loss, spot_checks=False, **options)
    for seed in range(3):
        as_by_hand(maml, vectors(seed=seed), loss)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("executor", [None, "eager"])
@pytest.mark.parametrize("catches", [False, True], ids=["", "caught"])
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.filterwarnings("ignore")  # of torch: typed storages and the like are deprecated
def test_a_door(door: str, catches: bool, executor: str | None) -> None:
    torch.manual_seed(0)
    _as_by_hand(nn.Linear(3, 2).double(), _weighted(DOORS[door], catches), executor=executor)


def test_what_vmap_refuses_only_where_nothing_watches() -> None:
    """PyTorch takes another way through this loss under a dispatch mode."""
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        labels = target.argmax(1)
        return F.cross_entropy(output, labels, weight, ignore_index=0, label_smoothing=0.1)

    for executor in ("eager", None):
        torch.manual_seed(0)
        _as_by_hand(nn.Linear(3, 3).double(), _of_three(loss), executor=executor)


def _of_three(loss: Any) -> Any:
    return lambda output, target: loss(output, F.pad(target, (0, 1)) + 0.01 * output.detach())


class Tripled(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result * 3 if func is torch.tanh else result


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("make", ["tensor", "as_tensor", "asarray", "LongTensor"])
def test_a_list_of_what_is_no_input_of_the_arithmetic(make: str) -> None:
    """Integers, which differ from task to task, and a buffer that a call finds as it is now."""
    made = getattr(torch, make)

    class Listed(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.register_buffer("count", torch.tensor(2))
            self.count: Tensor

        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            return super().forward(x) * made([n[0], n[1]]) * made([self.count, 1])

    torch.manual_seed(0)
    model = Listed().double()
    maml = fm.MAML(model, lr=0.01, steps=2, loss=F.mse_loss, spot_checks=False)
    numbers = torch.tensor([[1, 2], [3, 4], [2, 1]])
    support, query = (
        fm.Batch((b.inputs, numbers + i), b.targets)
        for i, b in enumerate((vectors().support, vectors().query))
    )
    for count in (2, 2, 5):
        model.count.fill_(count)
        as_by_hand(maml, fm.Episodes(support, query), lr=0.01)


def split(x: Tensor, sizes: Tensor) -> Tensor:
    return x.tensor_split(sizes, dim=1)[0].sum()


def split_by_name(x: Tensor, sizes: Tensor) -> Tensor:
    return x.tensor_split(dim=1, tensor_indices_or_sections=sizes)[0].sum()


def unpacked(x: Tensor, sizes: Tensor) -> Tensor:
    packed = nn.utils.rnn.PackedSequence(x[:, 0], torch.stack([sizes[0], 4 - sizes[0]]))
    padded, _ = nn.utils.rnn.pad_packed_sequence(packed)
    return padded[1].sum()


def by_capsule(x: Tensor, sizes: Tensor) -> Tensor:
    return x.sum() * torch.from_dlpack(torch.utils.dlpack.to_dlpack(sizes))[0]


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("reads", [split, split_by_name, unpacked, by_capsule])
def test_sizes_in_a_tensors_memory(reads: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Which PyTorch reads there, without an operation."""

    class Sized(nn.Linear):
        def forward(self, x: Tensor, sizes: Tensor) -> Tensor:
            return super().forward(x) * reads(x.tanh(), sizes)

    torch.manual_seed(0)
    maml = fm.MAML(Sized(3, 2).double(), lr=0.01, steps=2, loss=F.mse_loss, spot_checks=False)
    for sizes in ([[2, 3], [2, 3], [2, 3]], [[3, 3], [3, 3], [3, 3]], [[2, 2], [3, 3], [2, 3]]):
        parts = (vectors().support, vectors().query)
        batches = [fm.Batch((b.inputs, torch.tensor(sizes)), b.targets) for b in parts]
        as_by_hand(maml, fm.Episodes(*batches), lr=0.01)


@pytest.mark.parametrize("executor", [None, "eager"])
def test_a_mode_around_the_call_sees_it(executor: str | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    maml = fm.MAML(model, lr=0.3, steps=2, loss=F.mse_loss, executor=executor)
    for _ in range(2):
        maml(vectors())
    with Tripled():
        expected, _ = hand_loop(model, F.mse_loss, vectors(), 0.3, 2)
        torch.testing.assert_close(maml(vectors()).loss.detach(), expected, rtol=1e-9, atol=0)
    expected, _ = hand_loop(model, F.mse_loss, vectors(), 0.3, 2)
    torch.testing.assert_close(maml(vectors()).loss.detach(), expected, rtol=1e-9, atol=0)


def test_weights_are_as_wide_as_the_widest_parameter() -> None:
    """Whatever the first one is: 1/3 in float32 is not 1/3."""
    torch.manual_seed(0)

    class Mixed(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2, dtype=torch.float64)
            own = dict(self._parameters)
            self._parameters.clear()
            self.scale = nn.Parameter(torch.ones(1), requires_grad=False)
            self._parameters.update(own)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale

    model = Mixed()
    assert next(model.parameters()).dtype == torch.float32
    maml = fm.MAML(model, lr=0.3, loss=F.mse_loss)
    maml(vectors()).loss.backward()
    _, expected = hand_loop(model, F.mse_loss, vectors(), 0.3, 1)
    assert model.weight.grad is not None
    torch.testing.assert_close(model.weight.grad, expected["weight"], rtol=1e-12, atol=0)


@pytest.fixture
def square() -> Iterator[Any]:
    """An operation of one's own that is made of PyTorch's, which alone are differentiated."""
    library = torch.library.Library("fastmaml_tests", "DEF")
    library.define("square(Tensor x) -> Tensor")
    library.impl("square", lambda x: x * x, "CPU")
    yield torch.ops.fastmaml_tests.square
    library._destroy()


@pytest.mark.filterwarnings("ignore:fastmaml_tests..square. an autograd kernel was not registered")
@pytest.mark.parametrize("executor", [None, "eager"])
def test_an_operation_of_ones_own(square: Any, executor: str | None) -> None:
    torch.manual_seed(0)

    class Squared(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = square(super().forward(x).tanh())
            return found

    _as_by_hand(Squared(3, 2).double(), F.mse_loss, executor=executor)
