"""Do the phases of a profile add up to the plain step, and is its memory right?

    python -m benchmarks.programs.profiles [--model FOLDER] [--rounds 5] [--device cuda] [--quick]

`fm.profile` on three meta-steps: digits as ``fastmaml train digits`` has them, Omniglot's conv4-64
(its images from FASTMAML_DATA or ../shared/data, else random ones), and a BERT with the sizes of
MiniLM (the weights in FOLDER, else random ones). Every round is two fresh processes of each. One
times: the sum of the phases beside the step that is measured plainly, the part of the step that no
phase claims, what profiling costs. The other measures memory, in an environment in which malloc
gives freed memory back at once (which makes it slow): the peak of live tensors beside the growth of
the process's resident memory, which the operating system counts and the profiler does not.
Writes benchmarks/results/DEVICE/profiles.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import fastmaml as fm
from benchmarks.programs.convergence import data_folder
from benchmarks.programs.language_memory import CLASSES, episodes
from benchmarks.support.fresh import GIVES_BACK, fresh
from benchmarks.support.results import about, place, save
from fastmaml.measure.profile import Report
from fastmaml.measure.profile.phases import REST
from fastmaml.training.config import TrainConfig
from fastmaml.training.presets import PRESETS
from fastmaml.training.recipes.build import build_episodes, build_maml

TASKS, TEXTS, LENGTH = 4, 8, 32
MINI_LM = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 20_000}
"""Of the BERT of a quick run, which has all the tokens that are drawn."""


class Subject(NamedTuple):
    """What is profiled, with Adam as the outer loop."""

    title: str  # of the report
    details: str
    maml: fm.MAML
    episodes: Iterable[fm.Episodes]


def digits(options: argparse.Namespace) -> Subject:
    config = replace(preset("digits"), device=options.device)
    return Subject(
        config.title,
        f"conv4-{config.filters}, {config.tasks} tasks, K={config.inner_steps}",
        build_maml(config),
        build_episodes(config, "train"),
    )


def omniglot(options: argparse.Namespace) -> Subject:
    filters = 8 if options.quick else 64
    config = replace(preset("omniglot"), device=options.device, tasks=TASKS, filters=filters)
    details = f"conv4-{filters}, {TASKS} tasks, K={config.inner_steps}"
    maml = build_maml(config)
    try:
        found = replace(config, root=str(data_folder("omniglot")), download=False)
        return Subject(config.title, details, maml, build_episodes(found, "train"))
    except FileNotFoundError:
        data = torch.rand(400, 1, 28, 28), torch.arange(40).repeat_interleave(10)
        sizes = {n: getattr(config, n) for n in ("ways", "shots", "queries", "tasks")}
        source = fm.EpisodeSampler(data, **sizes, device=options.device)
        return Subject(config.title, f"{details}, random images", maml, source)


def preset(name: str) -> TrainConfig:
    """What ``fastmaml train`` has."""
    found = PRESETS[name]
    assert isinstance(found, TrainConfig)
    return found


def bert(options: argparse.Namespace) -> Subject:
    """Of random tokens: one task, as its weights are many."""
    torch.manual_seed(0)
    model, weights = classifier(options)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    maml = fm.MAML(model.to(options.device).eval(), 0.01, loss=fm.losses.classification)
    batch = episodes(TEXTS, LENGTH, options.device)
    details = f"{size:.1f} M parameters, {weights}, 1 task of {TEXTS} x {LENGTH} tokens, K=1"
    return Subject("BERT", details, maml, batch)


def classifier(options: argparse.Namespace) -> tuple[nn.Module, str]:
    if options.model:
        from fastmaml.integrations.transformers import sequence_classifier

        return sequence_classifier(options.model, CLASSES, dropout=0.0), "pretrained"
    from transformers import BertConfig, BertForSequenceClassification

    sizes = MINI_LM | (SMALL if options.quick else {})
    return BertForSequenceClassification(BertConfig(num_labels=CLASSES, **sizes)), "random weights"


SUBJECTS: dict[str, Callable[[argparse.Namespace], Subject]] = {
    "digits": digits,
    "omniglot": omniglot,
    "bert": bert,
}


def point(options: argparse.Namespace) -> dict[str, Any]:
    """What one fresh process finds."""
    kind, key = options.point
    subject = SUBJECTS[key](options)
    adam = torch.optim.Adam(subject.maml.parameters(), 1e-3)
    repeats = options.repeats if kind == "time" else 1
    report = fm.profile(subject.maml, subject.episodes, adam, repeats=repeats, title=subject.title)
    found = times(report) if kind == "time" else memory(report)
    title = f"{subject.title}, {subject.details}"
    return {"title": title, "setting": dict(report.setting), **found}


def times(report: Report) -> dict[str, Any]:
    phases = {p.name: p.seconds for p in report.phases if not isinstance(p.seconds, str)}
    plain = report.step_seconds.median
    return {
        "plain_step_s": plain,
        "phases_s": phases,
        "sum_off": sum(phases.values()) / plain - 1,
        "unmarked": report.phase(REST).share,
        "overhead": report.overhead,
        "text": str(report),
    }


def memory(report: Report) -> dict[str, Any]:
    """Bytes, or why there are none."""
    return {"peak": report.peak_bytes, "how": report.peak_how, "resident": report.resident_bytes}


def measured(key: str, options: argparse.Namespace) -> dict[str, Any]:
    """A subject's rounds."""
    if key == "bert" and importlib.util.find_spec("transformers") is None:
        return {"absent": 'needs transformers (pip install "fastmaml[text]")'}
    passed = ["--device", options.device, "--threads", str(options.threads)]
    passed += ["--repeats", str(options.repeats), *(["--quick"] if options.quick else [])]
    passed += ["--model", options.model] if options.model else []
    found: dict[str, list[dict[str, Any]]] = {"time": [], "memory": []}
    for _ in range(options.rounds):
        for kind, environment in (("time", {}), ("memory", GIVES_BACK)):
            arguments = ("--point", kind, key, *passed)
            found[kind].append(
                fresh("profiles", *arguments, threads=options.threads, environment=environment)
            )
    # The report that is shown is the one in the middle.
    middle = sorted(found["time"], key=lambda one: one["plain_step_s"])[options.rounds // 2]
    head = {name: middle[name] for name in ("title", "setting", "text")}
    own = [{k: v for k, v in one.items() if k not in head} for one in found["time"]]
    peaks = [{k: v for k, v in one.items() if k not in head} for one in found["memory"]]
    return {**head, "times": own, "memory": peaks}


def printed(key: str, found: dict[str, Any]) -> str:
    if "absent" in found:
        return f"{key}: {found['absent']}"
    off = [f"{100 * one['sum_off']:+.1f}%" for one in found["times"]]
    peaks = [f"{one['peak']} and {one['resident']}" for one in found["memory"]]
    return f"{found['title']}: phases off by {', '.join(off)}; live and resident {peaks}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", help="a folder with a pretrained BERT")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--rounds", type=int, default=5, help="processes of either kind")
    parser.add_argument("--repeats", type=int, default=10, help="timed steps in a process")
    parser.add_argument("--quick", action="store_true", help="one round of small networks")
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.point:
        print(json.dumps(point(options)))
        return
    if options.quick:
        options.rounds, options.repeats = 1, 3
    path = place(options.json, options.device, "profiles", options.quick)
    result: dict[str, Any] = {
        **about(options.device),
        "quick": options.quick,
        "rounds": options.rounds,
        "repeats": options.repeats,
        "environment_of_memory": GIVES_BACK,
        "subjects": {},
    }
    for key in options.subjects:
        result["subjects"][key] = found = measured(key, options)
        print(printed(key, found), flush=True)
        save(path, result)


if __name__ == "__main__":
    main()
