"""learn2learn's modules for Lightning train, validate and test as loops written by hand."""

from __future__ import annotations

import argparse
import importlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from places import EXAMPLES
from problems import tensor
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import fastmaml.compat.learn2learn as l2l

pl = pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
algorithms = importlib.import_module("fastmaml.compat.learn2learn.algorithms.lightning")
tools = importlib.import_module("fastmaml.compat.learn2learn.utils.lightning")

pytestmark = [
    # Lightning's use of torch's and its own older names, and its advice.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:pytorch_lightning"),
]
WAYS, SHOTS, QUERIES, STEPS, RATE = 3, 2, 1, 2, 0.4
SIZES = {
    f"{mode}_{name}": size
    for mode in ("train", "test")
    for name, size in (("ways", WAYS), ("shots", SHOTS), ("queries", QUERIES))
}
OPTIONS = {**SIZES, "adaptation_steps": STEPS, "adaptation_lr": RATE}
Task = tuple[Tensor, Tensor]


class Tasks:
    """One task after another of a fixed list, made anew where they are asked for."""

    def __init__(self, seed: int, number: int = 4) -> None:
        labels = torch.arange(WAYS).repeat_interleave(SHOTS + QUERIES)
        self.tasks = [(tensor(len(labels), 4, seed=10 * seed + i), labels) for i in range(number)]
        self.next = itertools.cycle(range(number))

    def sample(self) -> Task:
        x, y = self.tasks[next(self.next)]
        return x * 1, y * 1  # in inference mode, tensors that cannot be recorded


def batcher(**options: Any) -> Any:
    return tools.EpisodicBatcher(Tasks(1), Tasks(2), Tasks(3), **{"epoch_length": 4, **options})


def trainer(**options: Any) -> Any:
    quiet = {f"enable_{name}": False for name in ("checkpointing", "progress_bar", "model_summary")}
    given = {"max_epochs": 2, "num_sanity_val_steps": 0, "accumulate_grad_batches": 2, **options}
    return pl.Trainer(accelerator="cpu", **{"logger": False, **quiet, **given})


def network() -> nn.Sequential:
    torch.manual_seed(0)
    features = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    return nn.Sequential(features, nn.Linear(6, WAYS)).double()


def halves(x: Tensor, y: Tensor) -> tuple[Task, Task]:
    support = torch.arange(len(y)) % (SHOTS + QUERIES) < SHOTS
    return (x[support], y[support]), (x[~support], y[~support])


def adapted(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    theta = dict(model.named_parameters())
    for _ in range(STEPS):
        loss = F.cross_entropy(functional_call(model, theta, x), y)
        grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        theta = {n: p - RATE * g for (n, p), g in zip(theta.items(), grads, strict=True)}
    return lambda query: functional_call(model, theta, query)


def of_maml(net: nn.Sequential, task: Task) -> tuple[Tensor, Tensor]:
    support, (x, y) = halves(*task)
    logits = adapted(net, *support)(x)
    return F.cross_entropy(logits, y), (logits.argmax(1) == y).double().mean()


def of_anil(net: nn.Sequential, task: Task) -> tuple[Tensor, Tensor]:
    support, (x, y) = halves(net[0](task[0]), task[1])
    logits = adapted(net[1], *support)(x)
    return F.cross_entropy(logits, y), (logits.argmax(1) == y).double().mean()


def of_prototypes(net: nn.Sequential, task: Task) -> tuple[Tensor, Tensor]:
    (x, y), (query, wanted) = halves(net[0](task[0]), task[1])
    means = torch.stack([x[y == c].mean(0) for c in range(WAYS)])
    logits = -torch.cdist(query, means).square()
    return F.cross_entropy(logits, wanted), (logits.argmax(1) == wanted).double().mean()


def of_machines(net: nn.Sequential, task: Task) -> tuple[Tensor, Tensor]:
    (x, y), (query, wanted) = halves(net[0](task[0]), task[1])
    logits = l2l.nn.SVClassifier(x, y, ways=WAYS)(query)
    return F.cross_entropy(logits, wanted), (logits.argmax(1) == wanted).double().mean()


MODULES = {
    "LightningMAML": (lambda net, **o: algorithms.LightningMAML(net, **o), of_maml),
    "LightningANIL": (lambda net, **o: algorithms.LightningANIL(net[0], net[1], **o), of_anil),
    "LightningPrototypicalNetworks": (
        lambda net, **o: algorithms.LightningPrototypicalNetworks(net[0], **o),
        of_prototypes,
    ),
    "LightningMetaOptNet": (
        lambda net, **o: algorithms.LightningMetaOptNet(net[0], **o),
        of_machines,
    ),
}


def means(net: nn.Sequential, one: Any, seed: int) -> tuple[float, float]:
    loss, accuracy = torch.tensor([[v.item() for v in one(net, t)] for t in Tasks(seed).tasks]).T
    return loss.mean().item(), accuracy.mean().item()


@pytest.mark.parametrize("name", MODULES)
def test_training_is_the_loop_by_hand(name: str) -> None:
    """Two epochs of two meta-batches of two tasks, Adam and its decaying rate, to 1e-10."""
    make, one = MODULES[name]
    module = make(network(), **OPTIONS, lr=0.05, scheduler_step=1, scheduler_decay=0.5)
    fit = trainer()
    fit.fit(module, batcher())
    net = network()
    used = list(
        net.parameters() if name in {"LightningMAML", "LightningANIL"} else net[0].parameters()
    )
    tasks, rate = Tasks(1).tasks, 0.05
    opt = torch.optim.Adam(used, rate)
    for epoch in range(2):
        opt.param_groups[0]["lr"] = rate * 0.5**epoch
        losses = []
        for pair in (tasks[:2], tasks[2:]):
            found = [one(net, task)[0] for task in pair]
            losses += [loss.item() for loss in found]
            for p, g in zip(used, torch.autograd.grad(sum(found) / 2, used), strict=True):
                p.grad = g
            opt.step()
    for p, by_hand in zip(module.parameters(), used, strict=True):
        torch.testing.assert_close(p, by_hand, rtol=1e-10, atol=1e-12)
    found = {name: value.item() for name, value in fit.callback_metrics.items()}
    wanted = [f"{kind}_{what}" for kind in ("train", "valid") for what in ("loss", "accuracy")]
    assert sorted(found) == sorted(wanted)
    assert found["train_loss"] == pytest.approx(sum(losses) / 4, rel=1e-6)
    measured = [found["valid_loss"], found["valid_accuracy"]]
    assert measured == pytest.approx(means(net, one, 2), rel=1e-6)
    tested = fit.test(module, batcher(), verbose=False)[0]
    assert list(tested) == ["test_loss", "test_accuracy"]
    assert list(tested.values()) == pytest.approx(means(net, one, 3), rel=1e-6)
    assert fit.validate(module, batcher(), verbose=False)[0] == pytest.approx(
        {"valid_loss": measured[0], "valid_accuracy": measured[1]}
    )


def test_a_module_of_ones_own_adapts_in_inference_mode() -> None:
    """Its meta_learn is written as for an older Lightning, with gradients enabled and no more."""

    class Own(algorithms.LightningEpisodicModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = l2l.algorithms.MAML(network(), RATE)

        @torch.enable_grad()
        def meta_learn(
            self, batch: Task, index: int, ways: int, shots: int, queries: int
        ) -> tuple[Tensor, Tensor]:
            assert [ways, shots, queries] == [5, 1, 1], "the class's own sizes"
            learner = self.model.clone()
            for _ in range(STEPS):
                (x, y), (query, wanted) = halves(*batch)
                learner.adapt(F.cross_entropy(learner(x), y))
            logits = learner(query)
            return F.cross_entropy(logits, wanted), l2l.utils.accuracy(logits, wanted)

    found = trainer().test(Own(), batcher(), verbose=False)[0]
    assert list(found.values()) == pytest.approx(means(network(), of_maml, 3), rel=1e-6)
    with pytest.raises(NotImplementedError, match="LightningEpisodicModule has no meta_learn"):
        algorithms.LightningEpisodicModule().training_step(Tasks(1).sample(), 0)


def test_gradients_are_enabled_where_they_are_not() -> None:
    module = algorithms.LightningMAML(network(), **OPTIONS)
    with torch.no_grad():
        loss, _ = module.meta_learn(Tasks(1).sample(), 0, WAYS, SHOTS, QUERIES)
    expected, _ = of_maml(network(), Tasks(1).tasks[0])
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_tasks_of_other_sizes() -> None:
    module, task = algorithms.LightningMAML(network(), **OPTIONS), Tasks(1).sample()
    with pytest.warns(UserWarning, match=r"9 examples, but ways=3, shots=1 and queries=1 make 6"):
        loss, _ = module.meta_learn(task, 0, 3, 1, 1)
    rows = torch.tensor([i in {0, 2, 4} for i in range(9)])  # of whatever classes they are
    logits = adapted(network(), task[0][rows], task[1][rows])(task[0][~rows])
    torch.testing.assert_close(loss, F.cross_entropy(logits, task[1][~rows]))
    prototypes = algorithms.LightningPrototypicalNetworks(network()[0], **OPTIONS)
    for given, sizes in ((module, (3, 3, 1)), (prototypes, (4, 2, 1)), (module, (3, 3, 0))):
        text = "ways={} classes of shots={} and queries={} ".format(*sizes)
        with pytest.raises(ValueError, match=rf"a task of 9 examples cannot have {text}.*train_"):
            given.meta_learn(task, 0, *sizes)


def test_prototypes_take_tasks_in_any_order_and_a_batch_of_one() -> None:
    module = algorithms.LightningPrototypicalNetworks(network()[0], **OPTIONS)
    x, y = Tasks(1).sample()
    order = torch.tensor([0, 3, 6, 1, 4, 7, 2, 5, 8])
    expected = of_prototypes(network(), (x, y))[0]
    for task in ((x[order], y[order]), (x[None], y[None])):
        loss = module.meta_learn(task, 0, WAYS, SHOTS, QUERIES)[0]
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_a_loss_of_ones_own() -> None:
    for make, _ in MODULES.values():
        module = make(network(), loss=lambda x, y: 2 * F.cross_entropy(x, y), **OPTIONS)
        plain = make(network(), **{**OPTIONS, "adaptation_lr": 2 * RATE})
        task = Tasks(1).sample()
        loss, expected = (m.meta_learn(task, 0, WAYS, SHOTS, QUERIES)[0] for m in (module, plain))
        torch.testing.assert_close(loss, 2 * expected)


def test_options_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser(conflict_handler="resolve")
    parser.add_argument("--root", default="~")
    for name in MODULES:
        parser = getattr(algorithms, name).add_model_specific_args(parser)
    line = ["--lr", "0.5", "--train_ways", "3", "--test_ways", "3", "--svm_C_reg", "2"]
    given = vars(parser.parse_args(line))
    assert given == {
        **{"train_ways": 3, "train_shots": 1, "train_queries": 1, "test_ways": 3, "test_shots": 1},
        **{"test_queries": 1, "lr": 0.5, "scheduler_step": 20, "scheduler_decay": 1.0},
        **{"adaptation_steps": 1, "adaptation_lr": 0.1, "distance_metric": "euclidean"},
        **{"svm_C_reg": 2.0, "svm_max_iters": 15, "data_parallel": False, "root": "~"},
    }
    for name, (make, _) in MODULES.items():
        module = make(network(), **given)
        assert module.lr == 0.5
        assert set(module.hparams) == set(getattr(algorithms, name)._arguments)
    with pytest.raises(ValueError, match="train_ways=5 and test_ways=3"):
        algorithms.LightningMAML(network(), test_ways=3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="data_parallel=True"):
        algorithms.LightningANIL(*network(), data_parallel=True)


def test_a_checkpoint_brings_the_options_back(tmp_path: Path) -> None:
    module, fit = algorithms.LightningMAML(network(), **OPTIONS, lr=0.05), trainer(max_epochs=1)
    fit.fit(module, batcher())
    fit.save_checkpoint(tmp_path / "kept.ckpt")
    again = algorithms.LightningMAML.load_from_checkpoint(tmp_path / "kept.ckpt", model=network())
    assert again.hparams == module.hparams
    assert again.adaptation_lr == again.model.lr == RATE
    for a, b in zip(again.parameters(), module.parameters(), strict=True):
        assert torch.equal(a, b)
    assert next(iter(module.state_dict())) == "model.module.0.0.weight"


def test_task_sets_stand_in_for_one_another() -> None:
    data = tools.EpisodicBatcher("train", epoch_length=3)
    assert [data.validation_tasks, data.test_tasks] == ["train", "train"]
    assert tools.EpisodicBatcher("train", "validation").test_tasks == "validation"
    tasks = Tasks(1)
    loader = tools.EpisodicBatcher.epochify(tasks, 3)
    assert len(loader) == len(list(loader)) == 3
    assert torch.equal(loader[0][0], tasks.tasks[3][0]), "whatever the index, the next one"


def test_testing_after_every_validation() -> None:
    seen: list[dict[str, float]] = []

    class Log(pl.loggers.logger.DummyLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            if "test_loss" in metrics:
                seen.append(metrics)

    callback = tools.TrackTestAccuracyCallback()
    fit = trainer(callbacks=[callback], logger=Log(), num_sanity_val_steps=1)
    module = algorithms.LightningMAML(network(), **OPTIONS)
    fit.fit(module, batcher())
    assert [metrics["epoch"] for metrics in seen] == [0, 1]
    assert fit.callback_metrics["test_loss"].item() == seen[1]["test_loss"]
    fit.validate(module, batcher(), verbose=False)
    again = trainer().test(module, batcher(), verbose=False)[0]
    assert seen[1]["test_loss"] == pytest.approx(again["test_loss"], rel=1e-6)
    assert len(seen) == 2
    with pytest.raises(TypeError, match=r"given LightningMAML and datamodule=None"):
        trainer(callbacks=[callback]).fit(module, batcher().train_dataloader())


def test_the_bar_of_testing_goes() -> None:
    bar = tools.NoLeaveProgressBar()
    bar.disable()
    assert bar.init_test_tqdm().leave is False


def test_the_script_of_the_examples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "compat"))
    main = importlib.import_module("lightning_maml").main
    for name in ("maml", "anil", "protonet"):
        found = main(["--algorithm", name, "--max_epochs", "2", "--adaptation_lr", "0.3"])
        assert 0 <= found["test_accuracy"] <= 1
        assert 0 < found["test_loss"] < 3
    assert capsys.readouterr().out.count("accuracy") == 3
