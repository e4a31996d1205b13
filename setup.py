"""Reserved for the native module ``fastmaml._C``: all metadata is in pyproject.toml.

``FASTMAML_BUILD=auto`` (default) and ``0`` install pure PyTorch, all that this version has;
``1`` asks for the native module and fails.
"""

import os
import sys

from setuptools import setup

choice = os.environ.get("FASTMAML_BUILD", "auto")
if choice not in {"auto", "0", "1"}:
    sys.exit(f"FASTMAML_BUILD={choice!r}: choose auto, 0 or 1.")
if choice == "1":
    sys.exit(
        "FASTMAML_BUILD=1, but this version has no native sources: it runs on PyTorch alone. "
        "Unset FASTMAML_BUILD."
    )
setup()
