"""Small pieces of Markdown."""

from __future__ import annotations

from typing import Any


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def note(found: dict[str, Any]) -> str:
    """What it was measured on."""
    quick = " A quick run: its figures say little." if found.get("quick") else ""
    return f"{found['device']}, threads: {found['threads']}, torch {found['torch']}.{quick}"
