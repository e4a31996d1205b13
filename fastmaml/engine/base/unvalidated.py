"""Distributions that do not check their arguments, while a task's function runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributions import Distribution

_lock = threading.Lock()
_inside: list[bool] = []
"""What the setting was, once for each that is inside."""


@contextmanager
def unvalidated() -> Iterator[None]:
    """`torch.distributions` leaves out its checks, unless one was asked for by name.

    They read values, of which tasks under vmap have none, and which no recording can follow. What
    they would find shows in a loss that is not finite. The setting is PyTorch's own, for the
    process; the last one that leaves sets it back.
    """
    with _lock:
        _inside.append(bool(Distribution._validate_args))
        Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        with _lock:
            first = _inside[0]
            _inside.pop()
            if not _inside:
                Distribution.set_default_validate_args(first)
