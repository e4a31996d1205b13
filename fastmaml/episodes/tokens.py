"""`Tokens`: texts as token numbers, held compactly and padded only in the meta-batches."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmaml._files import write_whole
from fastmaml.episodes.checks import check_positive
from fastmaml.episodes.tables import Table

FORMAT = "1"
"""Of the cache's files: another one where an older file must not be read any more."""

BLOCK = 10_000
"""Texts that are tokenised at a time: their numbers are Python integers for a moment."""

Cache = str | os.PathLike[str] | bool
"""A folder, True for ``~/.cache/fastmaml/tokens``, or False for none."""


@dataclass(frozen=True)
class Tokens:
    """The token numbers of many texts, one text after the other.

    Attributes:
        ids: int32 ``[tokens]``.
        types: uint8 ``[tokens]``, to which text of a pair a token belongs, where the tokenizer says
            so; else None.
        starts: int64 ``[texts + 1]``, where each text begins, and the end of the last.
        pad: the number of the padding token.
        max_length: no text is longer.
    """

    ids: Tensor
    types: Tensor | None
    starts: Tensor
    pad: int
    max_length: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def to(self, device: torch.device | str | None) -> Tokens:
        """The same on another device; None for where it is."""
        types = None if self.types is None else self.types.to(device)
        return replace(self, ids=self.ids.to(device), types=types, starts=self.starts.to(device))

    def padded_length(self, *indices: Tensor) -> int:
        """That of the longest of the texts at `indices`, rounded up by `padded_length`.

        Finding it waits for the device.
        """
        longest = [(self.starts[i + 1] - self.starts[i]).max() for i in map(self._placed, indices)]
        return padded_length(int(torch.stack(longest).max()), self.max_length)

    def batch(self, index: Tensor, length: int) -> dict[str, Tensor]:
        """A model's inputs: the texts at `index`, int64 ``[...]``, padded on the right.

        ``input_ids``, ``attention_mask`` (1 where there is a token) and, where known,
        ``token_type_ids``, all int64 ``[..., length]``.
        """
        index = self._placed(index)
        begin, end = self.starts[index], self.starts[index + 1]
        place = begin.unsqueeze(-1) + torch.arange(length, device=begin.device)
        there = place < end.unsqueeze(-1)
        place = torch.where(there, place, 0)
        inputs = {
            "input_ids": torch.where(there, self.ids[place].long(), self.pad),
            "attention_mask": there.long(),
        }
        if self.types is not None:
            inputs["token_type_ids"] = torch.where(there, self.types[place].long(), 0)
        return inputs

    def _placed(self, index: Tensor) -> Tensor:
        return index.to(self.starts.device)


def padded_length(longest: int, max_length: int) -> int:
    """The next of 8, 16, 24, 32, 48, 64, 96, 128, 192, ..., but never more than `max_length`.

    Few different lengths are few different shapes, and a meta-step is recorded once a shape: up to
    128 tokens there are no more of them than recordings are kept.
    """
    length = 8
    while length < longest:
        two_power = length & (length - 1) == 0
        length = 16 if length == 8 else length * 3 // 2 if two_power else length * 4 // 3
    return min(length, max_length)


def joined(parts: Sequence[Tokens]) -> Tokens:
    """All texts of `parts`, of one tokenizer, in order."""
    types = [x for p in parts if (x := p.types) is not None]
    if len({p.pad for p in parts}) > 1 or len(types) not in (0, len(parts)):
        raise ValueError("the data sets of a mixture were tokenised by different tokenizers.")
    offsets = itertools.accumulate((len(p.ids) for p in parts), initial=0)
    starts = [p.starts[:-1] + o for p, o in zip(parts, offsets, strict=False)]
    ids = torch.cat([p.ids for p in parts])
    return Tokens(
        ids,
        torch.cat(types) if types else None,
        torch.cat([*starts, torch.tensor([len(ids)])]),
        parts[0].pad,
        max(p.max_length for p in parts),
    )


def tokenised(table: Table, tokenizer: Any, max_length: int, cache: Cache) -> Tokens:
    """The texts of a table as token numbers, from the cache where they have been kept.

    Args:
        table: the texts.
        tokenizer: of transformers.
        max_length: longer texts are cut, special tokens included.
        cache: where the numbers are kept: one file for each content, tokenizer and `max_length`.
            Tokenizers that are not fast ones cannot be told apart and keep nothing.

    Raises:
        ValueError: what is given is no tokenizer, has no padding token, or `max_length` is more
            than the model or fewer than the special tokens take.
    """
    check_tokenizer(tokenizer, max_length, table.pairs is not None)
    parts = [max_length], table.texts, table.pairs
    kept = cached(cache, tokenizer, parts, lambda: _tokenise(table, tokenizer, max_length))
    return Tokens(
        kept["ids"], kept.get("types"), kept["starts"], tokenizer.pad_token_id, max_length
    )


def _tokenise(table: Table, tokenizer: Any, max_length: int) -> dict[str, Tensor]:
    ids, types, lengths = [], [], [torch.zeros(1, dtype=torch.int64)]
    for found in _blocks(table, tokenizer, max_length):
        ids.append(_flat(found["input_ids"], torch.int32))
        lengths.append(torch.tensor([len(x) for x in found["input_ids"]]))
        if "token_type_ids" in found:
            types.append(_flat(found["token_type_ids"], torch.uint8))
    kept = {"ids": torch.cat(ids), "starts": torch.cat(lengths).cumsum(0)}
    return kept | ({"types": torch.cat(types)} if types else {})


def _blocks(table: Table, tokenizer: Any, max_length: int) -> Iterator[Any]:
    for first in range(0, len(table), BLOCK):
        block = slice(first, first + BLOCK)
        yield tokenizer(
            table.texts[block],
            None if table.pairs is None else table.pairs[block],
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
        )


def _flat(rows: list[list[int]], dtype: torch.dtype) -> Tensor:
    return torch.tensor(list(itertools.chain.from_iterable(rows)), dtype=dtype)


def cached(
    cache: Cache, tokenizer: Any, parts: Iterable[Any], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What `make` gives, or has given before for the same tokenizer and `parts`, ready for JSON."""
    path = None if cache is False else _path(parts, tokenizer, cache)
    kept = None if path is None else _kept(path)
    if kept is None:
        kept = make()
        if path is not None:
            _keep(path, kept)
    return kept


def check_tokenizer(tokenizer: Any, max_length: int, pair: bool) -> None:
    """Raise a ValueError unless texts, or pairs of texts, can be made numbers and padded by it."""
    check_positive(max_length=max_length)
    if not callable(tokenizer) or not hasattr(tokenizer, "num_special_tokens_to_add"):
        raise ValueError(
            f"tokenizer is a {type(tokenizer).__name__}; give the tokenizer itself, as "
            "fastmaml.integrations.transformers.tokenizer(name) or transformers' "
            "AutoTokenizer.from_pretrained(name) loads it."
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"{type(tokenizer).__name__} has no padding token; choose one, for example "
            "tokenizer.pad_token = tokenizer.eos_token."
        )
    least = tokenizer.num_special_tokens_to_add(pair) + 1 + pair
    if not least <= max_length <= tokenizer.model_max_length:
        raise ValueError(
            f"max_length={max_length}: give a length from {least} (the special tokens and one "
            f"more) to {tokenizer.model_max_length}, the most that the model takes."
        )


def _path(parts: Iterable[Any], tokenizer: Any, cache: Cache) -> Path | None:
    """The file for this content and tokenizer; None for a tokenizer without a state."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    state = json.loads(backend.to_str())
    state |= {"truncation": None, "padding": None}  # what the last call asked for
    sides = [tokenizer.truncation_side, tokenizer.model_input_names]
    sides += [getattr(tokenizer, "split_special_tokens", False)]
    digest = hashlib.sha256()
    for part in (FORMAT, state, sides, *parts):
        digest.update(json.dumps(part, sort_keys=True).encode() + b"\n")
    folder = Path("~/.cache/fastmaml/tokens") if cache is True else Path(str(cache))
    return folder.expanduser() / f"{digest.hexdigest()}.safetensors"


def _kept(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file of the cache; None where there is none, or a damaged one."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError):
        return None


def _keep(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save

    try:
        write_whole(path, save(tensors))
    except OSError as error:
        warnings.warn(
            f"the token numbers cannot be kept in {path.parent} ({error}) and are made again next "
            "time: give cache= a folder, or False.",
            stacklevel=2,
        )
