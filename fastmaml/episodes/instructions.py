"""`instructions`: few-shot episodes of prompts and answers, for models that generate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from fastmaml.episodes.answers import answer_tokens
from fastmaml.episodes.batch import Batch
from fastmaml.episodes.checks import check_choice
from fastmaml.episodes.held_out import SPLITS, Held, chosen_split, held_out
from fastmaml.episodes.instruction_source import Instructions
from fastmaml.episodes.pools import Sampling
from fastmaml.episodes.prompts import Example, Prompts, Source
from fastmaml.episodes.rows import read_rows
from fastmaml.episodes.tokens import Cache


def instructions(
    data: Any,
    tokenizer: Any,
    support: int = 8,
    query: int = 8,
    tasks: int = 4,
    split: str = "train",
    *,
    validation_tasks: Held = 0,
    test_tasks: Held = 0,
    tasks_seed: int = 0,
    leave_out: str | Sequence[str] = (),
    prompt: Source = None,
    answer: Source = None,
    options: Source | Sequence[str] = None,
    task: Source = None,
    rows: str | Sequence[str] | None = None,
    query_data: Any = None,
    query_rows: str | Sequence[str] | None = None,
    header: Sequence[str] = (),
    limit: int | None = None,
    choose: bool = False,
    separator: str = " ",
    chat: bool = False,
    decoder_start: int | None = None,
    sampling: Sampling = "uniform",
    max_length: int = 256,
    seed: int = 0,
    device: torch.device | str | None = None,
    cache: Cache = True,
) -> Instructions:
    """Episodes of prompts and answers: a task is a data set, or one value of a column.

    Inputs are dicts of ``input_ids`` and ``attention_mask``, int64 ``[tasks, examples, length]``:
    the prompt, the answer, and the token that ends a text. Targets are int64 of the same shape: the
    tokens of the answer, and -100 elsewhere, as `fastmaml.losses.causal` takes them. With
    `decoder_start` (of a model with an encoder: T5, Bart) inputs hold the prompt, and
    ``decoder_input_ids``; targets are those of `fastmaml.losses.seq2seq`. The lengths are those of
    the longest text of the meta-batch, rounded up to one of few (`padded_length`).

    Of rows that are repeated within a task, one is kept.

    Args:
        data: files, a folder of files, a list of dicts, a data set of `datasets`, or a name on the
            hub, or a dict of several by task; see `fastmaml.episodes.rows.read_rows`. Files as
            MetaICL, CrossFit and UnifiedQA have them are read as they are.
        tokenizer: of transformers; `fastmaml.integrations.transformers.tokenizer` loads one.
        support: support examples a task.
        query: query examples a task, none of them in the support set.
        tasks: tasks a meta-batch.
        split: "train", "validation" or "test": which tasks.
        validation_tasks: how many tasks are held out for validation, or their names.
        test_tasks: how many tasks are held out for testing, or their names.
        tasks_seed: of the order in which tasks are held out, which hangs on it and on their names
            alone.
        leave_out: tasks that are not used at all; they need not occur.
        prompt: the column of prompts, a template such as ``"{premise} So {hypothesis}?"``, or a
            function of a row; it may give messages (``[{"role": "user", "content": ...}, ...]``),
            of which the last one is the answer unless `answer` is given. None for a usual name:
            prompt, input, instruction, question, messages, conversations.
        answer: likewise; usual names are answer, output, completion, response, target.
        options: likewise (options, choices), or a list for all rows: the texts to choose from.
        task: likewise (task, task_name); without such a column, a file or data set is a task.
        rows: only the rows with one of these in the column ``split``; None for all but
            `query_rows`.
        query_data: what query sets are drawn from; None for `data`, or for the rows `query_rows`
            of it where these are given.
        query_rows: likewise for the query sets.
        header: the names of columns of files that have none in their first line, such as
            ``("input", "output")``.
        limit: no more rows than this of each file or data set. Streams need it.
        choose: whether query sets hold every option of each example: `fastmaml.losses.causal` sees
            to the right one, and the model's choice is the option whose tokens are likeliest on
            average. Targets are then a dict of ``labels`` ``[tasks, query·options, length]`` and
            ``right`` ``[tasks, query]``, the number of the right option.
        separator: between prompt and answer.
        chat: whether prompts are put into the tokenizer's chat template, as messages always are.
        decoder_start: the token that a decoder begins with (``config.decoder_start_token_id``),
            for models with an encoder.
        sampling: how often a task is drawn: "uniform", "proportional" to its number of examples,
            to the square root of it ("sqrt"), or "equal": each meta-batch holds every task equally
            often, random ones making up what is left.
        max_length: a longer text loses the beginning of its prompt, and the end of its answer where
            that alone takes more than half; ``source.cut`` says how many texts did.
        seed: of the source's own generator.
        device: where the texts are held and episodes are handed out; None for the CPU.
        cache: where token numbers are kept from one run to the next: a folder, True for
            ``~/.cache/fastmaml/tokens``, or False.

    Raises:
        FileNotFoundError, ConnectionError, ImportError: as `read_rows`.
        ValueError: rows without prompt or answer, an empty split, a task with too few examples,
            `choose` where examples have no options, or a tokenizer that is of no use.
    """
    check_choice("split", split, SPLITS)
    how = Prompts(prompt, answer, options, task)

    def examples(data: Any, **which: Any) -> list[Example]:
        parts = read_rows(data, header=header, limit=limit, **which)
        return [x for part in parts for x in how.examples(part)]

    apart = query_data is not None or query_rows is not None
    wanted, asked_for, out = several(rows), several(query_rows), several(leave_out) or ()
    # Where query sets have rows of their own, support sets have the others.
    other = asked_for if wanted is None and query_data is None else None
    found = examples(data, rows=wanted, without=other or ())
    asked = examples(data if query_data is None else query_data, rows=asked_for) if apart else []
    names = sorted({x.task for x in found} - {str(name) for name in out})
    parts = held_out(names, validation_tasks, test_tasks, tasks_seed, "task")
    kept = {*chosen_split(split, parts, "task")}
    found = [_settled(x, choose and not apart) for x in once(found) if x.task in kept]
    asked = [_settled(x, choose) for x in once(asked) if x.task in kept]
    tokens = answer_tokens(
        [*found, *asked],
        tokenizer,
        max_length=max_length,
        separator=separator,
        chat=chat,
        encoder=decoder_start is not None,
        cache=cache,
    )
    return Instructions(
        found,
        asked if apart else None,
        tokens,
        support=support,
        query=query,
        tasks=tasks,
        choose=choose,
        decoder_start=decoder_start,
        sampling=sampling,
        seed=seed,
        device=device,
    )


def answered(
    data: Any,
    tokenizer: Any,
    *,
    prompt: Source = None,
    answer: Source = None,
    options: Source | Sequence[str] = None,
    task: Source = None,
    rows: str | Sequence[str] | None = None,
    header: Sequence[str] = (),
    limit: int | None = None,
    separator: str = " ",
    chat: bool = False,
    decoder_start: int | None = None,
    max_length: int = 256,
    cache: Cache = True,
) -> Batch:
    """All prompts and answers of one task, as `MAML.adapt_to` takes them.

    Args:
        data: as `instructions` takes it.
        tokenizer: of transformers.
        prompt, answer, options, task, rows, header, limit: as of `instructions`.
        separator, chat, decoder_start, max_length, cache: as of `instructions`.

    Returns:
        Inputs and targets as those of `instructions`, without the dimension ``tasks``.

    Raises:
        FileNotFoundError, ConnectionError, ImportError, ValueError: as `instructions`.
    """
    how = Prompts(prompt, answer, options, task)
    parts = read_rows(data, rows=several(rows), header=header, limit=limit)
    examples = [_settled(x, False) for part in parts for x in how.examples(part)]
    tokens = answer_tokens(
        examples,
        tokenizer,
        max_length=max_length,
        separator=separator,
        chat=chat,
        encoder=decoder_start is not None,
        cache=cache,
    )
    every = torch.arange(len(tokens))
    return tokens.batch(every, tokens.longest(every), decoder_start)


def once(examples: Sequence[Example]) -> list[Example]:
    """Without repetitions, which might be in a support and a query set."""
    seen: dict[Any, Example] = {}
    for x in examples:
        said = x.prompt if isinstance(x.prompt, str) else tuple(map(str, x.prompt))
        seen.setdefault((x.task, said, x.answer), x)
    return list(seen.values())


def several(names: str | Sequence[str] | None) -> Sequence[str] | None:
    """A list of names, of which one may be given alone."""
    return (names,) if isinstance(names, str) else names


def _settled(example: Example, choose: bool) -> Example:
    """With its options where there is something to choose, and without them elsewhere."""
    if not choose:
        return replace(example, options=())
    if not example.options:
        raise ValueError(
            f"choose=True, but task {example.task!r} has an example without options, "
            f"{str(example.prompt)[:60]!r}: name their column, or a list for all, with options=; "
            "or leave choose out."
        )
    return example
