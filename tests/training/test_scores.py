"""Metrics of an evaluation: the mean of every task's own value, by data set and over all."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import fastmaml as fm
from fastmaml.episodes.named import NamedEpisodes
from fastmaml.training.evaluation import Evaluation, evaluate
from fastmaml.training.intervals import half_width
from fastmaml.training.metrics import Answers, Metric, chosen
from fastmaml.training.shown import show_evaluation, validation_line

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

KINDS = {"pairs": 2, "triples": 3, "values": 1}
STEPS = 2


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch(names: tuple[str, ...], seed: int, examples: int = 9) -> NamedEpisodes:
    """Tasks of a mixture: their labels and values have to do with their inputs."""

    def part(seed: int) -> fm.Batch:
        inputs = drawn(len(names), examples, 4, seed=seed)
        classes = torch.tensor([[KINDS[name]] for name in names])
        labels = (3 * inputs[..., 0].sigmoid()).long() % classes
        targets = {"labels": labels, "values": inputs[..., 1].tanh(), "classes": classes}
        return fm.Batch(inputs, targets)

    return NamedEpisodes(part(seed), part(seed + 1), names)


BATCHES = [
    batch(("pairs", "values", "pairs"), 0),
    batch(("triples", "pairs", "values"), 2),
    batch(("triples", "triples", "pairs"), 4),
]


def learner() -> fm.MAML:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return fm.MAML(model, 0.3, loss=fm.losses.classification, executor="eager")


def episodes(count: int = 3) -> Iterator[NamedEpisodes]:
    return (one.to(dtype=torch.float64) for one in BATCHES[:count])


def by_hand(metric: Metric, count: int = 9) -> list[tuple[str, list[float]]]:
    """Of each task that the metric is of: its name, and the values after 0, 1, 2 steps."""
    found: list[tuple[str, list[float]]] = []
    maml = learner()
    seen = 0
    for one in episodes():
        for task in range(len(one)):
            seen += 1
            if seen > count:
                break
            outputs = maml.evaluate_each_step(one[task], STEPS)
            targets = {k: v[0] for k, v in one[task].query.targets.items()}
            answers = [Answers(x.outputs[0], targets, x.losses.item()) for x in outputs]
            if answers[0].kind in metric.kinds:
                values = [metric.value(x) for x in answers]
                found.append((one.names[task], [float(x) for x in values if x is not None]))
    return found


def equals(found: Evaluation, rows: list[list[float]]) -> None:
    table = torch.tensor(rows, dtype=torch.float64)
    assert found.episodes == len(rows)
    assert found.means == pytest.approx(table.mean(0).tolist(), rel=1e-9)
    halves = half_width(table.std(0), len(rows)).tolist()
    assert found.intervals == pytest.approx(halves, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("count", [9, 7])
def test_values_averaged_equal_those_by_hand(count: int) -> None:
    names = "f1,matthews,accuracy,pearson,spearman,loss"
    found = evaluate(learner(), episodes(), count, STEPS, metrics=names)
    assert list(found.scores) == names.split(",")
    for metric in chosen(names).everywhere:
        rows = by_hand(metric, count)
        score = found.scores[metric.name]
        equals(score, [values for _, values in rows])
        own = {name: [v for n, v in rows if n == name] for name in KINDS}
        for name, values in own.items():
            assert (metric.name in found.by_name[name].scores) == bool(values)
            if values:
                equals(found.by_name[name].scores[metric.name], values)
        having = [name for name in found.by_name if own[name]]
        means = [found.by_name[n].scores[metric.name].means for n in having]
        if len(having) == 1:
            assert score.over_names is None
            continue
        assert score.over_names is not None
        assert set(score.over_names.names) == set(having)
        for step, each in enumerate(zip(*means, strict=True)):
            assert score.over_names.means[step] == pytest.approx(statistics.mean(each))
            half = half_width(statistics.stdev(each), len(each))
            assert score.over_names.intervals[step] == pytest.approx(half)


def test_what_was_measured_before_stays() -> None:
    plain = evaluate(learner(), episodes(), 9, STEPS)
    more = evaluate(learner(), episodes(), 9, STEPS, metrics="f1,loss")
    assert (plain.metric, plain.episodes, plain.scores) == ("accuracy", 7, {})
    assert plain.chance == pytest.approx((4 / 2 + 3 / 3) / 7)
    without = replace(more, scores={})
    names = {name: replace(one, scores={}) for name, one in more.by_name.items()}
    assert replace(without, by_name=names) == plain
    assert plain.over_names is not None
    accuracies = [plain.by_name[name].means[-1] for name in ("pairs", "triples")]
    assert plain.over_names.means[-1] == pytest.approx(sum(accuracies) / 2)
    assert plain.over_names.means[-1] != pytest.approx(plain.means[-1])
    t = 12.7062047  # two data sets: one degree of freedom
    half = t * abs(accuracies[0] - accuracies[1]) / 2
    assert plain.over_names.intervals[-1] == pytest.approx(half)
    old, new = plain.as_dict(), more.as_dict()
    assert {k: v for k, v in new.items() if k not in ("scores", "by_name")} == {
        k: v for k, v in old.items() if k != "by_name"
    }
    assert json.loads(json.dumps(new["scores"]["f1"]))["f1"] == more.scores["f1"].means[-1]
    assert new["by_name"]["values"]["scores"].keys() == {"loss"}
    assert new["over_names"]["accuracy"] == plain.over_names.means[-1]


def test_metrics_by_the_name_of_a_data_set() -> None:
    wanted = {"pairs": "matthews", "values": ["pearson", "loss"], "none of these": "f1"}
    found = evaluate(learner(), episodes(), 9, STEPS, metrics=wanted)
    by_name = {name: list(one.scores) for name, one in found.by_name.items()}
    assert by_name == {"pairs": ["matthews"], "values": ["pearson", "loss"], "triples": []}
    assert list(found.scores) == ["matthews", "pearson", "loss"]
    assert {name: one.episodes for name, one in found.scores.items()} == {
        **{"matthews": 4, "pearson": 2, "loss": 2},
    }


@dataclass(frozen=True)
class Margin(Metric):
    """A user's own: how far the right class is above the best of the others."""

    name = "margin"
    kinds = ("classification",)

    def value(self, answers: Answers) -> float | None:
        if answers.classes == 3:
            return None
        logits = answers.logits[:, : answers.classes]
        right = logits.gather(1, answers.labels[:, None])
        return float((2 * right - logits.sum(1, keepdim=True)).mean())


def test_a_metric_of_a_users_own_says_what_it_is_of() -> None:
    found = evaluate(learner(), episodes(), 9, STEPS, metrics=["accuracy", Margin()])
    assert found.scores["margin"].episodes == 4
    assert found.scores["accuracy"].episodes == 7
    assert "margin" not in found.by_name["triples"].scores


def test_a_nan_is_no_task_that_is_left_out() -> None:
    maml = learner()
    with torch.no_grad():
        next(iter(maml.module.parameters())).fill_(math.inf)
    found = evaluate(maml, episodes(), 9, 0, metrics="pearson")
    assert found.scores["pearson"].episodes == 2
    assert math.isnan(found.scores["pearson"].means[0])


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (
            "f1,perplexity",
            "'perplexity', which is of tokens, and these tasks are classification or",
        ),
        ({"pairs": "pearson"}, "'pearson', which is of regression, and these tasks are classific"),
        ({"cola": "f1"}, "names the data sets cola, and the tasks are pairs, values, triples"),
        ("f1,precision", "metrics has 'precision': choose from"),
    ],
)
def test_a_metric_of_no_task_at_all(metrics: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(learner(), episodes(), 9, STEPS, metrics=metrics)


def test_tasks_without_names() -> None:
    plain = (fm.Episodes(one.support, one.query) for one in episodes())
    with pytest.raises(ValueError, match="names the data sets pairs, and the tasks are without"):
        evaluate(learner(), plain, 3, STEPS, metrics={"pairs": "f1"})


VOCABULARY, LENGTH = 7, 5


def causal(output: Any, labels: Tensor) -> Tensor:
    logs = output["logits"][:, :-1].log_softmax(-1)
    labels = labels[:, 1:]
    there = labels != -100
    picked = logs.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    return -(picked * there).sum() / there.sum()


class Bigrams(nn.Module):
    """The next token by the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, VOCABULARY)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": self.table(inputs)}


def test_tokens_of_a_causal_language_model() -> None:
    """Texts that count upwards: learned by one large step; the loss's exponential is perplexity."""
    torch.manual_seed(0)
    inputs = (torch.arange(4)[:, None] + torch.arange(LENGTH)) % VOCABULARY
    labels = inputs.clone()
    labels[:, :2] = -100
    tasks = fm.Batch(inputs.expand(3, 4, LENGTH), labels.expand(3, 4, LENGTH))
    maml = fm.MAML(Bigrams(), 50.0, loss=causal, executor="eager")
    names = "exact_match,perplexity,loss,accuracy"
    found = evaluate(maml, iter([fm.Episodes(tasks, tasks)]), 3, 1, metrics=names)
    scores = {name: one.means for name, one in found.scores.items()}
    assert (found.metric, found.chance) == ("loss", None)
    assert scores["loss"] == found.means
    assert scores["perplexity"] == pytest.approx([math.exp(x) for x in found.means], rel=1e-5)
    assert scores["exact_match"][0] < 1
    assert scores["exact_match"][1] == scores["accuracy"][1] == 1
    with pytest.raises(ValueError, match="'f1', which is of classification, and these tasks are t"):
        evaluate(maml, iter([fm.Episodes(tasks, tasks)]), 3, 1, metrics="f1")
    nothing = fm.Batch(tasks.inputs, torch.full_like(tasks.targets, -100))
    batches = iter([fm.Episodes(tasks, nothing)])
    with pytest.raises(ValueError, match="'exact_match', which found nothing to measure in any"):
        evaluate(maml, batches, 3, 1, metrics="exact_match")


def shown(found: Evaluation) -> str:
    console = Console(width=120)
    with console.capture() as printed:
        show_evaluation(console, found, "a title")
    return printed.get()


def test_the_tables() -> None:
    found = evaluate(learner(), episodes(), 9, STEPS, metrics="f1,pearson,loss")
    by_steps, by_name = shown(found).split("over 7 episodes")
    assert "query accuracy" in by_steps
    assert found.scores["f1"].text(1) in by_steps
    assert "pearson" not in by_steps, "it is of some of the names only"
    rows = [line.split("│") for line in by_name.splitlines() if "│" in line]
    cells = {(row[1].strip(), row[2].strip()): row[4].strip() for row in rows}
    assert cells["values", "pearson"] == found.by_name["values"].scores["pearson"].text()
    assert cells["pairs", "accuracy"] == found.by_name["pairs"].text()
    over = found.scores["loss"].over_names
    assert over is not None
    assert cells["mean of 3", "loss"] == f"{over.means[-1]:.3g} ± {over.intervals[-1]:.2g}"
    assert ("mean of 2", "f1") in cells
    assert ("mean of 1", "pearson") not in cells


def test_a_single_episode_has_no_interval() -> None:
    first = next(episodes())
    one = fm.Episodes(first.support, first.query)
    found = evaluate(learner(), iter([one]), 1, STEPS)
    kept = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert kept["per_step_interval_95"] == [None] * (STEPS + 1)
    printed = shown(found)
    assert "one episode" in printed
    assert "nan" not in printed
    assert "±" not in printed


def test_without_names_every_metric_is_in_one_table() -> None:
    plain = (fm.Episodes(one.support, one.query) for one in episodes())
    printed = shown(evaluate(learner(), plain, 9, STEPS, metrics="pearson"))
    assert "query pearson" in printed
    (episodes_line,) = (line for line in printed.splitlines() if "│ episodes" in line)
    counts = [x.strip() for x in episodes_line.split("│") if x.strip().isdecimal()]
    assert counts == ["7", "2"]


def test_the_line_of_a_validation() -> None:
    found = evaluate(learner(), episodes(), 9, STEPS, metrics="accuracy,matthews")
    said = validation_line({"iteration": 3, "validation": found.as_dict()})
    before = f"{100 * found.means[0]:.1f}%"
    assert said.startswith(f"iteration 3: validation accuracy {found.text()} (before adaptation ")
    assert before in said
    assert said.count("accuracy") == 1
    assert f", matthews {found.scores['matthews'].text()} (" in said


@dataclass
class Again:
    """The batches over and over."""

    at: int = 0

    def __iter__(self) -> Iterator[fm.Episodes]:
        while True:
            self.at += 1
            yield BATCHES[self.at % 3].to(dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def trained(out: Path, metrics: Any) -> dict[str, Any]:
    config = fm.LoopConfig(
        out=str(out), iterations=2, evaluate_every=1, validation_episodes=6, test_episodes=6,
        plots=False,
    )  # fmt: skip
    trainer = fm.MetaTrainer(
        learner(), Again(), config=config, validation=Again(), test=Again(), screen=False,
        metrics=metrics,
    )  # fmt: skip
    found = trainer.fit()
    assert found is not None
    written = json.loads((out / "result.json").read_text())["test"]
    assert written == json.loads(json.dumps(found.as_dict()))
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    return {"test": written, "validations": [x["validation"] for x in lines]}


def test_the_trainer_measures_in_validation_and_test(tmp_path: Path) -> None:
    plain, more = trained(tmp_path / "a", None), trained(tmp_path / "b", "f1,matthews")
    assert "scores" not in plain["test"]
    assert more["test"]["scores"].keys() == {"f1", "matthews"}
    assert [x["scores"].keys() for x in more["validations"]] == 3 * [{"f1", "matthews"}]
    assert more["test"]["accuracy"] == plain["test"]["accuracy"]


def test_the_trainer_says_before_training_what_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="metrics has 'f2'"):
        trained(tmp_path, "f2")
    with pytest.raises(ValueError, match="'perplexity', which is of tokens"):
        trained(tmp_path, "perplexity")
    assert not (tmp_path / "last.safetensors").exists(), "the first validation has said so"
