"""A frozen base in the host's memory: the same meta-gradients, and one weight at a time."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from frozen_bases import (
    BASES,
    EXACT,
    STEPS,
    TASKS,
    WORDS,
    expected,
    gradients,
    maml,
    tied,
    words,
)  # fmt: skip
from problems import relative
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

import fastmaml as fm
from fastmaml import frozen
from fastmaml.frozen.kept import Kept, OnHost
from fastmaml.frozen.layers import FetchingLayer
from fastmaml.frozen.products import product

LIBRARIES = all(find_spec(name) is not None for name in ("transformers", "peft"))
needs_libraries = pytest.mark.skipif(not LIBRARIES, reason="needs fastmaml[text]")


@dataclass
class Fetched:
    """The names of the weights that were fetched, and how many copies were alive at a time."""

    names: list[str] = field(default_factory=list)
    alive: list[StorageWeakRef] = field(default_factory=list)
    most: int = 0


class Counted(Kept):
    """Hands out copies, as from a host to a device, and counts those that are alive."""

    def __init__(self, kept: Kept, fetched: Fetched) -> None:
        self.name, self.shape, self.dtype = kept.name, kept.shape, kept.dtype
        self.kept, self.fetched = kept, fetched

    def whole(self, device: torch.device) -> Tensor:
        log, found = self.fetched, self.kept.whole(device).clone()
        log.alive = [x for x in log.alive if not x.expired()]
        log.alive.append(StorageWeakRef(found.untyped_storage()))
        log.most = max(log.most, len(log.alive))
        log.names.append(self.name)
        return found

    def rows(self, numbers: Tensor) -> Tensor:
        return self.kept.rows(numbers)

    def state(self) -> Tensor | None:
        return self.kept.state()

    def like(self, weight: Tensor, copy: bool) -> Kept:
        return Counted(self.kept.like(weight, copy), self.fetched)


def counted(model: nn.Module) -> Fetched:
    """Count what the layers of a model fetch from now on."""
    log = Fetched()
    for holder in {layer.holder for layer in fetching(model)}:
        holder.kept = Counted(holder.kept, log)
    return log


def fetching(model: nn.Module) -> list[FetchingLayer]:
    return [m for m in model.modules() if isinstance(m, FetchingLayer)]


def offloaded(name: str = "tied") -> nn.Module:
    return frozen.offload(BASES[name][0](), "cpu")


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("method", EXACT)
def test_every_exact_method_gives_the_meta_gradient_of_the_plain_model(
    method: str, chunk: int | None
) -> None:
    model = offloaded()
    log = counted(model)
    learner = maml("tied", model, EXACT[method], tasks_chunk=chunk)
    learner(words()).loss.backward()
    assert relative(gradients(learner), expected("tied")) < 1e-12
    assert len(set(log.names)) == 3, "one weight is tied, and kept once"
    # Of what is fetched nothing is left when the next weight comes, nor when all is done.
    assert log.most == 1
    assert all(x.expired() for x in log.alive)


@needs_libraries
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("llama", "unrolled"),
        pytest.param("llama", "mixed-mode", marks=pytest.mark.slow),
        pytest.param("gpt2", "checkpointed", marks=pytest.mark.slow),
    ],
)
def test_models_of_transformers(name: str, method: str) -> None:
    model = offloaded(name)
    assert not [n for n, p in model.named_parameters() if p.ndim == 2 and not p.requires_grad]
    learner = maml(name, model, EXACT[method])
    learner(BASES[name][1]()).loss.backward()
    assert relative(gradients(learner), expected(name)) < 1e-12


@pytest.mark.parametrize("name", ["FirstOrder", "Truncated"])
def test_approximate_methods_give_what_they_give_with_the_plain_model(name: str) -> None:
    method = {"FirstOrder": fm.gradients.FirstOrder(), "Truncated": fm.gradients.Truncated(1)}[name]
    found = []
    for model in (tied(), offloaded()):
        learner = maml("tied", model, method)
        learner(words()).loss.backward()
        found.append(gradients(learner))
    assert relative(found[1], found[0]) < 1e-12


@pytest.mark.parametrize(
    ("method", "times"),
    [
        (fm.gradients.FirstOrder(), 2 * STEPS + 2),
        (fm.gradients.Unrolled(), 4 * STEPS + 2),
        (fm.gradients.Checkpointed(), 6 * STEPS + 2),
        (fm.gradients.MixedMode(), 6 * STEPS + 2),
    ],
)
def test_how_often_a_weight_is_fetched_for_all_tasks(
    method: fm.gradients.GradientMethod, times: int
) -> None:
    """As docs/how_to/sharded_bases.md says."""
    model = offloaded()
    learner = maml("tied", model, method, tasks_chunk=TASKS)
    learner(words())  # which plans
    log = counted(model)
    learner(words())
    assert log.names.count("words.weight") == log.names.count("second.base.weight") == times
    # What stands below all that adapts is not gone back through.
    assert log.names.count("first.base.weight") <= times / 2


def test_a_model_may_be_offloaded_after_it_was_recorded() -> None:
    learner = maml("tied", tied(), None)
    learner(words())
    frozen.offload(learner.module, "cpu")
    log = counted(learner.module)
    learner(words()).loss.backward()
    assert relative(gradients(learner), expected("tied")) < 1e-12
    assert log.names


def test_it_runs_eagerly_and_says_why() -> None:
    learner = maml("tied", offloaded(), None)
    assert "fetched whenever a layer runs" in str(learner.explain(words()))
    with pytest.raises(RuntimeError, match="fetched whenever a layer runs"):
        maml("tied", offloaded(), None, executor="captured")(words())


def test_the_other_ways_to_run_a_model() -> None:
    """Evaluation, a learner of one's own, learn2learn's verbs, and a learner for a new task."""
    models = tied(), offloaded()
    plain, away = (maml("tied", m, fm.gradients.Unrolled(), executor="eager") for m in models)
    torch.testing.assert_close(plain.evaluate(words()).losses, away.evaluate(words()).losses)
    one = words()[:1]
    inputs, targets = one.support.inputs[0], one.support.targets[0]
    outputs, found = [], []
    for learner in (plain, away):
        outputs.append(learner.adapt_to(fm.Batch(inputs, targets))(inputs))
        copied = learner.clone()
        copied.adapt(F.cross_entropy(copied(inputs), targets))
        F.cross_entropy(copied(inputs), targets).backward()
        found.append(gradients(learner))
    torch.testing.assert_close(outputs[0], outputs[1])
    assert relative(found[1], found[0]) < 1e-12


def test_state_dicts_are_those_of_the_plain_model() -> None:
    plain, model = tied().state_dict(), offloaded()
    state = model.state_dict()
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[name], plain[name]) for name in plain)
    tied().load_state_dict(state)

    copied = copy.deepcopy(model)
    assert copied.words.kept is model.words.kept, "a copy of the model has its base in common"
    copied.load_state_dict({name: 2 * x for name, x in plain.items()})
    assert torch.equal(copied.state_dict()["words.weight"], 2 * plain["words.weight"])
    assert torch.equal(model.state_dict()["words.weight"], plain["words.weight"])
    assert model.words.kept is model.out.kept
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(words().support.inputs[0]), model(words().support.inputs[0]))

    del state["first.base.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*first\.base\.weight"):
        model.load_state_dict(state)
    state["first.base.weight"] = torch.ones(2, 2)
    with pytest.raises(RuntimeError, match=r"size mismatch for first\.base\.weight"):
        model.load_state_dict(state)


def test_a_tied_weight_that_is_loaded_is_still_kept_once() -> None:
    plain, model = tied(), offloaded()
    other = {name: x + 1 for name, x in plain.state_dict().items()}
    other["out.weight"] = other["words.weight"] + 1  # of two that differ the last one holds
    numbers = words().support.inputs[0]
    for state in (plain.state_dict(), other):
        for assign in (False, True):
            tied_again = copy.deepcopy(model)
            tied_again.load_state_dict(state, assign=assign)
            assert tied_again.words.kept is tied_again.out.kept
            assert torch.equal(tied_again.out.kept.state(), state["out.weight"])
    plain.load_state_dict(other)
    model.load_state_dict(other)
    torch.testing.assert_close(model(numbers), plain(numbers))
    assert pickle.loads(pickle.dumps(model)).words.kept.shape == (11, 6)

    other = {name: x.clone() for name, x in tied().state_dict().items()}
    model.load_state_dict(other, assign=True)
    assert model.first.base.kept.state().data_ptr() == other["first.base.weight"].data_ptr()
    model.load_state_dict(other)
    assert model.first.base.kept.state().data_ptr() != other["first.base.weight"].data_ptr()
    model.load_state_dict({name: x.float() for name, x in other.items()})
    assert model.out.kept.state().dtype is torch.float64
    with pytest.raises(RuntimeError, match=r"words.weight is torch.float32.*assign=True cannot"):
        model.load_state_dict({name: x.float() for name, x in other.items()}, assign=True)
    with pytest.raises(RuntimeError, match=r"words.weight is on the device meta"):
        model.load_state_dict({name: x.to("meta") for name, x in other.items()}, assign=True)


@pytest.mark.parametrize("wrong", [-1, WORDS])
def test_a_row_that_is_not_there_is_an_index_error(wrong: int) -> None:
    """Negative ones do not count from the end."""
    model = offloaded()
    table, numbers = model.words, torch.tensor([[1, wrong], [0, 2]])
    with pytest.raises(IndexError, match=rf"words\.weight has the rows 0 to 10, and row {wrong} "):
        table(numbers)
    with pytest.raises(IndexError, match="index out of range"):
        torch.func.vmap(table)(numbers)
    for part in ("support", "query"):
        data = words()
        getattr(data, part).inputs[1, 2, 3] = wrong
        for chunk in (TASKS, 1):
            with pytest.raises(IndexError, match="index out of range"):
                maml("tied", model, fm.gradients.Checkpointed(), tasks_chunk=chunk)(data)
    assert table(torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3, 6)
    assert torch.equal(table(numbers[1].int()), tied().words(numbers[1]))
    with pytest.raises(RuntimeError, match="scalar types: Long, Int"):
        table(torch.tensor([True, False]))  # a mask it would be


def test_autocast_computes_in_its_dtype_forwards_and_backwards() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    for p in plain[2].parameters():
        p.requires_grad_(False)
    away = frozen.offload(copy.deepcopy(plain), "cpu")
    x = torch.randn(5, 4)
    found = []
    for model in (plain, away):
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        y.float().square().sum().backward()
        found.append((y, model[0].weight.grad))
    assert found[1][0].dtype is torch.bfloat16
    torch.testing.assert_close(found[1], found[0], rtol=2**-7, atol=1e-2)


@pytest.mark.parametrize("columns", [False, True])
def test_the_product_has_every_derivative(columns: bool) -> None:
    w = torch.randn(3, 4, dtype=torch.float64)
    kept = OnHost("w", w, pinned=False)
    x = torch.randn(2, 3 if columns else 4, dtype=torch.float64, requires_grad=True)

    def cubed(x: Tensor) -> Tensor:
        return product(x, kept, columns, torch.float64).pow(3)

    assert torch.equal(product(x, kept, columns, torch.float64), x @ (w if columns else w.mT))
    assert torch.autograd.gradcheck(cubed, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(cubed, x, check_fwd_over_rev=True, check_rev_over_rev=True)


def test_only_frozen_weights_may_lie_elsewhere() -> None:
    with pytest.raises(ValueError, match=r"layers='first\.\*'.*trained \(first.down, first.up\)"):
        frozen.offload(tied(), "cpu", layers="first.*")
    with pytest.raises(ValueError, match="no layer that layers='third' names"):
        frozen.offload(tied(), "cpu", layers="third")
    with pytest.raises(ValueError, match=r"no layer of Sequential .*requires_grad_\(False\)"):
        frozen.offload(nn.Sequential(nn.Linear(2, 2)), "cpu")
    with pytest.raises(ValueError, match="Tied lie elsewhere already"):
        frozen.offload(offloaded(), "cpu")
    with pytest.raises(ValueError, match="model is a str"):
        frozen.offload("model", "cpu")
    with pytest.raises(ValueError, match="device='meta'"):
        frozen.offload(tied(), "meta")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="pin=True"):
            frozen.offload(tied(), "cpu", pin=True)
    only = frozen.offload(tied(), "cpu", layers="*.base")
    assert len(fetching(only)) == 2


def test_layers_that_would_become_others_are_refused() -> None:
    hooked = tied()
    hooked.out.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="the layer out has _forward_hooks"):
        frozen.offload(hooked, "cpu")
    patched = tied()
    patched.out.forward = lambda x: x
    with pytest.raises(ValueError, match="the layer out has a forward of its own"):
        frozen.offload(patched, "cpu")
    with pytest.raises(ValueError, match="is on the device meta"):
        frozen.offload(tied().to("meta"), "cpu")
    assert not fetching(hooked)
    assert not fetching(patched)


def test_a_weight_that_is_elsewhere_is_neither_read_nor_written() -> None:
    """Merging an adapter into it, say, would be lost."""
    layer = offloaded().first.base
    weight = layer.weight
    assert (weight.shape, weight.dtype, weight.device.type) == ((7, 6), torch.float64, "cpu")
    assert isinstance(weight, Tensor)
    assert not weight.requires_grad
    for use in (
        lambda: F.linear(torch.ones(1, 6).double(), weight),
        lambda: weight + 1,
        lambda: weight.data,
        lambda: weight.add_(1),
        lambda: setattr(weight, "data", torch.ones(7, 6)),
        lambda: weight.to("cpu", torch.float32),
        lambda: weight[0],
        lambda: weight.tolist(),
    ):
        with pytest.raises(RuntimeError, match=r"first\.base\.weight lies elsewhere"):
            use()
    with pytest.raises((AttributeError, KeyError), match="weight"):
        layer.weight = nn.Parameter(torch.ones(7, 6))


@needs_libraries
def test_adapters_are_saved_and_not_merged(tmp_path: Path) -> None:
    from fastmaml.integrations.transformers import save_pretrained

    model = offloaded("llama")
    assert save_pretrained(model, tmp_path) == "adapter"
    merging = next(m for m in model.modules() if hasattr(m, "lora_A"))
    for safe in (False, True):
        with pytest.raises(RuntimeError, match="lies elsewhere"):
            merging.merge(safe_merge=safe)


def test_another_dtype_is_named() -> None:
    with pytest.raises(ValueError, match=r"words\.weight is torch.float64 .*become torch.float32"):
        offloaded().float()
    with pytest.raises(ValueError, match=r"base\.weight is torch.float64.*input torch.float32"):
        offloaded().first(torch.ones(2, 6))


def test_a_learned_bias_gets_its_gradient() -> None:
    learner = maml("tied", offloaded(), None)
    learner(words()).loss.backward()
    bias = dict(learner.module.named_parameters())["first.base.bias"]
    assert bias.grad is not None
    assert bias.grad.any()
