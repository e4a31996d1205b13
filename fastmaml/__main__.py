"""``python -m fastmaml``: the command line."""

import sys

from fastmaml.cli import main

if __name__ == "__main__":
    sys.exit(main())
