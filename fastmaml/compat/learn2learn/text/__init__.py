"""Data sets of texts."""

from fastmaml.compat.learn2learn.text import datasets

__all__ = ["datasets"]
