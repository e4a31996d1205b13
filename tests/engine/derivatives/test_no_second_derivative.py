"""Functions that PyTorch cannot differentiate twice: written out, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hand_loop import hand_loop
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import fastmaml as fm
from fastmaml.engine.routing import second_order
from fastmaml.gradients import Checkpointed, FirstOrder, MixedMode, Unrolled

ROWS, WIDTH = 7, 3


class Around(nn.Module):
    """A function of a table and a layer's outputs, whose result is reduced to one number a row."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.table = nn.Parameter(torch.randn(ROWS, WIDTH, dtype=torch.float64))
        self.layer = nn.Linear(2, WIDTH, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.table, self.layer(x))
        return (y.sin() + y.square()).reshape(-1).mean() + self.layer(x).tanh().sum(-1)


def episodes() -> fm.Episodes:
    generator = torch.Generator().manual_seed(1)
    sets = (
        fm.Batch(
            torch.randn(3, 5, 2, dtype=torch.float64, generator=generator),
            torch.randn(3, 5, dtype=torch.float64, generator=generator),
        )
        for _ in range(2)
    )
    return fm.Episodes(*sets)


def meta_gradient(model: nn.Module, **settings: object) -> list[Tensor | None]:
    model.zero_grad()
    maml = fm.MAML(model, lr=0.1, steps=2, loss=F.mse_loss, **settings)  # type: ignore[arg-type]
    maml(episodes()).loss.backward()
    return [p.grad for p in model.parameters()]


def matches(model: nn.Module, exact: nn.Module, **settings: object) -> None:
    """The meta-gradient of `model` is the plain loop's of `exact`, by every method."""
    first, second = (
        hand_loop(exact, F.mse_loss, episodes(), 0.1, 2, first_order=first)[1].values()
        for first in (True, False)
    )
    for gradient in (Unrolled(), Checkpointed(), MixedMode(), FirstOrder()):
        expected = first if gradient == FirstOrder() else second
        for executor in ("eager", "captured") if gradient == MixedMode() else ("captured",):
            found = meta_gradient(model, gradient=gradient, executor=executor, **settings)
            for g, e in zip(found, expected, strict=True):
                g = torch.zeros_like(e) if g is None else g
                torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-11)


IDS = torch.tensor([[0, 3, 3], [6, 1, 0]])
FLAT, OFFSETS = torch.tensor([0, 3, 3, 6, 1, 5]), torch.tensor([0, 2, 2, 5])
ENDS = torch.tensor([0, 2, 2, 6])


def bag(ids: Tensor, offsets: Tensor | None = None, **options: object) -> Callable[..., Tensor]:
    return lambda table, _: F.embedding_bag(ids, table, offsets, **options)


def by_hand(ids: list[list[int]], mode: str) -> Callable[..., Tensor]:
    reduced = {
        "sum": lambda x: x.sum(0),
        "mean": lambda x: x.mean(0),
        "max": lambda x: x.amax(0),
    }[mode]
    return lambda table, _: torch.stack([
        reduced(table[torch.tensor(row)]) if row else table.new_zeros(WIDTH) for row in ids
    ])  # fmt: skip


@pytest.mark.sampled(together=1)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize(
    ("ids", "offsets", "options", "rows"),
    [
        (IDS, None, {}, IDS.tolist()),
        (IDS, None, {"padding_idx": 3}, [[0], [6, 1, 0]]),
        (IDS, None, {"padding_idx": -1, "sparse": True}, [[0, 3, 3], [1, 0]]),
        (FLAT, OFFSETS, {}, [[0, 3], [], [3, 6, 1], [5]]),
        (FLAT, ENDS, {"include_last_offset": True}, [[0, 3], [], [3, 6, 1, 5]]),
        (IDS.int(), None, {"padding_idx": 0}, [[3, 3], [6, 1]]),
    ],
    ids=["2d", "padding", "last", "offsets", "ends", "int32"],
)
def test_embedding_bag_is_what_pytorch_computes(
    mode: str, ids: Tensor, offsets: Tensor | None, options: dict, rows: list
) -> None:
    options = {k: v for k, v in options.items() if not (k == "sparse" and mode == "max")}
    table = torch.randn(ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    expected = F.embedding_bag(ids, table, offsets, mode=mode, **options)
    found = second_order.embedding_bag(ids, table, offsets, mode=mode, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, by_hand(rows, mode)(table, None), rtol=1e-12, atol=1e-12)
    cotangent = torch.randn_like(found)
    expected, found = (torch.autograd.grad(y, table, cotangent)[0] for y in (expected, found))
    torch.testing.assert_close(found, expected.to_dense(), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_embedding_bag_has_second_derivatives(mode: str) -> None:
    found = Around(bag(FLAT, OFFSETS, mode=mode))
    matches(found, Around(by_hand([[0, 3], [], [3, 6, 1], [5]], mode)))


@pytest.mark.slow
def test_weights_of_samples_adapt() -> None:
    def weighted(table: Tensor, y: Tensor) -> Tensor:
        return F.embedding_bag(IDS, table, mode="sum", per_sample_weights=y[:2])

    def exact(table: Tensor, y: Tensor) -> Tensor:
        return (table[IDS] * y[:2, :, None]).sum(1)

    matches(Around(weighted), Around(exact))


def test_the_module_and_its_checks() -> None:
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.bags = nn.EmbeddingBag(9, 3, dtype=torch.float64)
            self.head = nn.Linear(3, 2, dtype=torch.float64)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.bags(ids).tanh())

    class Rows(Bags):
        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.bags.weight[ids].mean(1).tanh())

    ids = torch.randint(0, 9, (2, 4, 5), generator=torch.Generator().manual_seed(0))
    batch = fm.Batch(ids, torch.arange(4).remainder(2).expand(2, 4))
    tasks, model = fm.Episodes(batch, batch), Bags()
    _, expected = hand_loop(Rows(), F.cross_entropy, tasks, 0.5, 2)
    fm.MAML(model, lr=0.5, steps=2, loss=F.cross_entropy)(tasks).loss.backward()
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[n], rtol=1e-9, atol=1e-11)
    with pytest.raises(ValueError, match="input has to be 1D or 2D"):
        second_order.embedding_bag(ids, model.bags.weight)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, float("inf")])
def test_distances_have_second_derivatives(p: float) -> None:
    def exact(table: Tensor, y: Tensor) -> Tensor:
        d = (table[:, None] - y[None]).abs()
        return d.amax(-1) if p == float("inf") else (d**p).sum(-1) ** (1 / p)

    matches(Around(lambda table, y: torch.cdist(table, y, p=p)), Around(exact))


@pytest.mark.slow
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_distances_of_pairs_have_second_derivatives(p: float) -> None:
    def exact(table: Tensor, y: Tensor) -> Tensor:
        pairs = [(table[i] - table[j]) for i in range(ROWS) for j in range(i + 1, ROWS)]
        return (torch.stack(pairs).abs() ** p).sum(-1) ** (1 / p)

    matches(Around(lambda table, _: F.pdist(table, p)), Around(exact))


@pytest.mark.slow
def test_distances_of_a_point_to_itself_are_smooth_enough() -> None:
    def exact(table: Tensor, _: Tensor) -> Tensor:
        rows = [
            torch.stack([
                (table[i] - table[j]).norm() if i != j else table.new_zeros(())
                for j in range(ROWS)
            ])
            for i in range(ROWS)
        ]  # fmt: skip
        return torch.stack(rows)

    matches(Around(lambda table, _: torch.cdist(table, table)), Around(exact))


@pytest.mark.slow
def test_many_points_go_through_the_product_of_matrices_in_forward_mode() -> None:
    def many(table: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(torch.cat([table, 2 * table, 3 * table, 4 * table]), y)

    matches(Around(many), Around(many))


LABELS = torch.tensor([0, 2, 1, 1, 0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"p": 2, "margin": 0.3}, {"weight": torch.tensor([1.0, 2, 3])}, {"reduction": "none"}],
    ids=["", "squares", "weights", "none"],
)
def test_multi_margin_loss(options: dict) -> None:
    options = {k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()}
    x = torch.randn(5, WIDTH, dtype=torch.float64, requires_grad=True)
    for y, t in ((x, LABELS), (x[0], LABELS[1])):
        losses = [
            function(y, t, **options)
            for function in (F.multi_margin_loss, second_order.multi_margin_loss)
        ]
        torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)
        gradients = [torch.autograd.grad(loss.sum(), x)[0] for loss in losses]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)

    def exact(_: Tensor, y: Tensor) -> Tensor:
        return second_order.multi_margin_loss(y, LABELS, **options)

    matches(Around(lambda _, y: F.multi_margin_loss(y, LABELS, **options)), Around(exact))


@pytest.mark.slow
def test_multilabel_margin_loss() -> None:
    labels = torch.tensor([[0, 2, -1], [-1, 0, 1], [2, -1, 0], [1, 0, 2], [1, 1, -1]])
    x = torch.randn(5, WIDTH, dtype=torch.float64, requires_grad=True)
    for reduction in ("none", "mean", "sum"):
        losses = [
            function(x, labels, reduction=reduction)
            for function in (F.multilabel_margin_loss, second_order.multilabel_margin_loss)
        ]
        torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)
        gradients = [torch.autograd.grad(loss.sum(), x)[0] for loss in losses]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)

    def exact(_: Tensor, y: Tensor) -> Tensor:
        return second_order.multilabel_margin_loss(y, labels)

    matches(Around(lambda _, y: F.multilabel_margin_loss(y, labels)), Around(exact))


def ctc(table: Tensor, y: Tensor) -> Tensor:
    logits = (table[:5, None] + y).log_softmax(-1)
    sizes = torch.full((y.shape[0],), 5), torch.full((y.shape[0],), 2)
    return F.ctc_loss(logits, torch.ones(len(y), 2, dtype=torch.long), *sizes)


@pytest.mark.sampled(together=1)
@pytest.mark.parametrize("gradient", [None, Unrolled(), Checkpointed(), MixedMode()])
@pytest.mark.parametrize("executor", ["eager", "captured"])
def test_what_has_none_is_refused_by_name_with_the_way_out(gradient, executor) -> None:
    model = Around(ctc)
    message = r"second derivatives, and PyTorch has none of ctc_loss\. Use gradient=FirstOrder\(\)"
    with pytest.raises(fm.MissingDerivative, match=message) as caught:
        meta_gradient(model, gradient=gradient, executor=executor)
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("gradient", [None, FirstOrder()])
def test_per_task_functions_say_so_too(gradient) -> None:
    model = Around(ctc)
    maml = fm.MAML(model, lr=0.1, gradient=gradient, executor="eager")

    @maml.per_task
    def run(learner, support, query):
        learner.adapt(F.mse_loss(learner(support.inputs), support.targets))
        return F.mse_loss(learner(query.inputs), query.targets)

    if gradient is None:
        with pytest.raises(fm.MissingDerivative, match=r"none of ctc_loss\..* gradient=FirstOrder"):
            run(episodes())
    else:
        _, expected = hand_loop(model, F.mse_loss, episodes(), 0.1, 1, first_order=True)
        run(episodes()).loss.backward()
        for p, e in zip(model.parameters(), expected.values(), strict=True):
            torch.testing.assert_close(p.grad, e, rtol=1e-9, atol=1e-11)


def test_the_way_out_is_right() -> None:
    model = Around(ctc)
    _, expected = hand_loop(model, F.mse_loss, episodes(), 0.1, 2, first_order=True)
    found = meta_gradient(model, gradient=FirstOrder())
    for g, e in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-11)


def test_a_part_that_does_not_adapt_needs_no_second_derivative() -> None:
    model = Around(lambda _, y: ctc(y.new_ones(ROWS, WIDTH), y))
    found = meta_gradient(model, gradient=Unrolled(), scope=lambda name, _: name == "table")
    assert all(g is None or g.isfinite().all() for g in found)


def test_a_model_that_fails_by_itself_keeps_its_own_error() -> None:
    model = Around(lambda table, y: table @ y)
    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        meta_gradient(model)
    assert not isinstance(caught.value, fm.MissingDerivative)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        found: Tensor = 3 * gradient * x * x
        return found


ONCE = r"Cube, whose backward\(\) is marked @once_differentiable"


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("executor", [None, "eager"])
def test_a_function_that_may_be_differentiated_once(executor: str | None) -> None:
    """PyTorch's autograd.grad says nothing of the term that it leaves out."""
    model = Around(lambda table, y: Cube.apply(table.mean() + y.tanh()))
    right = Around(lambda table, y: (table.mean() + y.tanh()) ** 3)
    options: dict[str, Any] = {"lr": 0.1, "steps": 2, "loss": F.mse_loss, "executor": executor}
    for gradient in (None, Unrolled(), Checkpointed()):
        with pytest.raises(fm.MissingDerivative, match=ONCE):
            fm.MAML(model, gradient=gradient, **options)(episodes())
    with pytest.raises(ValueError, match="MixedMode cannot differentiate"):
        fm.MAML(model, gradient=MixedMode(), **options)(episodes())
    maml = fm.MAML(model, **options)

    @maml.per_task
    def task(own: Any, support: fm.Batch, query: fm.Batch) -> Tensor:
        own.adapt(F.mse_loss(own(support.inputs), support.targets))
        return F.mse_loss(own(query.inputs), query.targets)

    with pytest.raises(fm.MissingDerivative, match=ONCE):
        task(episodes())
    expected = fm.MAML(right, **options).evaluate(episodes()).losses
    torch.testing.assert_close(maml.evaluate(episodes()).losses, expected)
    first = hand_loop(right, F.mse_loss, episodes(), 0.1, 2, first_order=True)[1]
    for p, x in zip(meta_gradient(model, gradient=FirstOrder()), first.values(), strict=True):
        assert p is not None
        torch.testing.assert_close(p, x)


def test_before_what_adapts_one_derivative_is_enough() -> None:
    """A function of the table alone, where only the layer adapts."""
    model = Around(lambda table, y: Cube.apply(table).mean() + y)
    right = Around(lambda table, y: (table**3).mean() + y)
    found = meta_gradient(model, scope="layer.*")
    for p, x in zip(found, meta_gradient(right, scope="layer.*"), strict=True):
        assert p is not None
        assert x is not None
        torch.testing.assert_close(p, x)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize("gradient", [Unrolled(), Checkpointed(), MixedMode()], ids=str)
def test_a_reduction_over_a_sparse_matrix(gradient: Any) -> None:
    """MixedMode's formulas, which it has, are held against others that there are not."""
    matrix = torch.eye(5, dtype=torch.float64).to_sparse_csr()
    model = Around(lambda table, y: torch.sparse.mm(matrix, y, "sum"))
    maml = fm.MAML(model, lr=0.1, steps=2, loss=F.mse_loss, gradient=gradient)
    with pytest.raises(fm.MissingDerivative, match="none of sparse_mm_reduce_impl"):
        maml(episodes())
