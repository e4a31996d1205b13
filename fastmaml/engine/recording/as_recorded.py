"""Where what was recorded runs: as it was recorded, whatever is around it."""

from __future__ import annotations

from typing import Any, final

import torch

_KEYS = torch._C.DispatchKey
_AUTOCAST = torch._C.DispatchKeySet(_KEYS.AutocastCPU) | torch._C.DispatchKeySet(_KEYS.AutocastCUDA)


@final
class AsRecorded:
    """A context without autograd and without autocast.

    Results would keep what led to them. What autocast casts was recorded as such, and what runs in
    float32 all the same (where a model or a derivative switches autocast off) must stay there.
    """

    def __enter__(self) -> None:
        self._below = torch._C._AutoDispatchBelowAutograd()
        self._uncast = torch._C._ExcludeDispatchKeyGuard(_AUTOCAST)
        self._below.__enter__()
        self._uncast.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._uncast.__exit__(*error)
        self._below.__exit__(*error)
