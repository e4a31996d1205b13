"""The command line: ``fastmaml train | eval | info``."""

from fastmaml.cli.main import main

__all__ = ["main"]
