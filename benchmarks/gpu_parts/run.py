"""``python -m benchmarks.gpu_parts.run PART ...``: one part; exits with 1 where something is wrong.

With 70 where a CUDA error left the process of no use: ``--resume`` goes on after what it was in.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback

from benchmarks.gpu_parts.answer import Answer, Broken
from benchmarks.gpu_parts.health import BROKEN


def main() -> None:
    """The part of that name."""
    name = sys.argv.pop(1)
    answer = Answer.asked()
    try:
        importlib.import_module(f"benchmarks.gpu_parts.{name}").main(answer)
    except Broken:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(BROKEN)  # to tear down what is broken may hang
    except BaseException as error:  # also SystemExit, by which benchmarks refuse
        traceback.print_exc()
        answer.fail(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    answer.write()
    if answer.failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
