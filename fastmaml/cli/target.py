"""The folder of ``--to``: what lies there is kept, unless it was asked to be replaced."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

MODEL_FILES = (
    *("config.json", "generation_config.json", "adapter_config.json", "id2label.json"),
    *("model*.safetensors", "pytorch_model*.bin", "adapter_model*", "*.index.json"),
    *(
        "classifier.safetensors",
        "tokenizer*",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template*",
    ),
    *("vocab.*", "merges.txt", "spiece.model", "sentencepiece.*"),
)
"""What a saved model, adapter and tokenizer consist of: parts of two of them do not go together."""


def require_free(to: Path, overwrite: bool) -> None:
    """Raise a ValueError where a model must not be written to that folder."""
    if to.exists() and not to.is_dir():
        raise ValueError(f"--to {to} is a file: give a folder.")
    if not overwrite and to.is_dir() and any(to.iterdir()):
        raise ValueError(
            f"--to {to} is a folder with files in it: give another one, or --overwrite to replace "
            "the model that is there."
        )


@contextmanager
def replacing(to: Path) -> Iterator[Path]:
    """A folder to write a model to; it takes the place of the one in `to` when it is whole.

    Files that are no part of a model stay.
    """
    if not to.is_dir():
        yield to
        return
    to = to.resolve()
    with TemporaryDirectory(dir=to.parent, prefix=f".{to.name}-") as new:
        yield Path(new)
        for pattern in MODEL_FILES:
            for old in to.glob(pattern):
                _remove(old)
        for path in Path(new).iterdir():
            _remove(to / path.name)
            path.rename(to / path.name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
