"""Small pieces of Markdown."""

from __future__ import annotations


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure_of(png: str) -> str:
    """A picture beside the document."""
    return f"![{png.removesuffix('.png').replace('_', ' ')}]({png})"
