"""The attention kernels under Triton's interpreter, against an explicit softmax in float64.

Run by test_triton.py like triton_interpreted.py. Derivatives are autograd's of that definition, the
second ones autograd's of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from triton_checks import careful, close

from fastmaml import kernels, ops
from fastmaml.kernels.attention_backward import backward
from fastmaml.kernels.attention_forward import forward
from fastmaml.kernels.attention_second import second
from fastmaml.kernels.attention_work import Attention, Block

Tensor = torch.Tensor
# By Triton 3.6's interpreter.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)


@pytest.fixture(autouse=True)
def carefully() -> Iterator[None]:
    with careful():
        yield


@dataclass(frozen=True)
class Case:
    """What `task_attention` is asked; sizes are tasks, batch, heads, rows, keys, head, outputs."""

    sizes: tuple[int, int, int, int, int, int, int] = (2, 1, 2, 17, 21, 9, 12)
    layout: str = "dense"
    mask: str = "none"
    causal: bool = False
    dropout: float = 0.0
    dtype: torch.dtype = torch.float32


CASES = {
    "plain": Case(),
    "one pair": Case(sizes=(1, 1, 1, 1, 1, 1, 1)),
    "several tiles": Case(sizes=(1, 1, 1, 40, 35, 16, 20)),
    "shared by tasks": Case(layout="shared"),
    "heads inside": Case(layout="heads inside"),
    "odd strides": Case(layout="odd"),
    "last dimension not dense": Case(layout="transposed"),
    "padding": Case(mask="padding", sizes=(2, 2, 1, 5, 18, 4, 4)),
    "bias": Case(mask="bias"),
    "half mask": Case(mask="half"),
    "rows without keys": Case(mask="dead", layout="heads inside"),
    "a huge mask on whole rows": Case(mask="huge"),
    "causal": Case(causal=True, sizes=(1, 1, 2, 35, 35, 8, 8)),
    "causal, fewer keys": Case(causal=True, sizes=(1, 1, 1, 37, 18, 8, 8)),
    "causal, fewer rows": Case(causal=True, sizes=(1, 1, 1, 18, 37, 8, 8), mask="padding"),
    "dropout": Case(dropout=0.3, sizes=(2, 2, 2, 5, 7, 4, 4)),
    "dropout, all": Case(dropout=1.0),
    "everything": Case(
        (2, 1, 2, 20, 35, 10, 8), mask="dead", causal=True, dropout=0.5, layout="heads inside"
    ),
    "float16": Case(dtype=torch.float16, mask="padding"),
    "float16 with dropout": Case(dtype=torch.float16, dropout=0.1),
    "float64": Case(dtype=torch.float64, mask="dead", causal=True, dropout=0.2),
    "float64, odd strides": Case(dtype=torch.float64, layout="transposed"),
    "no rows": Case(sizes=(2, 1, 1, 0, 3, 4, 4)),
    "no keys": Case(sizes=(2, 1, 1, 3, 0, 4, 4)),
    "no tasks": Case(sizes=(0, 1, 1, 3, 2, 4, 4)),
    "no outputs": Case(sizes=(1, 1, 1, 3, 2, 4, 0)),
}


def laid_out(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> Tensor:
    """Random, [tasks, batch, heads, length, size]."""
    t, b, h, n, d = shape
    if layout == "shared":
        return torch.randn(shape[1:], dtype=dtype).expand(shape)
    if layout == "heads inside":
        return torch.randn(t, b, n, h, d, dtype=dtype).transpose(2, 3)
    if layout == "transposed":
        return torch.randn(t, b, h, d, n, dtype=dtype).mT
    if layout == "odd":
        return torch.randn(h, 2 * t, 3 * n, b, d + 3, dtype=dtype)[:, ::2, ::3, :, :d].permute(
            1, 3, 0, 2, 4
        )
    return torch.randn(shape, dtype=dtype)


def masked(case: Case) -> Tensor | None:
    """Additive, expanded to [tasks, batch, heads, rows, keys]."""
    t, b, h, n, m = case.sizes[:5]
    if case.mask == "none":
        return None
    if case.mask == "padding":
        lengths = torch.randint(1, m + 1, (t, b, 1, 1, 1))
        mask = torch.zeros(t, b, 1, 1, m).masked_fill(torch.arange(m) >= lengths, float("-inf"))
    elif case.mask == "dead":
        mask = torch.zeros(t, b, 1, n, m).masked_fill(torch.rand(t, b, 1, n, m) < 0.3, -torch.inf)
        mask[..., ::3, :] = float("-inf")
    elif case.mask == "huge":
        mask = torch.randn(t, 1, 1, n, 1).sign().sub(1) * 5e29  # -1e30 or 0 on whole rows
    else:
        mask = torch.randn(1, 1, h, n, m)
    dtype = torch.float16 if case.mask == "half" else case.dtype
    return mask.to(dtype).expand(t, b, h, n, m)


@dataclass(frozen=True)
class Asked:
    """The tensors of a `Case`."""

    case: Case
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    key: Tensor

    @property
    def rest(self) -> tuple[bool, float, float]:
        return self.case.causal, 0.4, self.case.dropout

    def like(self) -> list[Tensor]:
        """Random tensors like q, k, v and the output."""
        t, b, h, n, m, d, e = self.case.sizes
        lengths = (n, d), (m, d), (m, e), (n, e)
        size = 0.5 if self.case.dtype.itemsize == 2 else 1  # sums that cancel stay precise
        return [size * laid_out((t, b, h, *x), self.case.layout, self.case.dtype) for x in lengths]

    def definition(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """By an explicit softmax."""
        causal, scale, dropout = self.rest
        scores = scale * q @ k.mT
        scores = scores if self.mask is None else scores + self.mask.double()
        if causal:
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
            scores = scores.masked_fill(~seen, float("-inf"))
        alive = (scores > float("-inf")).any(-1, keepdim=True)
        p = torch.softmax(torch.where(alive, scores, 0.0), -1) * alive
        if dropout:
            p = p * ops.dropout_mask(self.key, p.shape[1:], dropout, self.q)
        return p @ v


def asked(case: Case) -> Asked:
    t, b, h, n, m, d, e = case.sizes
    q, k, v = (laid_out((t, b, h, *x), case.layout, case.dtype) for x in ((n, d), (m, d), (m, e)))
    return Asked(case, q, k, v, masked(case), torch.randint(-(2**62), 2**62, (t,)))


@pytest.fixture(params=CASES)
def given(request: pytest.FixtureRequest) -> Asked:
    torch.manual_seed(1)
    return asked(CASES[request.param])


def heads_inside(x: Tensor) -> bool:
    return x.transpose(2, 3).is_contiguous()


@pytest.mark.sampled(at_most=5)
def test_forward(given: Asked) -> None:
    o, lse = kernels.task_attention(given.q, given.k, given.v, given.mask, given.key, *given.rest)
    close(o, given.definition(given.q.double(), given.k.double(), given.v.double()))
    assert heads_inside(o)
    assert o.dtype == given.q.dtype
    scores = 0.4 * given.q.double() @ given.k.double().mT
    scores = scores if given.mask is None else scores + given.mask.double()
    if given.case.causal:
        scores += torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype).triu(1)
    close(lse, torch.logsumexp(scores, -1))


@pytest.mark.sampled(at_most=3)
def test_derivatives(given: Asked) -> None:
    q, k, v, mask, key = given.q, given.k, given.v, given.mask, given.key
    hq, hk, hv, g = given.like()
    inputs = [x.double().requires_grad_() for x in (q, k, v)]
    cotangent = g.double().requires_grad_()
    out = given.definition(*inputs)
    first = torch.autograd.grad(out, inputs, cotangent, create_graph=True)
    moved = sum((a * h.double()).sum() for a, h in zip(first, (hq, hk, hv), strict=True))
    second = torch.autograd.grad(moved, [cotangent, *inputs], allow_unused=True)

    o, lse = kernels.task_attention(q, k, v, mask, key, *given.rest)
    saved = g, q, k, v, mask, key, o, lse, *given.rest
    for found, expected in zip(kernels.task_attention_bwd(*saved), first, strict=True):
        close(found, expected.detach())
        assert heads_inside(found)
    found = kernels.task_attention_bwd2(hq, hk, hv, *saved, 15)
    for one, expected, like in zip(found, second, (out, *inputs), strict=True):
        close(one, torch.zeros_like(like) if expected is None else expected)
        assert heads_inside(one)


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("tile", [(16, 16), (16, 32), (64, 16)], ids=str)
def test_tiles(tile: tuple[int, int]) -> None:
    given = asked(Case((1, 1, 1, 37, 50, 4, 4), mask="dead", causal=True, dropout=0.2))
    *h, g = given.like()
    work = Attention(given.q, given.k, given.v, given.mask, given.key, *given.rest)
    results = []
    for block in (Block(*tile, 1, 1), Block(64, 64, 1, 1)):  # several tiles, and only one
        o, lse = torch.empty_like(g), torch.empty(1, 1, 1, 37)
        out = [torch.empty_like(x) for x in (given.q, given.k, given.v, g, *h)]
        launches = [forward(work, block, o, lse), *backward(work, block, g, o, lse, *out[:3])]
        for launch in (*launches, *second(work, block, tuple(h), g, o, lse, tuple(out[3:]))):
            launch.run()
        results.append([o, lse, *out])
    for found, expected in zip(*results, strict=True):
        close(found, expected.double())


@pytest.mark.sampled(at_most=3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("need", range(16))
def test_what_is_not_needed_is_left_out(need: int, dtype: torch.dtype) -> None:
    given = asked(Case(sizes=(1, 1, 1, 3, 4, 2, 5), mask="bias", dropout=0.2, dtype=dtype))
    *h, g = given.like()
    tensors = given.q, given.k, given.v, given.mask, given.key
    saved = g, *tensors, *kernels.task_attention(*tensors, *given.rest), *given.rest
    every = kernels.task_attention_bwd2(*h, *saved, 15)
    for i, found in enumerate(kernels.task_attention_bwd2(*h, *saved, need)):
        assert torch.equal(found, every[i]) if need >> i & 1 else found.shape == (0,)


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("absent", range(1, 8))
def test_tangents_may_be_absent(absent: int) -> None:
    given = asked(Case(sizes=(2, 1, 1, 3, 4, 2, 5)))
    *h, g = given.like()
    tensors = given.q, given.k, given.v, None, None
    saved = g, *tensors, *kernels.task_attention(*tensors, *given.rest), *given.rest
    some = [None if absent >> i & 1 else x for i, x in enumerate(h)]
    zeros = [torch.zeros_like(x) if absent >> i & 1 else x for i, x in enumerate(h)]
    both = (kernels.task_attention_bwd2(*x, *saved, 15) for x in (some, zeros))
    assert all(torch.equal(*pair) for pair in zip(*both, strict=True))


@pytest.mark.sampled(at_most=2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("dropout", [2**-31, 0.1, 0.5, 0.9, 1.0])
def test_dropout_masks_equal_the_engines_bit_for_bit(dropout: float, dtype: torch.dtype) -> None:
    q, k = (torch.zeros(3, 2, 3, n, 1, dtype=dtype) for n in (18, 64))
    v = torch.eye(64, dtype=dtype).expand(3, 2, 3, 64, 64)
    key = torch.tensor([0, -(2**63), 2**63 - 1])
    o, _ = kernels.task_attention(q, k, v, None, key, False, 1.0, dropout)  # each p is 1 / 64
    expected = ops.dropout_mask(key, [2, 3, 18, 64], dropout, q)
    assert torch.equal(o, expected / 64)


EMBEDDINGS = [  # tasks, rows, tokens, size
    (2, 7, 19, 5), (1, 3, 40, 130), (3, 1, 2, 1), (0, 2, 3, 4), (2, 3, 0, 4), (2, 3, 4, 0)
]  # fmt: skip


@pytest.mark.sampled(at_most=4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["dense", "shared", "transposed", "odd"])
@pytest.mark.parametrize("sizes", EMBEDDINGS, ids=str)
def test_embedding(sizes: tuple[int, int, int, int], layout: str, dtype: torch.dtype) -> None:
    tasks, rows, tokens, size = sizes
    w = laid_out((tasks, 1, 1, rows, size), layout, dtype)[:, 0, 0]
    g = laid_out((tasks, 1, 1, tokens, size), layout, dtype)[:, 0, 0]
    ids = torch.randint(rows, (tokens, tasks)).T
    places = ids.unsqueeze(2).expand(tasks, tokens, size)
    assert torch.equal(kernels.task_embedding(w, ids), w.gather(1, places))
    total = torch.zeros(tasks, rows, size, dtype=torch.float64)
    close(kernels.task_embedding_grad(g, ids, rows), total.scatter_add(1, places, g.double()))


def test_ids_outside_the_table_show() -> None:
    w, ids = torch.ones(1, 3, 2), torch.tensor([[0, 3, -1, 2, 3, -(2**62), 2**62, 0]])
    inside = (ids >= 0) & (ids < 3)
    found = kernels.task_embedding(w, ids)
    assert torch.equal(found.isnan().all(2), ~inside)
    assert (found[inside] == 1).all()
    added = kernels.task_embedding_grad(torch.ones(1, 8, 2), ids, 3)
    assert torch.equal(added, torch.tensor([[[2.0, 2], [0, 0], [1, 1]]]))


def examples() -> list[tuple[Callable, tuple]]:
    given = asked(Case(sizes=(2, 1, 2, 3, 4, 2, 5), mask="bias", dropout=0.2))
    *h, g = given.like()
    tensors = given.q, given.k, given.v, given.mask, given.key
    saved = g, *tensors, *kernels.task_attention(*tensors, *given.rest), *given.rest
    ids = torch.tensor([[0, 1, 1], [2, 0, 2]])
    return [
        (kernels.task_attention, (*tensors, *given.rest)),
        (kernels.task_attention, (*tensors[:3], None, None, True, 0.5, 0.0)),
        (kernels.task_attention_bwd, saved),
        (kernels.task_attention_bwd2, (*h, *saved, 15)),
        (kernels.task_attention_bwd2, (h[0], None, None, *saved, 6)),
        (kernels.task_embedding, (torch.randn(2, 3, 4), ids)),
        (kernels.task_embedding_grad, (torch.randn(2, 3, 4), ids, 5)),
    ]


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("index", range(7))
def test_each_is_one_node_of_a_trace(index: int) -> None:
    op, arguments = examples()[index]
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]

    def call(*given: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        rest = iter(given)
        return op(*(next(rest) if isinstance(a, torch.Tensor) else a for a in arguments))

    traced = make_fx(call, tracing_mode="fake")(*tensors)
    called = [n for n in traced.graph.nodes if n.op == "call_function"]
    assert [n for n in called if "fastmaml_triton" in str(n.target)] == called[:1]
    for found, expected in zip(traced(*tensors), call(*tensors), strict=True):
        assert torch.equal(found, expected)


def test_bad_arguments_are_named() -> None:
    x, key = torch.randn(2, 1, 2, 3, 4), torch.zeros(2, dtype=torch.int64)
    ids, wide = torch.zeros(2, 3, dtype=torch.int64), torch.randn(2, 1, 2, 3, 129)
    o, lse = kernels.task_attention(x, x, x, None, None, False, 1.0, 0.0)
    rest = False, 1.0, 0.0

    def attention(**wrong: object) -> Callable[[], object]:
        given = {"q": x, "k": x, "v": x, "mask": None, "key": key, "causal": False, "scale": 1.0}
        return lambda: kernels.task_attention(**{**given, "dropout": 0.1, **wrong})

    def backward(**wrong: object) -> Callable[[], object]:
        given = {"hq": x, "hk": x, "hv": x, "g": x, "q": x, "k": x, "v": x, "mask": None}
        given |= {"key": None, "o": o, "lse": lse, "need": 15, **wrong}
        given |= dict(zip(("causal", "scale", "dropout"), rest, strict=True))
        return lambda: kernels.task_attention_bwd2(**given)

    for message, call in {
        r"q has shape \[2, 2, 3, 4\], not 5 dim": attention(q=x[:, 0]),
        "v is torch.float64": attention(v=x.double()),
        "k has 1 tasks, q has 2": attention(k=x[:1]),
        r"k without its keys is \[2, 1, 2, 3\]": attention(k=x[..., :3]),
        r"v up to its keys is \[2, 1, 2, 2\], not \[2, 1, 2, 3\]": attention(v=x[:, :, :, :2]),
        "q's heads have size 129; up to 128": attention(q=wide, k=wide),
        r"shape of mask is \[2, 1, 2, 3, 1\]": attention(mask=x[..., :1]),
        "mask is torch.bool": attention(mask=torch.ones(2, 1, 2, 3, 3, dtype=torch.bool)),
        "dropout is 1.5, not a prob": attention(dropout=1.5),
        "dropout is 0.1 and needs key": attention(key=None),
        r"shape of key is \[1\], not \[2\]": attention(key=key[:1]),
        "key is torch.int32": attention(key=key.int()),
        r"shape of g is \[2, 1, 2, 3, 3\]": backward(g=x[..., :3]),
        "hk is torch.float64": backward(hk=x.double()),
        "lse is torch.float64": backward(lse=lse.double()),
        "need is 16": backward(need=16),
        "ids is torch.int32": lambda: kernels.task_embedding(x[:, 0, 0], ids.int()),
        r"shape of ids is \[1\], not \[2\]": lambda: kernels.task_embedding(x[:, 0, 0], ids[:1]),
        r"shape of ids is \[2, 2\]": lambda: kernels.task_embedding_grad(x[:, 0, 0], ids[:, 1:], 3),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
