"""`AnswerTokens`: prompts and their answers as token numbers, padded only in the meta-batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from fastmaml.episodes.batch import Batch
from fastmaml.episodes.prompts import Example
from fastmaml.episodes.tokens import BLOCK, Cache, cached, check_tokenizer, padded_length
from fastmaml.losses import IGNORED

PROMPT, ANSWER = 1, 2
"""What of a text has been cut."""


@final
@dataclass(frozen=True)
class AnswerTokens:
    """The token numbers of many texts, one after the other, each a prompt and its answer.

    Attributes:
        ids: int32 ``[tokens]``.
        starts: int64 ``[texts + 1]``, where each text begins, and the end of the last.
        answers: int64 ``[texts]``, where each text's answer begins.
        pad: the number of the padding token.
        max_length: neither a text nor, of models with an encoder, a prompt or an answer is longer.
        cut: how many texts were longer and have been cut.
    """

    ids: Tensor
    starts: Tensor
    answers: Tensor
    pad: int
    max_length: int
    cut: int

    def __len__(self) -> int:
        return len(self.answers)

    def to(self, device: torch.device | str | None) -> AnswerTokens:
        """The same on another device; None for where it is."""
        moved = {n: getattr(self, n).to(device) for n in ("ids", "starts", "answers")}
        return replace(self, **moved)

    def texts(self, index: Tensor, length: int) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs of a decoder, and its labels, for the texts at `index`, int64 ``[...]``.

        Returns:
            ``input_ids`` and ``attention_mask``, padded on the right, and the labels: those of the
            answers, and -100 elsewhere. All int64 ``[..., length]``.
        """
        begin, answer, end = self._spans(index)
        ids, there = self._padded(begin, end, length)
        place = begin.unsqueeze(-1) + torch.arange(length, device=begin.device)
        labels = torch.where(there & (place >= answer.unsqueeze(-1)), ids, IGNORED)
        return {"input_ids": ids, "attention_mask": there.long()}, labels

    def prompts(
        self, index: Tensor, length: int, answer_length: int, start: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs of a model with an encoder, and its labels, for the texts at `index`.

        Args:
            index: int64 ``[...]``.
            length: of the prompts.
            answer_length: of the answers.
            start: the token that a decoder begins with.

        Returns:
            ``input_ids`` and ``attention_mask`` ``[..., length]`` of the prompts,
            ``decoder_input_ids`` ``[..., answer_length]``, which are the answers one place later,
            and the labels ``[..., answer_length]``.
        """
        begin, answer, end = self._spans(index)
        ids, there = self._padded(begin, answer, length)
        labels, answered = self._padded(answer, end, answer_length)
        first = torch.full_like(labels[..., :1], start)
        inputs = {
            "input_ids": ids,
            "attention_mask": there.long(),
            "decoder_input_ids": torch.cat([first, labels[..., :-1]], -1),
        }
        return inputs, torch.where(answered, labels, IGNORED)

    def batch(self, index: Tensor, sizes: tuple[int, int, int], start: int | None) -> Batch:
        """Inputs and labels of the texts at `index`, in the sizes that `longest` gives.

        Args:
            index: int64 ``[...]``.
            sizes: of a text, a prompt and an answer.
            start: the token that a decoder begins with, of a model with an encoder; None for
                others.
        """
        whole, prompt, answer = sizes
        if start is None:
            return Batch(*self.texts(index, whole))
        return Batch(*self.prompts(index, prompt, answer, start))

    def longest(self, *indices: Tensor) -> tuple[int, int, int]:
        """Of the texts at `indices`: the length of the longest text, prompt and answer, rounded up.

        Finding it waits for the device.
        """
        spans = [self._spans(index) for index in indices]
        parts = [(e - b, a - b, e - a) for b, a, e in spans]
        sizes = [torch.stack([x.max() for x in kind]).max() for kind in zip(*parts, strict=True)]
        whole, prompt, answer = (
            padded_length(int(size), self.max_length) for size in torch.stack(sizes).tolist()
        )
        return whole, prompt, answer

    def _spans(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index = index.to(self.starts.device)
        return self.starts[index], self.answers[index], self.starts[index + 1]

    def _padded(self, begin: Tensor, end: Tensor, length: int) -> tuple[Tensor, Tensor]:
        place = begin.unsqueeze(-1) + torch.arange(length, device=begin.device)
        there = place < end.unsqueeze(-1)
        return torch.where(there, self.ids[torch.where(there, place, 0)].long(), self.pad), there


def answer_tokens(
    examples: Sequence[Example],
    tokenizer: Any,
    *,
    max_length: int,
    separator: str = " ",
    chat: bool = False,
    encoder: bool = False,
    cache: Cache = True,
) -> AnswerTokens:
    """The texts of all examples: of one with options, each of these in turn.

    A prompt and its answer are made numbers apart, so that what is learned is what a model sees
    when it generates after the prompt.

    Args:
        examples: prompts and answers.
        tokenizer: of transformers.
        max_length: a longer text loses the beginning of its prompt, and the end of its answer where
            that alone takes more than half.
        separator: between prompt and answer.
        chat: whether the tokenizer's chat template makes the text, also where the prompt is no
            conversation.
        encoder: whether the model has an encoder, which reads the prompt; else it goes on from it.
        cache: where the numbers are kept; see `tokenised`.

    Raises:
        ValueError: a tokenizer without padding token, end token or, where it is needed, chat
            template, or an option that is too long.
    """
    check_tokenizer(tokenizer, max_length, False)
    rows = [(x, text) for x in examples for text in x.options or (x.answer,)]
    pairs = [_pair(*row, tokenizer, separator, chat, encoder) for row in rows]
    plain = [isinstance(example.prompt, str) and not chat for example, _ in rows]
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end is None and not encoder:
        raise ValueError(
            f"{type(tokenizer).__name__} has no token that ends a text, with which every answer "
            "ends: choose one, for example tokenizer.eos_token = '</s>'."
        )
    layout = _Layout(max_length, tokenizer.bos_token_id, end, encoder)
    kept = cached(
        cache,
        tokenizer,
        (asdict(layout), plain, pairs),
        lambda: _numbers(pairs, plain, tokenizer, layout),
    )
    cut = kept.pop("cut")
    found = AnswerTokens(
        **kept, pad=tokenizer.pad_token_id, max_length=max_length, cut=int((cut > 0).sum())
    )
    _check_options(examples, found, cut)
    return found


def _check_options(examples: Sequence[Example], tokens: AnswerTokens, cut: Tensor) -> None:
    """Options are told apart by their tokens, all of which have to be there."""
    row = 0
    for example in examples:
        known: dict[tuple[int, ...], str] = {}
        for text in example.options:
            ids = tuple(tokens.ids[tokens.answers[row] : tokens.starts[row + 1]].tolist())
            if cut[row] == ANSWER:
                raise ValueError(
                    f"max_length={tokens.max_length} cuts off the end of the option {text[:60]!r} "
                    f"of task {example.task!r}, by which options are told apart: raise it."
                )
            if ids in known:
                raise ValueError(
                    f"the options {known[ids]!r} and {text!r} of task {example.task!r} are the "
                    "same tokens, so that none is likelier: give others, or another tokenizer."
                )
            known[ids] = text
            row += 1
        row += not example.options


@dataclass(frozen=True)
class _Layout:
    """How numbers are put together: the longest, the first and last token, and with what model."""

    max_length: int
    begin: int | None
    end: int | None
    encoder: bool

    def whole(self, prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
        """A plain text: prompt and answer of a decoder are one text, with one end."""
        if self.encoder:
            return prompt, answer
        prompt = prompt[:-1] if len(prompt) > 1 and prompt[-1] == self.end else prompt
        return prompt, [*answer, *([] if self.end is None else [self.end])]

    def cut(self, prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
        """Both, no longer than they may be, together or each."""
        longest = self.max_length
        if self.encoder:
            return prompt[-longest:], answer[:longest]
        answer = answer[: max(longest // 2, longest - len(prompt))]
        room = longest - len(answer)
        if len(prompt) <= room:
            return prompt, answer
        first = prompt[:1] if prompt[0] == self.begin else []
        return [*first, *prompt[len(prompt) - room + len(first) :]], answer


def _pair(
    example: Example, answer: str, tokenizer: Any, separator: str, chat: bool, encoder: bool
) -> tuple[str, str]:
    """The text before and the text of the answer."""
    if isinstance(example.prompt, str) and not chat:
        return example.prompt, answer if encoder else separator + answer
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            f"{type(tokenizer).__name__} has no chat template, which messages need: give one "
            "(tokenizer.chat_template = ...), take a model that was trained to chat, or make texts "
            "of the messages with prompt=."
        )
    prompt = example.prompt
    said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
    told = [*said, {"role": "assistant", "content": answer}]
    before = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(told, tokenize=False)
    if not whole.startswith(before):
        raise ValueError(
            "the tokenizer's chat template writes a conversation otherwise once it is answered, so "
            f"what is the answer in it is unknown: {before[-60:]!r} is not how {whole[:200]!r} "
            "begins. Give another template, or make texts of the messages with prompt=."
        )
    said_last = whole[len(before) :]
    marks = [mark for mark in tokenizer.all_special_tokens if mark in said_last]
    return (
        before,
        said_last if marks or not tokenizer.eos_token else said_last + tokenizer.eos_token,
    )


def _numbers(
    pairs: Sequence[tuple[str, str]], plain: Sequence[bool], tokenizer: Any, layout: _Layout
) -> dict[str, Tensor]:
    ids: list[Tensor] = []
    ends, answers, cut = [0], [], []
    encoded = _encoded(pairs, plain, tokenizer, layout.encoder)
    for (prompt, answer), is_plain in zip(encoded, plain, strict=True):
        whole = layout.whole(prompt, answer) if is_plain else (prompt, answer)
        shorter = layout.cut(*whole)
        cut.append(ANSWER if shorter[1] != whole[1] else PROMPT * (shorter[0] != whole[0]))
        ids.append(torch.tensor([*shorter[0], *shorter[1]], dtype=torch.int32))
        answers.append(ends[-1] + len(shorter[0]))
        ends.append(ends[-1] + len(ids[-1]))
    return {
        "ids": torch.cat(ids),
        "starts": torch.tensor(ends),
        "answers": torch.tensor(answers),
        "cut": torch.tensor(cut, dtype=torch.uint8),
    }


def _encoded(
    pairs: Sequence[tuple[str, str]], plain: Sequence[bool], tokenizer: Any, encoder: bool
) -> Iterator[tuple[list[int], list[int]]]:
    def numbers(texts: list[str], special: bool) -> list[list[int]]:
        found: list[list[int]] = tokenizer(
            texts, add_special_tokens=special, return_attention_mask=False, verbose=False
        )["input_ids"]
        return found

    for first in range(0, len(pairs), BLOCK):
        block = slice(first, first + BLOCK)
        for is_plain, part in itertools.groupby(
            zip(plain[block], pairs[block], strict=True), key=lambda x: x[0]
        ):
            prompts, answers = zip(*(pair for _, pair in part), strict=True)
            yield from zip(
                numbers(list(prompts), is_plain),
                numbers(list(answers), is_plain and encoder),
                strict=True,
            )
