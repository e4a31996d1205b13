"""The part of `make gpu` that times meta-steps: a contestant that breaks CUDA costs only itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_parts import health, steps
from benchmarks.gpu_parts.answer import Answer, Broken

BAD = "torch.func vmap"


@pytest.mark.sampled(at_most=1)
@pytest.mark.parametrize("in_a_turn", [False, True])
def test_another_process_goes_on_without_what_broke_the_first(
    in_a_turn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = steps.begun, []

    def begun(name: str, *arguments: Any) -> Any:
        asked.append(name)
        if name != BAD:
            return real(name, *arguments)
        if not in_a_turn:
            breaks()
        return real(name, *arguments)[0], breaks

    def breaks() -> None:
        raise RuntimeError("CUDA error: misaligned address")

    monkeypatch.setattr(steps, "begun", begun)
    monkeypatch.setattr(health, "broken", lambda device: True)
    path = tmp_path / "steps.json"
    with pytest.raises(Broken):
        steps.main(Answer("cpu", True, 60, tmp_path, path))
    assert asked.pop() == (BAD if not in_a_turn else steps.NAMES["cpu"][-1])
    asked.clear()
    answer = Answer("cpu", True, 60, tmp_path, path, resume=True)
    steps.main(answer)
    others = [name for name in steps.NAMES["cpu"] if name != BAD]
    assert asked == others
    (row,) = answer.found["rows"]
    assert [name for name, found in row["contestants"].items() if "median" in found] == others
    assert len(answer.failures) == 1
    steps.main(Answer("cpu", True, 60, tmp_path, path, resume=True))
    assert asked == others, "a workload that is done is not begun again"
