"""What it takes to load from the hub or a folder: the library, tokenizers, configurations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def tokenizer(name: str) -> Any:
    """The tokenizer that belongs to a model; see `sequence_classifier` for `name` and errors.

    Where it has no padding token, as of many decoders, that of the end pads.
    """
    transformers = require_transformers()
    with explained(name), quiet(transformers):
        return _tokenizer(transformers, name)


def _tokenizer(transformers: Any, name: str) -> Any:
    found = transformers.AutoTokenizer.from_pretrained(name)
    if found.pad_token is None:
        found.pad_token = found.eos_token
    return found


def configuration(name: str, dropout: float | None, **settings: Any) -> Any:
    """A model's configuration, with every dropout probability as given (None: as it is)."""
    transformers = require_transformers()
    config = transformers.AutoConfig.from_pretrained(name, **settings)
    if dropout is not None:
        for field in [f for f in config.to_dict() if "drop" in f]:
            if isinstance(getattr(config, field), float | int | None):
                setattr(config, field, dropout)
    if config.pad_token_id is None:  # a decoder's, which looks for the last token before it
        config.pad_token_id = _padding(transformers, name, config)
    return config


def decoder_start(name: str) -> int | None:
    """The token that the decoder of a model with an encoder begins with; None for other models.

    Args:
        name: a folder, or a model's name on the Hugging Face hub.

    Raises:
        ValueError: there is no such model, or it does not say.
    """
    transformers = require_transformers()
    with explained(name), quiet(transformers):
        config = transformers.AutoConfig.from_pretrained(name)
    if not config.is_encoder_decoder:
        return None
    start: int | None = config.decoder_start_token_id
    if start is None:
        raise ValueError(f"the configuration of {name!r} has no decoder_start_token_id: set it.")
    return start


def _padding(transformers: Any, name: str, config: Any) -> int | None:
    """The token that pads: the tokenizer's where there is one, as texts come from it."""
    with contextlib.suppress(OSError, ValueError, ImportError):
        words = _tokenizer(transformers, name)
        if len(words) > len(words.all_special_tokens):  # else one made up where there is none
            found: int | None = words.pad_token_id
            return found
    end = config.eos_token_id
    return end[0] if isinstance(end, list) else end


def require_transformers() -> Any:
    """The library; an ImportError that says how to install it where it is absent."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            'language models need transformers: pip install "fastmaml[text]".'
        ) from error
    return transformers


def is_path(name: str) -> bool:
    """Whether it can be a folder's only: the hub's names are ``name`` or ``owner/name``."""
    return name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or "\\" in name


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """What transformers raises for a model that it cannot find or fetch, as one clear error."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if is_path(name) and not Path(name).exists():
            # The hub's words are of the form of names.
            home = name.startswith("~") and Path(name).expanduser().exists()
            reason = "write ~ as the whole path" if home else "there is no such folder"
        raise ValueError(
            f"there is no model {name!r} to load ({reason}). Give a folder with a model that "
            "save_pretrained wrote, or the name of one on the Hugging Face hub; the hub needs the "
            "internet, unless the model is in its cache, and HF_HUB_OFFLINE unset."
        ) from error


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Without progress bars and reports of newly initialised weights, which are meant."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
