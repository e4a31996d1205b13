"""`Prompts`: which columns, templates or functions of a row give its prompt and answer."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from fastmaml.episodes.rows import Rows

Row = Mapping[str, Any]
Source = str | Callable[[Row], Any] | None
"""A column, a template such as ``"{premise} Is it true that {hypothesis}?"``, or a function."""

MESSAGES = ("messages", "conversations")
TASKS = ("task", "task_name")
PROMPTS = ("prompt", "input", "instruction", "question")
ANSWERS = ("answer", "output", "completion", "response", "target", "answerKey")
OPTIONS = ("options", "choices")

ROLES = {"human": "user", "gpt": "assistant"}
"""What ShareGPT's files call the two."""


@final
@dataclass(frozen=True)
class Example:
    """One prompt, and what answers it.

    Attributes:
        task: what it belongs to.
        prompt: the text, or the messages ``{"role": ..., "content": ...}`` of a conversation.
        answer: the text that is to follow.
        options: the texts to choose from, the answer among them; empty where there is no choice.
    """

    task: str
    prompt: str | tuple[Mapping[str, str], ...]
    answer: str
    options: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class Prompts:
    """How rows become examples.

    Attributes:
        prompt, answer, options, task: where each comes from; None for a column with a usual name.
            Functions and templates find the name of the file or data set as ``task``, where no
            column is called so. `prompt` may give messages; `options` may be a list, the same for
            all rows. With options, an answer is one of them, or its number.
    """

    prompt: Source = None
    answer: Source = None
    options: Source | Sequence[str] = None
    task: Source = None

    def examples(self, part: Rows) -> list[Example]:
        """Those of all rows.

        Raises:
            ValueError: a column that is not there, or a row without prompt or answer, or whose
                answer is none of its options.
        """
        rows = [row if "task" in row else {"task": part.name, **row} for row in part.rows]
        names = set().union(*rows)
        messages = next((n for n in MESSAGES if n in names), None) if self.prompt is None else None
        prompt = self._prompt(part, names, messages)
        usual = ANSWERS if messages is None else ()  # else the last message is the answer
        answer = self._source(part, names, "answer", self.answer, usual, needed=messages is None)
        options = self._options(part, names)
        task = self._source(part, names, "task", self.task, TASKS, needed=False)
        found = []
        for number, row in enumerate(rows):
            place = f"row {number} of {part.origin}"
            said, text = _taken_apart(prompt(row), None if answer is None else answer(row), place)
            choice, keys = ((), ()) if options is None else _options(options(row), place)
            if choice:
                text = _chosen(text, choice, keys, place)
            text = _text("answer", text, place)
            own = part.name if task is None else _text("task", task(row), place)
            found.append(Example(own, said, text, choice))
        return found

    def _prompt(self, part: Rows, names: set[str], messages: str | None) -> Callable[[Row], Any]:
        if messages is not None:
            return lambda row: row.get(messages)
        if self.prompt is None and {"instruction", "input", "output"} <= names:  # Alpaca's
            return lambda row: "\n\n".join(filter(None, (row.get("instruction"), row.get("input"))))
        found = self._source(part, names, "prompt", self.prompt, PROMPTS, needed=True)
        assert found is not None
        return found

    def _options(self, part: Rows, names: set[str]) -> Callable[[Row], Any] | None:
        given = self.options
        if isinstance(given, str) or given is None or callable(given):
            return self._source(part, names, "options", given, OPTIONS, needed=False)
        return lambda row: given

    def _source(
        self,
        part: Rows,
        names: set[str],
        what: str,
        given: Source,
        usual: Sequence[str],
        needed: bool,
    ) -> Callable[[Row], Any] | None:
        if callable(given):
            return given
        if given is not None and "{" in given:
            return _template(what, given, names, part.origin)
        name = given if given is not None else next((n for n in usual if n in names), None)
        if name is None and not needed:
            return None
        if name not in names:
            raise ValueError(_absent(part, what, given, usual))
        return lambda row: row.get(name)


def _absent(part: Rows, what: str, given: str | None, usual: Sequence[str]) -> str:
    """What is said of a column that is not there."""
    own = ", ".join(sorted(map(str, set().union(*part.rows))))
    if given is None:
        asked = f"{part.origin} has no column for {what}: none is called {' or '.join(usual)}"
    else:
        asked = f"{part.origin} has no column for {what}={given!r}"
    return (
        f"{asked}. Its columns are {own}: name one as {what}, or give a template such as "
        "'{title}: {text}'."
    )


def _template(what: str, given: str, names: set[str], origin: str) -> Callable[[Row], str]:
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(given) if field is not None]
    except ValueError as error:
        raise ValueError(
            f"{what}={given!r} is no template ({error}): columns stand in braces, and a brace "
            "itself is doubled."
        ) from error
    columns = {re.split(r"[.\[]", field)[0] for field in fields}
    absent = sorted(columns - names)
    if absent or not columns:
        raise ValueError(
            f"the template {what}={given!r} names {', '.join(map(repr, absent)) or 'no column'}, "
            f"and {origin} has the columns {', '.join(sorted(map(str, names)))}."
        )

    def filled(row: Row) -> str:
        empty = [name for name in sorted(columns) if row.get(name) is None]
        if empty:
            raise ValueError(
                f"the template {what}={given!r} needs {empty[0]!r}, which a row of {origin} lacks: "
                f"{dict(row)!r:.200}."
            )
        try:
            return given.format_map(row)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"the template {what}={given!r} does not fit a row of {origin} ({error!r}): "
                f"{dict(row)!r:.200}."
            ) from error

    return filled


def _taken_apart(prompt: Any, answer: Any, place: str) -> tuple[Any, Any]:
    """The prompt and the answer; of a conversation, the last message is the answer."""
    if isinstance(prompt, str):
        return _text("prompt", prompt, place), answer
    if not isinstance(prompt, list | tuple) or not all(isinstance(m, Mapping) for m in prompt):
        raise ValueError(
            f"the prompt of {place} is {prompt!r}: give a text, or messages such as "
            "{'role': 'user', 'content': ...}."
        )
    messages = [_message(m, place) for m in prompt]
    if answer is None:
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise ValueError(
                f"the messages of {place} do not end with one of the role 'assistant' after "
                "another: that one is the answer. Or name a column with answer=."
            )
        answer = messages.pop()["content"]
    return tuple(messages), answer


def _message(message: Mapping[str, Any], place: str) -> dict[str, str]:
    if "from" in message and "value" in message:  # ShareGPT's
        role = ROLES.get(message["from"], message["from"])
        return {"role": role, "content": _text("message", message["value"], place)}
    if not isinstance(message.get("role"), str):
        raise ValueError(f"a message of {place} has no role: {message!r}.")
    return {"role": message["role"], "content": _text("message", message.get("content"), place)}


def _options(found: Any, place: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The options, and the keys by which an answer may name them."""
    keys: Any = ()
    if isinstance(found, Mapping) and isinstance(found.get("text"), list):  # ARC's
        found, keys = found["text"], found.get("label", ())
    if found is None or found == []:
        return (), ()
    if not isinstance(found, list | tuple):
        raise ValueError(f"the options of {place} are {found!r}: give a list of different texts.")
    texts = tuple(_text("option", option, place) for option in found)
    if len(set(texts)) < max(len(texts), 2) or len(keys) not in (0, len(texts)):
        raise ValueError(f"the options of {place} are {found!r}: give a list of different texts.")
    return texts, tuple(map(str, keys))


def _chosen(answer: Any, options: tuple[str, ...], keys: tuple[str, ...], place: str) -> str:
    """The option that is meant: by its key, its text or, where none is a number, by its number."""
    answer = answer[0] if isinstance(answer, list) and answer else answer
    text = str(answer)
    if text in keys:
        return options[keys.index(text)]
    if text in options and not isinstance(answer, bool):
        return text
    counted = not keys and not any(map(_is_number, options))
    if counted and text.isdecimal() and int(text) < len(options):
        return options[int(text)]
    raise ValueError(
        f"the answer of {place} is {answer!r}, which is none of its options "
        f"{', '.join(map(repr, options))}"
        + (f" and no number from 0 to {len(options) - 1}." if counted else ".")
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _text(what: str, value: Any, place: str) -> str:
    if isinstance(value, list) and value:  # several right answers: the first is learned
        value = value[0]
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"the {what} of {place} is {value!r}: give a text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the {what} of {place} is no text: {error}.") from error
    return value
