"""Token numbers: padded as the tokenizer would, and kept from one run to the next."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_language import tokenizer

from fastmaml.engine.recording.captured import MAX_RECORDINGS
from fastmaml.episodes.tables import Table
from fastmaml.episodes.tokens import joined, padded_length, tokenised


def test_padded_lengths_are_few_and_suffice() -> None:
    assert [padded_length(n, 512) for n in (1, 8, 9, 17, 25, 33, 63, 64, 65, 97, 500)] == [
        *(8, 8, 16, 24, 32, 48, 64, 64, 96, 128, 512),
    ]
    assert len({padded_length(n, 128) for n in range(1, 129)}) == MAX_RECORDINGS
    assert padded_length(70, 80) == 80
    assert all(n <= padded_length(n, 100) <= 100 for n in range(1, 101))


def pairs() -> Table:
    texts = [" ".join(f"w{j}" for j in range(i % 9 + 1)) for i in range(40)]
    others = [" ".join(f"w{30 + j}" for j in range(i % 4 + 1)) for i in range(40)]
    return Table(texts, others, [0] * 40, "here")


@pytest.mark.parametrize("max_length", [7, 48])
def test_batches_are_what_the_tokenizer_pads(max_length: int) -> None:
    table, own = pairs(), tokenizer()
    tokens = tokenised(table, own, max_length, cache=False)
    assert tokens.ids.dtype == torch.int32
    index = torch.tensor([[0, 17, 8], [3, 3, 39]])
    batch = tokens.batch(index, tokens.padded_length(index))
    expected = own(
        [table.texts[i] for i in index.flatten()],
        [table.pairs[i] for i in index.flatten()],  # type: ignore[index]
        truncation=True,
        max_length=max_length,
        padding="max_length" if max_length == 7 else True,
        pad_to_multiple_of=None if max_length == 7 else 8,
        return_tensors="pt",
    )
    assert batch.keys() == {"input_ids", "token_type_ids", "attention_mask"}
    for name, values in batch.items():
        assert torch.equal(values.flatten(0, 1), expected[name]), name
    twice = joined([tokens, tokens]).batch(index + 40, batch["input_ids"].shape[-1])
    assert all(torch.equal(twice[name], batch[name]) for name in batch)


def test_a_tokenizer_without_types() -> None:
    names = ["input_ids", "attention_mask"]
    plain = tokenised(pairs(), tokenizer(model_input_names=names), 16, cache=False)
    assert plain.types is None
    assert plain.batch(torch.tensor([1]), 16).keys() == set(names)
    with pytest.raises(ValueError, match="different tokenizers"):
        joined([plain, tokenised(pairs(), tokenizer(), 16, cache=False)])


def test_the_cache_is_read_and_keyed_by_all_that_matters(tmp_path: Path) -> None:
    table, own = pairs(), tokenizer()
    fresh = tokenised(table, own, 16, tmp_path)
    (path,) = tmp_path.iterdir()
    kept = load_file(path)
    save_file(kept | {"ids": kept["ids"] + 1}, path)
    again = tokenised(table, own, 16, tmp_path)
    assert torch.equal(again.ids, fresh.ids + 1)  # so the file was read
    own(["w1"], truncation=True, max_length=4, padding=True)  # leaves traces in the tokenizer
    assert torch.equal(tokenised(table, own, 16, tmp_path).ids, again.ids)
    assert len(list(tmp_path.iterdir())) == 1

    others = [
        (table, own, 15),
        (table, tokenizer(words=59), 16),
        (table, tokenizer(truncation_side="left"), 16),
        (Table([*table.texts[:-1], "w9"], table.pairs, table.labels, "here"), own, 16),
        (Table(table.texts, None, table.labels, "here"), own, 16),
    ]
    for number, (other, used, length) in enumerate(others, 2):
        expected = tokenised(other, used, length, cache=False)
        assert torch.equal(tokenised(other, used, length, tmp_path).ids, expected.ids)
        assert len(list(tmp_path.iterdir())) == number
    path.write_bytes(b"damaged")
    assert torch.equal(tokenised(table, own, 16, tmp_path).ids, fresh.ids)
    assert torch.equal(load_file(path)["ids"], fresh.ids)


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="the token numbers cannot be kept"):
        tokens = tokenised(pairs(), tokenizer(), 16, tmp_path / "file")
    assert len(tokens) == 40
