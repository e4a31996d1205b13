"""A meta-step of fake tensors, watched operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, final

from fastmaml.engine.memory.live import LiveMemory


class Event(NamedTuple):
    """An operation that allocated.

    Attributes:
        label: what it was and how much it made, by a number.
        bytes: alive after it.
    """

    label: int
    bytes: int


@final
class Trace(LiveMemory):
    """Live bytes, and which operation left how many.

    Attributes:
        events: in their order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """See `QuickLiveMemory`."""
        return False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs it and notes it; what only asks for a tensor's device makes nothing."""
        if getattr(func, "namespace", "") == "prim":
            return func(*args, **(kwargs or {}))
        before = self.live.bytes
        result = self._follow(func, args, kwargs or {})
        made = self.live.bytes - before
        if made > 0:  # the others are no peaks
            self.events.append(Event(hash((str(func), made)), self.live.bytes))
        return result
