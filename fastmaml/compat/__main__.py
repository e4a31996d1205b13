"""``python -m fastmaml.compat SCRIPT ARGS``: a script that imports learn2learn or higher, as it is.

``python -m fastmaml.compat -m MODULE ARGS`` runs a module. The script sees what it would see under
``python SCRIPT ARGS``: ``sys.argv`` (whose first entry is the whole path), ``sys.path[0]``,
``__name__``, ``__file__``, its exit code.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pkgutil
import runpy
import sys
from pathlib import Path
from typing import NoReturn

from fastmaml.compat.import_hook import RELEASES, install


def main(arguments: list[str]) -> None:
    """Install the doors and run what the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m fastmaml.compat",
        usage="%(prog)s [--only NAME] (SCRIPT | -m MODULE) [ARGS ...]",
        description="Runs a script whose `import learn2learn` and `import higher` reach fastmaml.",
    )
    parser.add_argument("--only", choices=list(RELEASES), help="take one of the two names")
    parser.add_argument("-m", dest="module", action="store_true", help="run a module, as python -m")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.command:
        parser.error("name a script, or a module after -m")
    command, names = options.command, [options.only] if options.only else []
    if options.module:
        _need_module(command[0])
        install(*names)
        sys.argv = command
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        return
    script = Path(command[0])
    if not script.exists():
        _stop(f"can't open file {str(script.absolute())!r}: there is no such file", 2)
    install(*names)
    sys.argv = command
    if not getattr(sys.flags, "safe_path", False):  # Python 3.11's -P, which puts nothing first
        del sys.path[0]  # the folder at hand, which is there for -m
        if pkgutil.get_importer(str(script)) is None:  # a folder or an archive puts itself first
            sys.path.insert(0, str(script.resolve().parent))
    runpy.run_path(os.path.abspath(script), run_name="__main__")  # as Python has it in __file__


def _need_module(name: str) -> None:
    # Its first part, as to find the others would import it.
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        _stop(f"No module named {name}", 1)


def _stop(why: str, code: int) -> NoReturn:
    print(f"python -m fastmaml.compat: {why}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
