"""Planned memory of language models is what real ones need."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

import fastmaml as fm
from fastmaml.cli import main
from fastmaml.cli.bench_plan import as_subcommand
from fastmaml.gradients import Checkpointed, FirstOrder, GradientMethod, MixedMode, Unrolled
from fastmaml.integrations.transformers import Lora, lora
from fastmaml.integrations.transformers.adapters import with_generating_lora
from fastmaml.measure.planning import KNOWN_MODELS, plan_memory
from fastmaml.measure.planning.layers import FEWEST, peak_of
from fastmaml.measure.planning.trace import Event
from fastmaml.measure.profile import LiveMemory

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

SETTING: dict[str, Any] = {
    **{"tasks": 2, "steps": 3, "tokens": 24, "support": 2, "query": 3},
    **{"lora": 4, "dtype": torch.float32, "backend": "reference"},
}


def config(layers: int = 1) -> Any:
    return transformers.LlamaConfig(
        vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, use_cache=False, pad_token_id=0,
    )  # fmt: skip


def live_bytes(method: GradientMethod, chunk: int) -> list[int]:
    """Of two calls of a meta-step that is run: live tensors, at their peak."""
    torch.manual_seed(0)
    model = with_generating_lora(transformers.LlamaForCausalLM(config()), Lora(4), "CAUSAL_LM")
    maml = fm.MAML(
        model.train(), lr=0.1, steps=3, loss=fm.losses.causal, scope=lora(model),
        gradient=method, executor="eager", tasks_chunk=chunk,
    )  # fmt: skip
    parts = []
    for rows in (2, 3):
        tokens = torch.randint(1, 90, (2, rows, 24))
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        parts.append(fm.Batch(inputs, tokens))
    episodes = fm.Episodes(*parts)
    peaks = []
    for _ in range(2):
        with LiveMemory() as memory:
            maml(episodes).loss.backward()
        peaks.append(memory.peak_bytes)
    return peaks


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize(
    "method",
    [
        Checkpointed(),
        pytest.param(Unrolled(), marks=pytest.mark.slow),
        pytest.param(MixedMode(), marks=pytest.mark.slow),
        pytest.param(FirstOrder(), marks=pytest.mark.slow),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_plan_is_what_a_run_needs(method: GradientMethod, chunk: int) -> None:
    plan = plan_memory(config(), **SETTING, methods=[method], tasks_at_once=chunk, layers="kept")
    first, later = live_bytes(method, chunk)
    if method.tried_once:  # the first call, which does more
        assert later / 1.1 < plan.ways[0].step < first * 1.1
    else:
        assert plan.ways[0].step == pytest.approx(later, rel=0.1)


@pytest.mark.parametrize("method", [Checkpointed, pytest.param(MixedMode, marks=pytest.mark.slow)])
def test_steps_that_wait_on_the_cpu_take_no_more_of_the_gpu(method: Any) -> None:
    few, many = (
        plan_memory(
            config(), **{**SETTING, "steps": steps}, tasks_at_once=1, layers="kept",
            methods=[method(), method(offload=True), method(2, offload=True)],
        ).ways
        for steps in (3, 9)
    )  # fmt: skip
    carry = few[0].held / 3
    assert many[0].held == 9 * carry
    assert many[0].step - few[0].step == 6 * carry
    for i in (1, 2):
        assert many[i].step == few[i].step < few[0].step
        assert many[i].held == few[i].held == 2 * carry
        assert many[i].recorded is None, "copies to the CPU are in no recording"
        assert many[i].fits == "eager"
    assert [way.away for way in few] == [0, 2 * carry, 2 * carry]
    assert [way.away for way in many] == [0, 8 * carry, 5 * carry]
    plan = plan_memory(config(), **SETTING, methods=method(offload=True), tasks_at_once=1)
    assert "inner steps wait in the CPU's memory" in str(plan)
    assert plan.fitting is not None
    assert 'offload=True), tasks_chunk=1, executor="eager"' in str(plan)


def event(label: int, size: int) -> Event:
    return Event(label, size)


def passes(layers: int) -> list[Event]:
    """A made-up run: a pass through the layers and one back, which is where few layers peak."""
    forth = [event(3 + i, 50 * layer + i) for layer in range(layers) for i in range(9)]
    top = [event(90 + i, 50 * layers + 400 + i) for i in range(12)]
    back = [
        event(30 + i, 50 * layers + 20 * layer + i) for layer in range(layers) for i in range(11)
    ]
    return [event(1, 0), *forth, *top, *back, *(event(60 + i, 7) for i in range(10))]


@pytest.mark.parametrize("layers", [4, 9, 20, 40])
def test_many_layers_follow_from_few_also_where_they_peak_elsewhere(layers: int) -> None:
    found = peak_of(passes(FEWEST), passes(FEWEST + 1), layers)
    assert found == max(e.bytes for e in passes(layers))


def test_runs_that_do_not_fit_together_tell_nothing() -> None:
    assert peak_of(passes(FEWEST), [event(i, i) for i in range(200, 300)], 9) is None


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("method", [Unrolled(), Checkpointed(), MixedMode()], ids=str)
def test_layers_of_a_model_follow_from_few(method: GradientMethod, checkpointed: bool) -> None:
    from fastmaml.measure.planning.meta_step import Subject, Watch

    subject = Subject(config(8), Lora(4), torch.float32, 2, 3, (2, 3), 24, "shapes")
    watch = Watch(subject, method, 1, checkpointed)
    few, more = watch.of(FEWEST), watch.of(FEWEST + 1)
    assert peak_of(few[1], more[1], 8) == watch.of(None)[0].peak.bytes


@pytest.mark.slow
def test_eight_billion_parameters_take_no_memory_and_fit_a_gpu() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan = plan_memory("llama-3-8b", methods=[Checkpointed()])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kB
    assert plan.standing.parameters == 8_030_261_248 + plan.standing.learned
    assert plan.standing.weights > 2 * 8.03e9
    assert plan.fitting is not None
    assert plan.fitting.recorded < 80 * 2**30
    assert "It fits: fm.MAML(..., gradient=fm.gradients.Checkpointed(" in str(plan)


def test_a_plan_says_what_fits_and_what_does_not() -> None:
    plan = plan_memory(config(), **SETTING, methods=[FirstOrder()], memory="1.2GB")
    assert plan.ways[0].fits
    assert plan.fitting is None  # it is not exact
    assert "No exact way fits" in str(plan)
    step = plan.ways[0].step
    assert plan.ways[0].eager - step - plan.ways[0].allowance - plan.standing.data == (
        plan.standing.weights + 3 * plan.standing.learned_weights
    )


def test_with_too_little_memory_it_tries_fewer_tasks_and_checkpointed_layers() -> None:
    lines: list[str] = []
    plan = plan_memory(
        config(), **SETTING, methods=[FirstOrder()], memory="1GB", progress=lines.append
    )
    assert [line.partition(": ")[2] for line in lines] == [
        "2 tasks at a time, layers kept",
        "1 task at a time, layers kept",
        "1 task at a time, layers checkpointed",
    ]
    assert not plan.ways[0].fits
    assert "(too much)" in str(plan)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tokens": -1}, "tokens=-1: give a whole number"),
        ({"tokens": 4096}, "tokens=4096: the model takes at most 2048"),
        ({"tasks": 0}, "tasks=0"),
        ({"tasks_at_once": 3}, "tasks_at_once=3 with tasks=2"),
        ({"lora": 0}, r"Lora\(rank=0\)"),
        ({"memory": "much"}, "'much' is no size"),
        ({"methods": []}, "methods is empty"),
        ({"layers": "some"}, "layers='some'"),
        ({"backend": "cuda"}, "backend='cuda'"),
        ({"dtype": torch.int8}, "dtype=torch.int8"),
    ],
)
def test_bad_arguments_say_what_is_wrong(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_memory(config(), **{**SETTING, **wrong})


def test_unknown_models_are_told_apart_from_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no configuration of a model 'llama-9'"):
        plan_memory("llama-9")
    with pytest.raises(ValueError, match="is a float"):
        plan_memory(3.0)
    with pytest.raises(ValueError, match="an encoder and a decoder"):
        plan_memory(transformers.T5Config())
    assert set(KNOWN_MODELS) == {"llama-3.2-1b", "llama-3.2-3b", "llama-3-8b"}


def test_the_command_plans_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config().save_pretrained(tmp_path)
    out = tmp_path / "plan.json"
    flags = ["--tokens", "16", "--steps", "2", "--methods", "first-order", "--out", str(out)]
    assert main(["bench", *flags, "--plan", str(tmp_path)]) == 0
    assert "LoRA rank 8" in capsys.readouterr().out
    assert json.loads(out.read_text())["ways"][0]["fits"] == "recorded"


@pytest.mark.parametrize(
    "flags", [["llama-9"], ["llama-3-8b", "--tokens", "-1"], ["llama-3-8b", "--lora", "-1"]]
)
def test_the_command_says_what_is_wrong(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--plan", *flags]) == 2
    assert capsys.readouterr().err.startswith("fastmaml: ")


def test_the_flag_may_stand_anywhere() -> None:
    for words in (["--plan", "a", "--lora", "4"], ["--lora", "4", "--plan=a"]):
        assert as_subcommand(["bench", *words]) == ["bench", "plan", "a", "--lora", "4"]
    assert as_subcommand(["bench", "digits"]) == ["bench", "digits"]


def test_an_encoder_classifies() -> None:
    bert = transformers.BertConfig(
        vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    plan = plan_memory(bert, **SETTING, methods=[FirstOrder()], tasks_at_once=1)
    assert 0 < plan.standing.learned < plan.standing.parameters
    assert plan.ways[0].fits
