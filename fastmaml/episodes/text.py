"""`text`: few-shot episodes over the classes of labelled texts, such as intents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor

from fastmaml.episodes.batch import Batch, Episodes
from fastmaml.episodes.checks import check_choice
from fastmaml.episodes.class_names import Label, name_of, names_of, ordered
from fastmaml.episodes.held_out import SPLITS, Held, chosen_split, held_out
from fastmaml.episodes.sampler import EpisodeSampler
from fastmaml.episodes.tables import Columns, Table, read_table
from fastmaml.episodes.tokens import Cache, Tokens, tokenised


def text(
    data: Any,
    tokenizer: Any,
    ways: int = 5,
    shots: int = 1,
    queries: int | None = 5,
    tasks: int = 8,
    split: str = "train",
    *,
    validation_classes: Held = 0,
    test_classes: Held = 0,
    classes_seed: int = 0,
    leave_out: Iterable[Label] = (),
    rows: Columns = None,
    text: Columns = None,
    label: str | None = None,
    max_length: int = 64,
    seed: int = 0,
    device: torch.device | str | None = None,
    cache: Cache = True,
) -> TextSampler:
    """Episodes of labelled texts: a task tells `ways` classes apart, each from `shots` texts.

    Inputs are dicts of ``input_ids``, ``attention_mask`` and, where the tokenizer makes them,
    ``token_type_ids``, int64 ``[tasks, examples, length]``. The length is that of the longest text
    of the meta-batch, rounded up to one of few lengths (`padded_length`) so that shapes repeat; it
    is the same for support and query sets. Targets are int64 ``[tasks, examples]``.

    The classes of the three splits are disjoint. Which are held out of "train" is decided by their
    names or, where only numbers are given, by an order that hangs on `classes_seed` and the names
    alone: the first ones are "test", the next "validation".

    Args:
        data: a file, a `datasets.Dataset` or `DatasetDict`, or a name on the Hugging Face hub; see
            `fastmaml.episodes.tables.read_table`, as for `rows`, `text` and `label`.
        tokenizer: of transformers; `fastmaml.integrations.transformers.tokenizer` loads one.
        ways: classes a task.
        shots: support examples a class.
        queries: query examples a class; None for as many as `shots`.
        tasks: tasks a meta-batch.
        split: "train", "validation" or "test".
        validation_classes: how many classes are held out for validation, or their names.
        test_classes: how many classes are held out for testing, or their names.
        classes_seed: of the order in which classes are held out.
        leave_out: labels that are no classes, such as "oos" or ["oos", "other"]; they need not
            occur.
        rows: only the rows with one of these in the column ``split``; None for all.
        text: the column of texts, or two of pairs; None for a usual name.
        label: the column of labels; None for a usual name.
        max_length: longer texts are cut to so many tokens.
        seed: of the sampler's own generator.
        device: where the tokens are held and episodes are made; None for the CPU.
        cache: where token numbers are kept from one run to the next: a folder, True for
            ``~/.cache/fastmaml/tokens``, or False.

    Raises:
        FileNotFoundError, ConnectionError, ImportError: as `read_table`.
        ValueError: an empty split, a class that does not exist or is held out twice, data or a
            tokenizer that is of no use, or as `EpisodeSampler`.
    """
    check_choice("split", split, SPLITS)
    table = read_table(data, text=text, label=label, rows=rows)
    out = {name_of(x) for x in ([leave_out] if isinstance(leave_out, str) else leave_out)}
    names = names_of(table.labels, table.origin)
    classes = [c for c in ordered(names) if c not in out]
    parts = held_out(classes, validation_classes, test_classes, classes_seed)
    chosen = chosen_split(split, parts)
    index, labels = _examples(names, chosen)
    queries = shots if queries is None else queries
    _check_sizes(table, Counter(names), chosen, shots, queries)
    tokens = tokenised(table, tokenizer, max_length, cache).to(device)
    return TextSampler(
        (index, labels),
        ways=ways,
        shots=shots,
        queries=queries,
        tasks=tasks,
        seed=seed,
        device=device,
        tokens=tokens,
    )


@final
class TextSampler(EpisodeSampler):
    """Episodes of token numbers; both sets of a meta-batch are padded to the same length.

    Args:
        data: the numbers of the texts in `tokens`, and their labels.
        tokens: the texts.
        settings: of `EpisodeSampler`.
    """

    def __init__(self, data: tuple[Tensor, Tensor], tokens: Tokens, **settings: Any) -> None:
        super().__init__(data, **settings)
        self._tokens = tokens

    def sample(self) -> Episodes:
        """The next meta-batch; its texts are padded to one length."""
        rows = super().sample()
        length = self._tokens.padded_length(rows.support.inputs, rows.query.inputs)

        def batch(index: Batch) -> Batch:
            return Batch(self._tokens.batch(index.inputs, length), index.targets)

        return Episodes(batch(rows.support), batch(rows.query))


def _examples(names: list[str], chosen: list[str]) -> tuple[Tensor, Tensor]:
    """The rows of the chosen classes, and the number of each row's class."""
    number = {name: i for i, name in enumerate(chosen)}
    kept = [(i, number[name]) for i, name in enumerate(names) if name in number]
    index, labels = zip(*kept, strict=True)
    return torch.tensor(index), torch.tensor(labels)


def _check_sizes(
    table: Table, counts: Counter[str], chosen: list[str], shots: int, queries: int
) -> None:
    """As `EpisodeSampler` checks, but with the classes' names."""
    few = [name for name in chosen if counts[name] < shots + queries]
    if few:
        raise ValueError(
            f"{table.origin} has {counts[few[0]]} texts of class {few[0]!r}"
            f"{f' ({len(few) - 1} more classes are too small, too)' if len(few) > 1 else ''}, but "
            f"an episode takes shots={shots} + queries={queries} of a class. Choose smaller "
            "numbers, or name small classes in leave_out=."
        )
