"""Run the tutorials' notebooks, and keep what their cells print and draw.

    python docs/run_tutorials.py                 # all of docs/tutorials, in place
    python docs/run_tutorials.py NAME --to FILE  # one of them, written elsewhere

A code cell is plain Python, so that no Jupyter is needed: the cells of a notebook run one after
another in one namespace, in a process of their own, with warnings as errors. What Jupyter would
show is kept as Jupyter keeps it: printed text, and open figures. A cell that ends with a value is
an error, as Jupyter would show that too: print it, or give it a name.
"""

from __future__ import annotations

import argparse
import ast
import base64
import io
import json
import os
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

TUTORIALS = Path(__file__).parent / "tutorials"
DPI = 90


def execute(notebook: dict[str, Any], name: str) -> None:
    """Run every code cell, and put its outputs in place of those that it had.

    Raises:
        ValueError: a cell ends with a value.
        Exception: what a cell raises.
    """
    scope: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        with redirect_stdout(io.StringIO()) as printed:
            run("".join(cell["source"]), f"{name}, code cell {number}", scope)
        text = printed.getvalue().splitlines(keepends=True)
        stream = {"name": "stdout", "output_type": "stream", "text": text}
        cell["outputs"] = [*([stream] if text else []), *figures()]
        cell["execution_count"] = number


def run(code: str, place: str, scope: dict[str, Any]) -> None:
    """The code of one cell; `place` is what tracebacks call it."""
    body = ast.parse(code, place).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), place, "exec"), scope)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), place, "eval"), scope)
        if value is not None:
            raise ValueError(f"{place} ends with the value {value!r}: print it, or give it a name.")


def figures() -> list[dict[str, Any]]:
    """The open figures, which are closed; the title of each is its text for who does not see it."""
    if "matplotlib.pyplot" not in sys.modules:
        return []
    from matplotlib import pyplot

    found = []
    for number in pyplot.get_fignums():
        figure, picture = pyplot.figure(number), io.BytesIO()
        figure.savefig(picture, format="png", dpi=DPI, bbox_inches="tight")
        title = figure.get_suptitle() or " | ".join(axes.get_title() for axes in figure.axes)
        data = {
            "image/png": base64.b64encode(picture.getvalue()).decode(),
            "text/plain": [title or "a figure"],
        }
        found.append({"data": data, "metadata": {}, "output_type": "display_data"})
    pyplot.close("all")
    return found


def run_here(path: Path, to: Path) -> None:
    """One notebook in this process, which has to be a fresh one."""
    warnings.simplefilter("error")
    os.environ |= {"MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1"}
    os.environ.pop("DISPLAY", None)  # with one, matplotlib warns that agg cannot show
    notebook = json.loads(path.read_text())
    execute(notebook, path.name)
    to.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="without .ipynb; all where there are none")
    parser.add_argument("--to", type=Path, help="write it there, not in place (one name only)")
    options = parser.parse_args()
    if options.to:
        run_here(TUTORIALS / f"{options.names[0]}.ipynb", options.to)
        return
    for name in options.names or sorted(path.stem for path in TUTORIALS.glob("*.ipynb")):
        path = TUTORIALS / f"{name}.ipynb"
        subprocess.run([sys.executable, __file__, name, "--to", str(path)], check=True)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
