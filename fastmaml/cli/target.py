"""The folder of ``--to``: what lies there is kept, unless it was asked to be replaced."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fastmaml._files import require_folder

_CONFIGURATION = ("config.json", "adapter_config.json")
_WEIGHTS = re.compile(
    r"((pytorch_)?model(-\d{5}-of-\d{5})?|adapter_model|classifier)\.(safetensors|bin)"
)
_BESIDE = frozenset(
    {
        *("generation_config.json", "id2label.json", "model.safetensors.index.json"),
        *("pytorch_model.bin.index.json", "tokenizer.json", "tokenizer_config.json"),
        *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "vocab.json"),
        *("vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
    }
)
"""What a saved model, adapter and tokenizer consist of: parts of two of them do not go together."""


def require_free(to: Path, overwrite: bool) -> None:
    """Raise a ValueError where a model must not, or cannot, be written to that folder."""
    require_folder(to, f"--to {to}")
    if not to.exists() or not any(to.iterdir()):
        return
    if not overwrite:
        raise ValueError(
            f"--to {to} is a folder with files in it: give another one, or --overwrite to replace "
            "the model that is there."
        )
    if not _holds_a_model(to):
        raise ValueError(
            f"--to {to} has files in it, but no saved model that --overwrite could replace: give "
            "another folder."
        )


@contextmanager
def replacing(to: Path) -> Iterator[Path]:
    """A folder to write a model to; it takes the place of the one in `to` when it is whole.

    Files that are no part of a model stay, and so does a README.
    """
    if not to.is_dir():
        yield to
        return
    old = [path for path in to.iterdir() if _of_a_model(path)]
    with TemporaryDirectory(dir=to, prefix=".new-") as folder:  # in there: it may be a mount
        yield Path(folder)
        new = {path.name: path for path in Path(folder).iterdir()}
        if (to / "README.md").exists():
            new.pop("README.md", None)
        for name, path in new.items():
            if path.is_dir():  # of chat templates, say; it may have one of that name to go into
                shutil.copytree(path, to / name, dirs_exist_ok=True)
            else:
                path.replace(to / name)
        for path in old:
            if path.name not in new:
                path.unlink()


def _holds_a_model(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir() if path.is_file()}
    return bool(names.intersection(_CONFIGURATION)) and any(map(_WEIGHTS.fullmatch, names))


def _of_a_model(path: Path) -> bool:
    known = path.name in _BESIDE or path.name in _CONFIGURATION or _WEIGHTS.fullmatch(path.name)
    return bool(known) and path.is_file()
