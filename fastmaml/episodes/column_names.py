"""Which columns of a table hold its texts and their labels."""

from __future__ import annotations

from collections.abc import Sequence

from fastmaml.episodes.table_files import NamedColumns

PAIRS = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
)
"""Columns of two texts that belong together, which are looked for first."""

SINGLES = (
    *("text", "sentence", "text_a", "utterance", "query", "question"),
    *("sentence1", "premise", "question1"),
)
"""Columns of a text of its own, also the first of a pair whose second is not there."""

LABELS = ("label", "labels", "intent", "category", "class")

Columns = str | Sequence[str] | None
"""One column of texts, two, or None for the ones that are commonly called so."""


def chosen_columns(data: NamedColumns, text: Columns, label: str | None) -> tuple[list[str], str]:
    """The names of the one or two columns of texts, and of that of the labels.

    Args:
        data: the columns that there are.
        text: those of the texts; None for a usual name.
        label: that of the labels; None for a usual name.

    Raises:
        ValueError: a column that is not there, or no usual name.
    """
    names = data.names
    if text is None:
        both = [list(pair) for pair in PAIRS if set(pair) <= set(names)]
        chosen = next(iter(both + [[name] for name in SINGLES if name in names]), [])
    else:
        chosen = [text] if isinstance(text, str) else list(text)
    labelled = label if label is not None else next((n for n in LABELS if n in names), None)
    if labelled not in names or not 1 <= len(chosen) <= 2 or not set(chosen) <= set(names):
        raise ValueError(
            f"cannot take text={chosen or text} and label={labelled!r} from {data.origin}, whose "
            f"columns are {', '.join(map(str, names)) or 'none'}. Name one or two columns of texts "
            f"with text= and the column of labels with label=.{_usual(not chosen, not labelled)}"
        )
    return chosen, labelled


def _usual(texts: bool, labels: bool) -> str:
    """The names that were looked for in vain."""
    pairs = ", ".join(" with ".join(pair) for pair in PAIRS)
    about_texts = f" Known names of texts are {pairs}; and alone {', '.join(SINGLES)}."
    return about_texts * texts + f" Known names of labels are {', '.join(LABELS)}." * labels
