"""Models that hold sparse matrices: graphs above all."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from every_way import episodes, held_to_loop
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.gradients import FirstOrder, MixedMode
from fastmaml.training import checkpoint

pytestmark = [  # in PyTorch 2.11, once in a process
    pytest.mark.filterwarnings("ignore:Sparse CSC tensor support is in beta:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly:UserWarning"),
]

MATRIX = torch.tensor(
    [[1.0, 2, 0, 0], [0, 0, 3, 0], [0, 1, 0, 0], [0, 0, 0, 0.5]], dtype=torch.float64
)

PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sparse.mm": lambda a, h: torch.sparse.mm(a, h),
    "@": lambda a, h: a @ h,
    "matmul": lambda a, h: a.matmul(h),
    "mv": lambda a, h: a.mv(h[:, 0])[:, None] * h,
    "sparse.addmm": lambda a, h: torch.sparse.addmm(h, a, h, beta=0.5, alpha=2.0),
    "addmm": lambda a, h: torch.addmm(h, a, h),
    "dense": lambda a, h: a.to_dense() @ h,
    "from the right": lambda a, h: (h.T @ a).T,
}


@pytest.fixture(autouse=True)
def _beta() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        yield


class Graph(nn.Module):
    """Features of nodes, mixed by a matrix that is a buffer, an attribute or made in forward."""

    def __init__(self, layout: torch.layout, place: str, product: str) -> None:
        super().__init__()
        self.features, self.layout = nn.Linear(3, 2), layout
        self.product = PRODUCTS[product]
        if place == "buffer":
            self.register_buffer("matrix", MATRIX.to_sparse(layout=layout))
        elif place == "attribute":
            self.matrix = MATRIX.to_sparse(layout=layout)

    def forward(self, x: Tensor) -> Tensor:
        matrix = getattr(self, "matrix", None)
        if matrix is None:
            matrix = MATRIX.to_sparse(layout=self.layout)
        return self.product(matrix, self.features(x).tanh())


def graph(
    layout: torch.layout = torch.sparse_coo, place: str = "buffer", product: str = "sparse.mm"
) -> nn.Module:
    torch.manual_seed(0)
    return Graph(layout, place, product).double()


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=str)
def test_products(layout: torch.layout, product: str) -> None:
    held_to_loop(
        graph(layout, product=product), episodes(), methods=[MixedMode()], executors=["eager"]
    )


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("place", ["buffer", "attribute", "forward"])
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc], ids=str)
def test_places(layout: torch.layout, place: str) -> None:
    held_to_loop(graph(layout, place), episodes(), executors=[None])


@pytest.mark.slow
def test_a_sparse_weight_that_is_constant() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 4)
            self.outer = nn.Parameter(MATRIX[:2].to_sparse(), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.inner(x).tanh(), self.outer)

    held_to_loop(Net().double(), episodes())


@pytest.mark.slow
def test_a_sparse_matrix_with_learned_entries() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 2)
            self.entries = nn.Parameter(MATRIX.to_sparse().values().clone())

        def forward(self, x: Tensor) -> Tensor:
            own = torch.sparse_coo_tensor(
                MATRIX.to_sparse().indices(), self.entries, (4, 4), check_invariants=True
            )
            return torch.sparse.mm(own, self.inner(x).tanh())

    torch.manual_seed(0)
    net = Net().double()
    held_to_loop(net, episodes(), methods=[fm.gradients.Unrolled(), fm.gradients.Checkpointed()])
    mixed = fm.MAML(net, lr=0.3, loss=F.mse_loss, gradient=MixedMode())
    with pytest.raises(RuntimeError, match=r"MixedMode\(\) does: use gradient=Unrolled"):
        mixed(episodes())


def test_an_elementwise_product_has_no_forward_derivative() -> None:
    model = graph()
    model.product = lambda a, h: (a * (h @ h.T)).to_dense() @ h
    held_to_loop(model, episodes(), methods=[fm.gradients.Unrolled()], executors=["eager"])
    mixed = fm.MAML(model, lr=0.3, loss=F.mse_loss, gradient=MixedMode())
    with pytest.raises(RuntimeError, match=r"mul of sparse.*Unrolled\(\)"):
        mixed(episodes())


def test_with_running_statistics_kept() -> None:
    """Of a pass that writes to other buffers."""
    model = nn.Sequential(graph(), nn.BatchNorm1d(2)).double()
    maml = fm.MAML(model, lr=0.3, loss=F.mse_loss, batch_norm="module")
    before = model[1].running_mean.clone()
    maml(episodes()).loss.backward()
    assert not torch.equal(model[1].running_mean, before)
    assert torch.equal(model[0].matrix.to_dense(), MATRIX)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("place", ["buffer", "attribute"])
def test_eagerly_and_why(place: str, caplog: pytest.LogCaptureFixture) -> None:
    maml = fm.MAML(graph(place=place), lr=0.3, loss=F.mse_loss)
    with caplog.at_level(logging.WARNING, "fastmaml"):
        maml(episodes())
    assert "torch.sparse_coo" in caplog.text
    assert "runs eagerly" in caplog.text
    asked = fm.MAML(graph(place=place), lr=0.3, loss=F.mse_loss, executor="captured")
    with pytest.raises(RuntimeError, match=r"torch.sparse_coo.*executor='eager'"):
        asked(episodes())


def test_explain_says_so() -> None:
    plan = fm.MAML(graph(torch.sparse_csr), lr=0.3, loss=F.mse_loss).explain(episodes())
    assert "eager, as this meta-step cannot be captured" in str(plan)


def test_first_order_and_memory() -> None:
    maml = fm.MAML(graph(), lr=0.3, steps=2, loss=F.mse_loss, gradient=FirstOrder())
    maml(episodes()).loss.backward()
    plan = maml.explain(episodes())
    assert plan.bytes_estimate > 0


def test_in_batches_and_outputs_they_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layout torch.sparse_coo.*to_dense"):
        fm.Batch(MATRIX.to_sparse(), MATRIX)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).to_sparse()

    maml = fm.MAML(Net().double(), lr=0.3, loss=lambda out, y: F.mse_loss(out.to_dense(), y))
    with pytest.raises(ValueError, match=r"returned a tensor of the layout torch.sparse_coo"):
        maml(episodes())


def test_in_checkpoints_they_are_refused(tmp_path: Path) -> None:
    state = fm.MAML(graph(), lr=0.3, loss=F.mse_loss).state_dict()
    with pytest.raises(ValueError, match=r"module.matrix .*torch.sparse_coo.*persistent=False"):
        checkpoint.save(tmp_path / "x.safetensors", checkpoint.Checkpoint({}, 0, dict(state)))
