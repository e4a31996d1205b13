"""A plan says which flags of ``fastmaml train instructions`` run it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmaml.cli import main
from fastmaml.cli.flags import parse
from fastmaml.gradients import Checkpointed, GradientMethod, MixedMode, Truncated, Unrolled
from fastmaml.gradients.names import METHOD_NAMES, name_of, named
from fastmaml.integrations.transformers import Lora
from fastmaml.measure.planning.meta_step import Subject
from fastmaml.measure.planning.plan import Way
from fastmaml.measure.planning.plan_flags import in_flags
from fastmaml.training.presets import PRESETS

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

LLAMA = transformers.LlamaConfig(
    vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=2, use_cache=False, pad_token_id=0,
)  # fmt: skip
SUBJECT = Subject(LLAMA, Lora(4), torch.bfloat16, 2, 3, (5, 6), 24, "shapes")


def way(method: GradientMethod, recorded: int = 1, checkpointed: bool = False) -> Way:
    """One that fits in 2 bytes, recorded or eagerly."""
    return Way(method, 1, checkpointed, 0, 0, 0, 0, 1, recorded, 2)


def flags(subject: Subject, found: Way) -> Any:
    """What the printed flags say, read as the command reads them."""
    _, _, command = in_flags(subject, found)[0].partition(": fastmaml ")
    return parse(command.split(), PRESETS).configuration()


def test_the_command_reads_the_flags_as_what_was_planned() -> None:
    config = flags(SUBJECT, way(Checkpointed()))
    assert (config.gradient, config.tasks_chunk, config.base) == ("checkpointed", 1, "bfloat16")
    assert (config.scope, config.lora_rank, config.inner_steps) == ("lora", 4, 3)
    sizes = config.tasks, config.support, config.query, config.max_length
    assert sizes == (2, 5, 6, 24)
    assert (config.executor, config.backend, config.segments) == ("auto", "auto", None)
    assert "--dtype float32 plans that" in in_flags(SUBJECT, way(Checkpointed()))[1]
    eager = flags(SUBJECT, way(MixedMode(2, offload=True), recorded=3))
    assert (eager.gradient, eager.segments, eager.offload) == ("mixed-mode", 2, True)
    assert (eager.executor, eager.backend) == ("eager", "triton")
    whole = replace(SUBJECT, lora=None, dtype=torch.float32, backend="reference")
    other = flags(whole, way(Unrolled()))
    assert (other.scope, other.base, other.backend) == ("all", "full", "reference")
    assert len(in_flags(whole, way(Unrolled()))) == 1


@pytest.mark.parametrize(
    ("change", "checkpointed", "absent"),
    [
        ({}, True, "checkpointed layers"),
        ({"lora": None}, False, "all weights in bfloat16"),
        ({"lora": Lora(4, targets=("q_proj",))}, False, "the layers that have adapters"),
        ({"dtype": torch.float64}, False, "weights in float64"),
    ],
)
def test_what_has_no_flag_is_said(change: Any, checkpointed: bool, absent: str) -> None:
    found = way(Checkpointed(), checkpointed=checkpointed)
    (said,) = in_flags(replace(SUBJECT, **change), found)
    assert f"no flag for {absent}" in said


def test_names_of_methods_go_both_ways() -> None:
    for name in METHOD_NAMES:
        assert name_of(named(name))[0] == name
    assert name_of(Truncated(3)) == ("truncated", 3, False)
    assert named(*name_of(MixedMode(4, True))) == MixedMode(4, True)


def test_a_plan_says_what_it_looks_at_and_ends_in_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LLAMA.save_pretrained(tmp_path)
    asked = ["--tokens", "16", "--steps", "2", "--methods", "checkpointed", "--tasks", "1"]
    assert main(["bench", "--plan", str(tmp_path), *asked]) == 0
    said = capsys.readouterr()
    first, second = said.err.splitlines()[:2]
    assert first.startswith(f"fastmaml: planning {tmp_path}: about 10 s for a gradient method")
    assert second == "fastmaml: Checkpointed(segments=None): 1 task at a time, layers kept"
    assert "As flags: fastmaml train instructions --tasks 1 --support 4 --query 4" in said.out
