"""Whether CUDA still works in this process: after some errors nothing does."""

from __future__ import annotations

import sys

BROKEN = 70
"""The exit code of a process in which it does not; another one goes on."""


def broken(device: str) -> bool:
    """To be asked after a failure; waits for the device.

    The words of an error do not tell: a capture that was refused calls itself a CUDA error, and
    is none; a kernel's misaligned address has other words.
    """
    if device != "cuda" or "torch" not in sys.modules:
        return False
    torch = sys.modules["torch"]
    try:
        if torch.cuda.current_stream() != torch.cuda.default_stream():
            return True  # where a capture failed that did not set it back
        return not bool(torch.rand(8, device="cuda").isfinite().all())
    except Exception:
        return True
