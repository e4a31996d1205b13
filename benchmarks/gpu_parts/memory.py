"""How much memory does one more inner step cost, by gradient method?"""

from __future__ import annotations

import torch

from benchmarks.gpu_parts.answer import Answer
from benchmarks.programs.memory_growth import (
    METHODS,
    Setting,
    gradient_differences,
    growth,
    live_peak,
)

STEPS = (1, 2, 4, 8, 16)


def main(answer: Answer) -> None:
    """In copies of the adapted parameters of all tasks."""
    small = answer.small
    sizes = {"layers": 3, "width": 64, "examples": 32} if small else {}
    setting, steps = Setting(device=answer.device, **sizes), list(STEPS[:3] if small else STEPS)
    apart = gradient_differences(setting, steps=3)
    answer.found["gradient_differences"] = apart
    if not max(apart[m] for m in METHODS) <= 1e-9:
        answer.fail(f"the meta-gradients differ: {apart}")
        return
    copy = setting.copy_bytes()
    answer.found |= {"steps": steps, "copy_bytes": copy}
    for method in filter(answer.begins, METHODS):
        peaks: list[float] = []
        with answer.guarding(method):
            for count in steps:
                if answer.device == "cuda":
                    torch.cuda.empty_cache()
                peaks.append(live_peak(setting, method, count) / copy)
        if len(peaks) < len(steps):
            continue
        slope = growth(steps, peaks)
        answer.row(method=method, peak_copies=[round(p, 3) for p in peaks], growth=round(slope, 4))
        answer.say(
            f"{method}: {slope:.2f} copies of the parameters a step, {peaks[0]:.1f} at "
            f"{steps[0]} and {peaks[-1]:.1f} at {steps[-1]} steps"
        )
