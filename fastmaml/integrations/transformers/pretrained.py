"""Pretrained models of transformers that classify or generate, ready for `MAML`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from fastmaml.integrations.transformers.adapters import Lora, with_generating_lora, with_lora
from fastmaml.integrations.transformers.loading import (
    configuration,
    explained,
    quiet,
    require_transformers,
)
from fastmaml.integrations.transformers.quantizing import Quantize, check_quantize, in_eight_bits

CLASSIFIER = "classifier.safetensors"
"""The last layer of a `PooledClassifier` in its folder."""


def sequence_classifier(
    name: str,
    classes: int,
    *,
    pooling: Literal["model", "mean"] = "model",
    dropout: float | None = None,
    lora: Lora | None = None,
    dtype: torch.dtype | None = None,
    quantize: Quantize | None = None,
) -> nn.Module:
    """A pretrained encoder or decoder with a linear layer for `classes` classes.

    Args:
        name: a folder, or a model's name on the Hugging Face hub.
        classes: logits an example: as many as the task with most classes has, of those that will
            be tested on too. Tasks with fewer use the first ones (`losses.classification`).
        pooling: "model" is transformers' own `AutoModelForSequenceClassification`; "mean" puts one
            linear layer on the mean over tokens, for sentence encoders that were trained so: a new
            one, unless `save_pretrained` left one of as many classes in the folder.
        dropout: every dropout probability of the model; None leaves them as they were pretrained
            with. It acts in training mode only, as everywhere.
        lora: adapters to put in; None for none.
        dtype: of the weights, such as torch.bfloat16; None for that of the files. Adapters are in
            float32 all the same.
        quantize: "int8" keeps the linear layers below the last ones in 8 bits, by torchao; their
            weights are frozen, so it needs `lora`. None leaves them as they are.

    Raises:
        ImportError: transformers (or, for `lora`, peft; for `quantize`, torchao) is not installed.
        ValueError: there is no such model in the folder or on the hub, or it cannot be reached;
            `quantize` without `lora`, or of a model without linear layers.
    """
    transformers = require_transformers()
    check_quantize(quantize, lora)
    given = {} if dtype is None else {"dtype": dtype}
    with explained(name), quiet(transformers):
        config = configuration(name, dropout, num_labels=classes)
        if pooling == "mean":
            body = transformers.AutoModel.from_pretrained(name, config=config, **given)
            pooled = PooledClassifier(body, config.hidden_size, classes).to(body.dtype)
            pooled.load_classifier(name)
            model: nn.Module = pooled
            new = {"classifier.weight", "classifier.bias"}
        else:
            cls = transformers.AutoModelForSequenceClassification
            model, info = cls.from_pretrained(
                name, config=config, output_loading_info=True, **given
            )
            new = set(info["missing_keys"])
    if quantize is not None:
        in_eight_bits(model, new)
    return model if lora is None else with_lora(model, lora, new)


def language_model(
    name: str,
    *,
    dropout: float | None = None,
    lora: Lora | None = None,
    dtype: torch.dtype | None = None,
    quantize: Quantize | None = None,
) -> nn.Module:
    """A pretrained model that generates text: a decoder, or an encoder with one (T5, Bart).

    Its loss is `fastmaml.losses.causal` or, with an encoder, `fastmaml.losses.seq2seq`.

    Args:
        name: a folder, or a model's name on the Hugging Face hub.
        dropout: every dropout probability of the model; None leaves them as they were pretrained
            with.
        lora: adapters to put in, by `peft.get_peft_model`; all else is then frozen. None for none.
        dtype, quantize: as of `sequence_classifier`; what gives the next word stays as it is.

    Raises:
        ImportError: transformers (or, for `lora`, peft; for `quantize`, torchao) is not installed.
        ValueError: there is no such model in the folder or on the hub, it cannot be reached, or it
            does not generate; `quantize` without `lora`, or of a model without linear layers.
    """
    transformers = require_transformers()
    check_quantize(quantize, lora)
    given = {} if dtype is None else {"dtype": dtype}
    with explained(name), quiet(transformers):
        config = configuration(name, dropout)
        encoder = bool(config.is_encoder_decoder)
        kind = "AutoModelForSeq2SeqLM" if encoder else "AutoModelForCausalLM"
        if not encoder and hasattr(config, "is_decoder"):  # of BERT, which else sees what follows
            config.is_decoder = True
        model: nn.Module = getattr(transformers, kind).from_pretrained(name, config=config, **given)
    if quantize is not None:
        in_eight_bits(model)
    if lora is None:
        return model
    return with_generating_lora(model, lora, "SEQ_2_SEQ_LM" if encoder else "CAUSAL_LM")


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

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that `sequence_classifier` loads with ``pooling="mean"``.

        The body lies in it as transformers writes it, so that everything that loads one finds it.
        """
        from safetensors.torch import save_file

        body: Any = self.body
        body.save_pretrained(folder)
        state = {n: x.detach().contiguous() for n, x in self.classifier.state_dict().items()}
        save_file(state, Path(folder) / CLASSIFIER)

    def load_classifier(self, folder: str) -> bool:
        """Take the last layer that lies there, where there is one of the same size.

        Returns:
            Whether there was.
        """
        from safetensors.torch import load_file

        path = Path(folder) / CLASSIFIER
        state = load_file(path) if path.is_file() else {}
        own = {name: x.shape for name, x in self.classifier.state_dict().items()}
        if {name: x.shape for name, x in state.items()} != own:
            return False
        self.classifier.load_state_dict(state)
        return True
