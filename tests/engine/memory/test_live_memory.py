from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jvp, vmap

from fastmaml.measure.profile import LiveMemory

KB = 1024
N = KB // 4  # float32 elements of one kilobyte


def test_counts_what_lives_at_once():
    with LiveMemory() as memory:
        a = torch.ones(N)
        b = a + 1
        assert memory.live_bytes == 2 * KB
        del a
        assert memory.live_bytes == KB
        c = b.exp()
    assert memory.peak_bytes == memory.live_bytes == 2 * KB
    del b, c
    assert memory.live_bytes == 0
    assert memory.peak_bytes == 2 * KB


def test_tensors_alive_before_are_zero():
    old = torch.ones(8 * N)
    with LiveMemory() as memory:
        view = old.view(8, N)[1:3].t()
        old.mul_(2)
        torch.add(old, 1, out=old)
        assert memory.live_bytes == 0
        view.contiguous()
        del old, view
    assert memory.live_bytes == 0
    assert memory.peak_bytes == 2 * KB


def test_a_storage_counts_once():
    with LiveMemory() as memory:
        a = torch.ones(4, N)
        views = [a[0], a.t(), a.view(-1), a.expand(7, 4, N), a.detach(), a.data]
        a.add_(1).relu_()
        torch.mul(a, 2, out=a)
        assert memory.live_bytes == 4 * KB
        del a
        assert memory.live_bytes == 4 * KB, "its views still hold the storage"
        del views
        assert memory.live_bytes == 0
    assert memory.peak_bytes == 4 * KB


def test_a_small_view_holds_its_whole_storage():
    with LiveMemory() as memory:
        element = torch.ones(4 * N)[0]
        assert memory.live_bytes == 4 * KB
        del element
        assert memory.live_bytes == 0


def test_what_is_resized_counts_with_its_new_size():
    old = torch.empty(0)
    with LiveMemory() as memory:
        new = torch.empty(N)
        torch.cat([new, new], out=old)
        assert memory.live_bytes == 3 * KB
        new.resize_(5 * N)
        assert memory.live_bytes == 7 * KB
        del new
    assert memory.live_bytes == 2 * KB


def test_several_outputs_and_literals():
    with LiveMemory() as memory:
        values, indices = torch.ones(4, N).max(dim=0)
        assert memory.live_bytes == KB + 2 * KB
        literal = torch.tensor([1.0] * N)
        assert memory.live_bytes == 4 * KB
    del values, indices, literal
    assert memory.live_bytes == 0


def test_counts_what_autograd_keeps():
    x = torch.ones(N)
    w = torch.ones(N, requires_grad=True)
    with LiveMemory() as memory:
        y = (w * x).exp().exp().sum()
        kept = 2 * KB + y.nbytes  # each exp keeps its result; the product's factors are old
        assert memory.live_bytes == kept
        y.backward()
        assert memory.live_bytes == KB + y.nbytes, "the graph is freed, w.grad remains"
    w.grad = None
    assert memory.live_bytes == y.nbytes


# torch's forward mode scripts its own decompositions the first time, and deprecates scripting.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_sees_through_torch_func():
    def f(x: torch.Tensor) -> torch.Tensor:
        return x.square().sum()

    x = torch.ones(3, N)
    with LiveMemory() as memory:
        y = vmap(grad(f))(x)
        assert memory.live_bytes == 3 * KB
        z, tangent = jvp(grad(f), (x,), (x,))
        assert memory.live_bytes == 9 * KB
    assert memory.peak_bytes >= 9 * KB
    del y, z, tangent
    assert memory.live_bytes == 0


def test_zero_tangents_have_no_memory():
    with LiveMemory() as memory:
        zero = torch._efficientzerotensor((N,))
        assert memory.live_bytes == 0
        dense = zero.view(2, -1).clone()
        assert memory.live_bytes == dense.nbytes == KB


def test_fake_tensors_count_as_what_they_stand_for():
    with FakeTensorMode(), LiveMemory() as memory:
        x = torch.empty(N)
        y = x + 1
    assert memory.live_bytes == memory.peak_bytes == x.nbytes + y.nbytes == 2 * KB


def test_the_meta_device_has_no_memory():
    with LiveMemory() as memory:
        x = torch.empty(N, device="meta")
        y = x + 1
    assert memory.live_bytes == memory.peak_bytes == 0 < y.nbytes


def test_memory_from_outside_is_zero_through_an_empty_view():
    old, empty = torch.ones(N), torch.ones(N).resize_(0)
    with LiveMemory() as memory:
        old[:0].as_strided((N,), (1,))
        empty.resize_(N)
    assert memory.peak_bytes == 0


def test_sparse_tensors_count_what_they_are_made_of():
    dense = torch.eye(N)
    with LiveMemory() as memory:
        sparse = dense.to_sparse()
        assert memory.live_bytes == sparse.indices().nbytes + sparse.values().nbytes
    del sparse
    assert memory.live_bytes == 0


def test_repeats_exactly():
    net = nn.Sequential(nn.Linear(9, 33), nn.BatchNorm1d(33), nn.ReLU(), nn.Linear(33, 2))
    x = torch.randn(7, 9)

    def peak() -> int:
        with LiveMemory() as memory:
            net(x).square().sum().backward()
        net.zero_grad()
        return memory.peak_bytes

    assert peak() == peak() > 0


def test_one_object_one_block():
    with LiveMemory() as memory:
        pass
    with pytest.raises(RuntimeError, match="make a new one"):
        memory.__enter__()
