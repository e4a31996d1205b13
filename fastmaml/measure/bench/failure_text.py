"""Why a configuration could not be measured, in a line."""

from __future__ import annotations

from fastmaml.engine.base.attempt import is_out_of_memory
from fastmaml.measure.bench.cells import OUT_OF_MEMORY
from fastmaml.measure.bench.measure import LeftOutError

MAX_CHARACTERS = 300


def reason_of(error: Exception) -> str:
    """Such as "out of memory", or "left out: ", "refused: " and "failed: " with the cause."""
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    line = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, LeftOutError):
        return f"left out: {line}"
    how = "refused" if isinstance(error, ValueError | RuntimeError) else "failed"
    return f"{how}: {line[:MAX_CHARACTERS]}"
