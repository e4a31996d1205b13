"""Pretrained classifiers of transformers, ready for `MAML`."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal, final

from torch import Tensor, nn


@final
@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al., 2022), as `peft` makes them; all else is frozen but the head.

    Attributes:
        rank: of each adapter.
        alpha: the adapters' output is multiplied by ``alpha / rank``.
        dropout: of the adapters' inputs.
        targets: the names (or their ends) of the linear layers that get one; None for peft's choice
            for the architecture.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"Lora(rank={self.rank!r}): give a whole number of at least 1.")


def sequence_classifier(
    name: str,
    classes: int,
    *,
    pooling: Literal["model", "mean"] = "model",
    dropout: float | None = None,
    lora: Lora | None = None,
) -> nn.Module:
    """A pretrained encoder or decoder with a linear layer for `classes` classes.

    Args:
        name: a folder, or a model's name on the Hugging Face hub.
        classes: logits an example: as many as the task with most classes has, of those that will
            be tested on too. Tasks with fewer use the first ones (`losses.classification`).
        pooling: "model" is transformers' own `AutoModelForSequenceClassification`; "mean" puts one
            linear layer on the mean over tokens, for sentence encoders that were trained so.
        dropout: every dropout probability of the model; None leaves them as they were pretrained
            with. It acts in training mode only, as everywhere.
        lora: adapters to put in; None for none.

    Raises:
        ImportError: transformers (or, for `lora`, peft) is not installed.
        ValueError: there is no such model in the folder or on the hub, or it cannot be reached.
    """
    transformers = require_transformers()
    with _explained(name), _quiet(transformers):
        config = transformers.AutoConfig.from_pretrained(name, num_labels=classes)
        if dropout is not None:
            for field in [f for f in config.to_dict() if "drop" in f]:
                if isinstance(getattr(config, field), float | int | None):
                    setattr(config, field, dropout)
        if config.pad_token_id is None:  # a decoder's, which looks for the last token before it
            config.pad_token_id = _padding(transformers, name, config)
        if pooling == "mean":
            body = transformers.AutoModel.from_pretrained(name, config=config)
            model: nn.Module = PooledClassifier(body, config.hidden_size, classes)
            new = {"classifier.weight", "classifier.bias"}
        else:
            cls = transformers.AutoModelForSequenceClassification
            model, info = cls.from_pretrained(name, config=config, output_loading_info=True)
            new = set(info["missing_keys"])
    return model if lora is None else with_lora(model, lora, new)


def tokenizer(name: str) -> Any:
    """The tokenizer that belongs to a model; see `sequence_classifier` for `name` and errors.

    Where it has no padding token, as of many decoders, that of the end pads.
    """
    transformers = require_transformers()
    with _explained(name), _quiet(transformers):
        return _tokenizer(transformers, name)


def _tokenizer(transformers: Any, name: str) -> Any:
    found = transformers.AutoTokenizer.from_pretrained(name)
    if found.pad_token is None:
        found.pad_token = found.eos_token
    return found


def _padding(transformers: Any, name: str, config: Any) -> int | None:
    """The token that pads: the tokenizer's where there is one, as texts come from it."""
    with contextlib.suppress(OSError, ValueError, ImportError):
        words = _tokenizer(transformers, name)
        if len(words) > len(words.all_special_tokens):  # else one made up where there is none
            found: int | None = words.pad_token_id
            return found
    end = config.eos_token_id
    return end[0] if isinstance(end, list) else end


@final
class PooledClassifier(nn.Module):
    """Logits ``[examples, classes]`` from the mean of an encoder's last hidden states.

    Args:
        body: a model of transformers that returns ``last_hidden_state``.
        width: of that.
        classes: how many.
    """

    base_model_prefix = "body"
    """What is pretrained, as models of transformers name theirs."""

    def __init__(self, body: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.config = body.config
        self.classifier = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        """For ``[examples, length]`` token numbers and a mask that is 1 where there is a token."""
        output = self.body(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        hidden = output.last_hidden_state
        there = attention_mask.unsqueeze(-1).to(hidden.dtype)
        logits: Tensor = self.classifier((hidden * there).sum(1) / there.sum(1).clamp(min=1))
        return logits


def with_lora(model: nn.Module, lora: Lora, trainable: Collection[str] = ()) -> nn.Module:
    """The same model with adapters inside, and all else frozen but its last layer.

    Args:
        model: of transformers, or a `PooledClassifier`; changed in place.
        lora: which adapters.
        trainable: the names of other parameters that stay trainable.

    Raises:
        ImportError: peft is not installed.
        ValueError: peft finds no layers for the adapters.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            'lora= needs peft: pip install "fastmaml[text]" (or pip install peft).'
        ) from error
    head = [n for n, p in model.named_parameters() if p.requires_grad][-1].rpartition(".")[0]
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=None if lora.targets is None else list(lora.targets),
    )
    try:
        with (
            warnings.catch_warnings()
        ):  # of layers that hold their weight transposed, which it sees
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            model = peft.inject_adapter_in_model(config, model)
    except ValueError as error:
        raise ValueError(
            f"lora targets={lora.targets} do not fit {type(model).__name__}: {error}. Name the "
            "ends of its linear layers, for example targets=('query', 'value')."
        ) from error
    for name, parameter in model.named_parameters():
        own = ".lora_" in name or name in trainable
        parameter.requires_grad_(own or name.rpartition(".")[0] == head)
    return model


def require_transformers() -> Any:
    """The library; an ImportError that says how to install it where it is absent."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            'language models need transformers: pip install "fastmaml[text]".'
        ) from error
    return transformers


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """What transformers raises for a model that it cannot find or fetch, as one clear error."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"there is no model {name!r} to load ({reason}). Give a folder with a model that "
            "save_pretrained wrote, or the name of one on the Hugging Face hub; the hub needs the "
            "internet, unless the model is in its cache, and HF_HUB_OFFLINE unset."
        ) from error


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
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
