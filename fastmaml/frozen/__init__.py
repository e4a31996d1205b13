"""Frozen weights that lie elsewhere, and come to the device while a layer runs.

A base that does not fit on one device: its weights stay in the host's memory (`offload`), or every
rank has a share of them (`shard`). What adapts or is learned stays where it is.
"""

from fastmaml.frozen.placing import offload, shard

__all__ = ["offload", "shard"]
