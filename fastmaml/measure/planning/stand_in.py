"""A language model without memory: its configuration, its layers, and fake tensors for weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from fastmaml.integrations.transformers.adapters import Lora, with_generating_lora, with_lora
from fastmaml.integrations.transformers.loading import is_path, quiet, require_transformers
from fastmaml.measure.planning.known import KNOWN_MODELS


def configuration(model: Any) -> Any:
    """The configuration of transformers that is meant.

    Args:
        model: one; the name of a known model; a folder with a ``config.json`` or such a file; or a
            name on the Hugging Face hub.

    Raises:
        ImportError: transformers is not installed.
        ValueError: there is none, or its model has an encoder and a decoder.
    """
    transformers = require_transformers()
    config = _found(transformers, model) if isinstance(model, str | Path) else model
    if not hasattr(config, "model_type"):
        raise ValueError(
            f"model={model!r} is a {type(model).__name__}: give a name, a folder, or a "
            "configuration of transformers."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"model={_short(model)} has an encoder and a decoder, of which nothing is planned: "
            "measure it with fastmaml bench module."
        )
    return config


def _short(model: Any) -> str:
    """How an error names it: a configuration prints as a page."""
    return repr(model) if isinstance(model, str | Path) else f"{type(model).__name__}(...)"


def _found(transformers: Any, model: str | Path) -> Any:
    name = str(model)
    if name.lower() in KNOWN_MODELS:
        return transformers.AutoConfig.for_model(**KNOWN_MODELS[name.lower()])
    try:
        with quiet(transformers):
            return transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if is_path(name) and not Path(name).exists():
            reason = "there is no such folder"
        raise ValueError(
            f"there is no configuration of a model {name!r} ({reason}). Give one of "
            f"{', '.join(KNOWN_MODELS)}, a folder with a config.json, or a name on the Hugging "
            "Face hub (which needs the internet or its cache, and HF_HUB_OFFLINE unset)."
        ) from error


def generates(config: Any) -> bool:
    """Whether the model gives tokens, by its configuration; else it classifies."""
    transformers = require_transformers()
    named = getattr(config, "architectures", None)
    if named:
        return any(n.endswith(("ForCausalLM", "LMHeadModel")) for n in named)
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    encoders = transformers.models.auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return config.model_type in known and config.model_type not in encoders


def with_layers(config: Any, layers: int) -> Any:
    """The configuration of the same model with so many layers."""
    found = copy.deepcopy(config)
    found.num_hidden_layers = layers
    if getattr(found, "layer_types", None):
        found.layer_types = found.layer_types[:layers]
    return found


def layers_alike(config: Any) -> int | None:
    """How many layers there are, where its configuration tells of no difference between them."""
    count = getattr(config, "num_hidden_layers", None)
    kinds = getattr(config, "layer_types", None) or ()
    return count if type(count) is int and len(set(kinds)) <= 1 else None


def stand_in(config: Any, lora: Lora | None, dtype: torch.dtype, checkpointed: bool) -> nn.Module:
    """The model in training mode, made of fake tensors: call it inside a `FakeTensorMode`.

    Args:
        config: of transformers.
        lora: adapters, with all else frozen; None where everything is learned.
        dtype: of the weights.
        checkpointed: whether its layers keep their inputs only.

    Raises:
        ValueError: transformers has no such model, or peft finds no layers for the adapters.
    """
    transformers = require_transformers()
    causal = generates(config)
    # Made outside of the mode, which does not know the tensors that torch.tensor makes on "meta".
    with unset_fake_temporarily(), torch.device("meta"), quiet(transformers):
        model = _made(transformers, config, causal, dtype)
        if checkpointed:
            _checkpoint_layers(model)
        if lora is not None:
            model = _with_adapters(model, lora, causal)
    _replaced(model, _maker())
    found: nn.Module = model.train()
    return found


def _made(transformers: Any, config: Any, causal: bool, dtype: torch.dtype) -> Any:
    cls = "AutoModelForCausalLM" if causal else "AutoModelForSequenceClassification"
    try:
        return getattr(transformers, cls).from_config(config, dtype=dtype)
    except ValueError as error:
        raise ValueError(
            f"model={_short(config)}: transformers.{cls} makes no model of it "
            f"({str(error).splitlines()[0]}). Plans are of decoders and of encoders of texts."
        ) from error


def _with_adapters(model: nn.Module, lora: Lora, causal: bool) -> nn.Module:
    head = {n for n, _ in model.named_parameters() if n.startswith(("classifier", "score"))}
    try:
        if causal:
            return with_generating_lora(model, lora, "CAUSAL_LM")
        return with_lora(model, lora, head)
    except ValueError as error:
        raise ValueError(
            f"{error} In a plan that is lora=Lora({lora.rank}, targets=(...)), or --lora-targets "
            "with names after it."
        ) from error


def _checkpoint_layers(model: Any) -> None:
    # The first is transformers' newer name of it.
    older = getattr(model, "gradient_checkpointing_enable", None)
    switch = getattr(model, "activation_checkpointing_enable", older)
    if switch is None or not getattr(model, "supports_gradient_checkpointing", False):
        raise ValueError(f"{type(model).__name__} cannot checkpoint its layers: layers='kept'.")
    switch()


def _maker() -> Callable[[Tensor], Tensor]:
    """Fake tensors for those on the meta device, one for each: tied weights stay tied."""
    made: dict[int, Tensor] = {}

    def make(x: Tensor) -> Tensor:
        if id(x) not in made:
            fake = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cpu")
            own = isinstance(x, nn.Parameter)
            made[id(x)] = nn.Parameter(fake, x.requires_grad) if own else fake
        return made[id(x)]

    return make


def _replaced(model: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Exchange parameters, buffers, and tensors that modules have as plain attributes."""
    for module in model.modules():
        parts: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module.__dict__)
        for part in parts:
            part.update({name: make(x) for name, x in part.items() if isinstance(x, Tensor)})
