"""The command line: ``fastmaml train | eval | profile | bench | info``."""

from fastmaml.cli.main import main

__all__ = ["main"]
