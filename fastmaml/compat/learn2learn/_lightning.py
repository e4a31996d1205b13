"""Which of Lightning's two packages the Lightning modules stand on: the one that a script uses.

A trainer of one package refuses the modules of the other.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

PACKAGES = ("pytorch_lightning", "lightning.pytorch")
"""In this order, where a script has imported neither: learn2learn's scripts import the first."""

INSTALL = 'pip install "fastmaml[tools]" (or lightning, or pytorch-lightning, 2 or later)'


def choose() -> tuple[Any, bool]:
    """The package, and whether that was a guess, since the script had imported neither.

    Raises:
        ImportError: neither is installed, or the one that is imported is older than 2.
    """
    loaded = [name for name in PACKAGES if sys.modules.get(name)]
    for name in loaded or PACKAGES:
        try:
            package = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(error.name or "?"):
                raise  # it is there, and lacks a package of its own
            continue
        if int(package.__version__.split(".")[0]) < 2:
            raise ImportError(f"{name} {package.__version__} is too old: {INSTALL}.")
        return package, not loaded
    raise ImportError(f"learn2learn's Lightning modules need Lightning: {INSTALL}.")


pl, guessed = choose()


def check_guess() -> None:
    """See to it that the script did not import the other package later.

    Raises:
        ImportError: it did.
    """
    others = [name for name in PACKAGES if name != pl.__name__ and sys.modules.get(name)]
    if guessed and others:
        raise ImportError(
            f"{pl.__name__} and {others[0]} are both installed, and only {others[0]} was imported "
            "by this script, but after learn2learn's Lightning modules, which stand on "
            f"{pl.__name__} by now. Import the package of your Trainer first."
        )
