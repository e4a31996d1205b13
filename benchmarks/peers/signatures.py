"""Does every call that one signature takes mean the same under another?"""

from __future__ import annotations

import inspect
from inspect import Parameter
from typing import Any

POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def signature(x: Any) -> inspect.Signature | None:
    """None where it is unknown, as that of a compiled class."""
    try:
        return inspect.signature(x)
    except (TypeError, ValueError):
        return None


def compared(theirs: Any, ours: Any) -> str:
    """ "equal", "more" where ours takes all that theirs takes and more, or the difference in words.

    Types are not compared: an annotation changes no call.
    """
    expected, found = signature(theirs), signature(ours)
    if expected is None or found is None:
        return "equal" if expected is None else "has no signature"
    left, right = (list(s.parameters.values()) for s in (expected, found))
    difference = first_difference(left, right)
    if difference:
        return f"{difference}: {short(expected)} there, {short(found)} here"
    same = [(p.name, p.kind, p.default is p.empty) for p in left]
    return "equal" if same == [(p.name, p.kind, p.default is p.empty) for p in right] else "more"


def first_difference(theirs: list[Parameter], ours: list[Parameter]) -> str:
    """What a caller of theirs would notice first; empty if nothing."""
    places = [p.name for p in ours if p.kind in POSITIONAL]
    by_name = {p.name: p for p in ours}
    for i, p in enumerate(theirs):
        if p.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            if all(q.kind != p.kind for q in ours):
                return f"no {p}"
            continue
        if p.name not in by_name:
            return f"no parameter {p.name}"
        if p.kind in POSITIONAL and (i >= len(places) or places[i] != p.name):
            return f"{p.name} at another place"
        # What must be given there may be left out here.
        if p.default is not Parameter.empty and not same_default(
            p.default, by_name[p.name].default
        ):
            return f"another default of {p.name}"
    known = {p.name for p in theirs}
    for q in ours:
        optional = q.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        if q.name not in known and q.default is Parameter.empty and not optional:
            return f"{q.name} must be given"
    return ""


def same_default(a: Any, b: Any) -> bool:
    """Functions and classes of the two packages are the same by name."""
    if callable(a) and callable(b):
        return getattr(a, "__name__", a) == getattr(b, "__name__", b)
    return type(a) is type(b) and (a is b or bool(a == b))


def short(given: inspect.Signature) -> str:
    """Without types."""
    bare = [p.replace(annotation=Parameter.empty) for p in given.parameters.values()]
    return str(inspect.Signature(bare))
