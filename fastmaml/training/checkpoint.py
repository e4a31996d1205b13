"""Checkpoints: one safetensors file that is whole or not there, and tells when it was damaged.

Tensors lie under readable names (``maml.module.0.weight``, ``optimizer.state.0.exp_avg``); all
else is JSON in the file's metadata, with a digest of both.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmaml._files import write_whole

FORMAT = 1
"""The format's number: one more when an older fastmaml could not read the file any more."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on.

    Attributes:
        config: the configuration, by field name.
        iteration: iterations done.
        state: a tree of dicts, lists, tuples, tensors, numbers, strings, booleans and None.
        run: what tells the run from all others; None in files of before there was such a thing.
    """

    config: dict[str, Any]
    iteration: int
    state: dict[str, Any]
    run: str | None = None

    @property
    def weights(self) -> dict[str, Any]:
        """Those to test and use: of what is averaged while it trains (``ema``), the averages."""
        found: dict[str, Any] = self.state["maml"] | self.state.get("averages", {})
        return found


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in one step, in place of the one that was there."""
    from safetensors.torch import save as to_bytes

    tensors: dict[str, Tensor] = {}
    header = json.dumps(
        {
            "config": checkpoint.config,
            "iteration": checkpoint.iteration,
            "run": checkpoint.run,
            "state": _pack(checkpoint.state, "", tensors),
        }
    )
    digest = _digest(header, tensors)
    metadata = {"fastmaml": header, "format": str(FORMAT), "digest": digest}
    write_whole(path, to_bytes(tensors, metadata))


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; its tensors are on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, no checkpoint of fastmaml's, or of a newer version.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(
            f"there is no checkpoint {path}. Give the path of a .safetensors file that "
            "`fastmaml train` or a MetaTrainer wrote."
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or is no safetensors file ({error}). Use another checkpoint, "
            "or train again."
        ) from None
    if "fastmaml" not in metadata:
        raise ValueError(
            f"{path} is a safetensors file, but not a checkpoint of fastmaml's (its metadata "
            "lacks the entry 'fastmaml'). Give a file that `fastmaml train` wrote."
        )
    if metadata.get("format", "").isdigit() and int(metadata["format"]) > FORMAT:
        raise ValueError(
            f"{path} was written by a newer fastmaml (format {metadata['format']}; this version "
            f"reads up to {FORMAT}). Install a newer fastmaml."
        )
    if metadata.get("digest") != _digest(metadata["fastmaml"], tensors):
        raise ValueError(
            f"{path} is damaged: its content does not match its digest. Use another checkpoint, "
            "or train again."
        )
    header = json.loads(metadata["fastmaml"])
    state = _unpack(header["state"], tensors)
    return Checkpoint(header["config"], header["iteration"], state, header.get("run"))


def run_of(path: Path) -> str | None:
    """The run that a file is of; None where it does not say, is missing or cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("fastmaml", "{}"))
    except (FileNotFoundError, SafetensorError, ValueError):
        return None
    found: str | None = header.get("run")
    return found


def require_storable(tree: Any, what: str) -> None:
    """Raise ValueError where a checkpoint cannot hold it.

    Args:
        tree: would be a part of the state.
        what: it is called in the error.
    """
    _pack(tree, what, {})


def _pack(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """The tree as JSON, with its tensors moved to `tensors` under their path."""
    if isinstance(tree, Tensor):
        if tree.layout is not torch.strided or (tree.numel() and not tree.data_ptr()):
            raise ValueError(
                f"{path or 'the state'} is a {type(tree).__name__} of the layout {tree.layout}, "
                "whose numbers do not lie in memory of its own, and a checkpoint cannot hold it: "
                "keep what it is made of in buffers, or register it with persistent=False."
            )
        while path in tensors:  # {"a.b": x, "a": {"b": y}}
            path += "'"
        # A copy of its own: safetensors refuses tensors that share memory, as tied weights do.
        tensors[path] = tree.detach().cpu().contiguous().clone()
        return {"$tensor": path}
    prefix = f"{path}." if path else ""
    if isinstance(tree, dict):  # as pairs, as JSON would make text of the optimizer's integer keys
        return {"$dict": [[key, _pack(x, f"{prefix}{key}", tensors)] for key, x in tree.items()]}
    if isinstance(tree, list | tuple):
        items = [_pack(x, f"{prefix}{i}", tensors) for i, x in enumerate(tree)]
        return {"$tuple": items} if isinstance(tree, tuple) else items
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise ValueError(
        f"{path or 'the state'} is a {type(tree).__name__}, which a checkpoint cannot hold: "
        "a state_dict may have tensors, numbers, strings, booleans, None, dicts, lists and tuples."
    )


def _unpack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """The tree that `_pack` was given."""
    if isinstance(tree, list):
        return [_unpack(x, tensors) for x in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        return tensors[tree["$tensor"]]
    if "$tuple" in tree:
        return tuple(_unpack(x, tensors) for x in tree["$tuple"])
    return {key: _unpack(x, tensors) for key, x in tree["$dict"]}


def _digest(header: str, tensors: dict[str, Tensor]) -> str:
    """A fingerprint of the header and of every byte of the tensors."""
    digest = hashlib.blake2b(header.encode(), digest_size=16)
    for name in sorted(tensors):
        x = tensors[name]
        digest.update(f"{name} {x.dtype} {list(x.shape)}".encode())
        digest.update(ctypes.string_at(x.data_ptr(), x.nbytes))
    return digest.hexdigest()
