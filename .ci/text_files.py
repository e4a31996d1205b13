"""Files of text end with one newline, lines with no blanks, and no merge is left half done.

    python .ci/text_files.py [FILE ...]      # all files that git tracks, where none is named

Exits with 1 and says where. ``--fix`` mends ends of lines and of files.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 1 << 20
"""Bytes: results and figures are smaller; data belong elsewhere."""

MARKS = re.compile(rb"^(<{7} |>{7} |={7}$)", re.MULTILINE)


def mended(content: bytes) -> bytes:
    """With the ends that it should have."""
    content = re.sub(rb"[ \t\r]+$", b"", content, flags=re.MULTILINE)
    return content.rstrip(b"\n") + b"\n" if content.strip() else content


def faults(name: str, content: bytes) -> Iterator[str]:
    """What is wrong with a file, a line each."""
    if len(content) > LARGEST:
        yield f"{name}: {len(content):,} bytes are more than {LARGEST:,}"
    if b"\0" in content:
        return  # no text
    for number, line in enumerate(content.split(b"\n"), 1):
        if line != line.rstrip():
            yield f"{name}:{number}: blanks at the end of the line"
    if content and (not content.endswith(b"\n") or content.endswith(b"\n\n")):
        yield f"{name}: does not end with one newline"
    if MARKS.search(content):
        yield f"{name}: a mark of a merge is left"


def tracked() -> list[str]:
    """Relative to the root."""
    listed = ["git", "-C", str(ROOT), "ls-files", "-z"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
    return [name for name in names.split("\0") if name and (ROOT / name).is_file()]


def main(arguments: list[str]) -> int:
    """How many files have faults, at most 1."""
    fix = "--fix" in arguments
    found: list[str] = []
    for name in [a for a in arguments if a != "--fix"] or tracked():
        path = ROOT / name
        content = path.read_bytes()
        if fix and b"\0" not in content and mended(content) != content:
            content = mended(content)
            path.write_bytes(content)
        found += faults(name, content)
    if found:
        print("\n".join(found))
    return min(1, len(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
