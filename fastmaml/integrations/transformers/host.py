"""What models of Hugging Face transformers need inside a meta-step."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from fastmaml.integrations.layers_again import within
from fastmaml.integrations.transformers.masks import of_transformers, value_free_masks

ATTENTION = "sdpa"
"""The one of transformers' implementations that calls `F.scaled_dot_product_attention`.

Models ask for it by this name and take other branches for any that they do not know, so a name of
our own would not do.
"""

PADDING_WARNING = "warn_if_padding_and_no_attention_mask"
"""The method of transformers' models that looks at token numbers."""


@final
@dataclass(frozen=True)
class TransformersHost:
    """How a model that contains models of transformers runs inside a meta-step.

    While it does, and only then:

    - Attention is `F.scaled_dot_product_attention`, which fastmaml gives every derivative:
      transformers' fused ones have no second one. The configuration names it meanwhile.
    - A mask ``[examples, length]`` becomes one that broadcasts, without looking at its values as
      transformers does, which vmap and recordings cannot (`value_free_masks`).
    - No cache of keys and values is made (``use_cache``). Without one and without a mask,
      transformers takes positions that begin anew for texts packed into one row, which do not see
      each other; where the model by itself makes a cache, it does not, and so neither here.
    - Without an attention mask, texts are not looked through for padding, of which transformers
      would warn: recordings cannot, and the run outside of a meta-step still does.
    - Layers whose gradient checkpointing is on are checkpointed by fastmaml, which knows the
      adapted parameters and second derivatives.

    Attributes:
        configs: of the models, each once.
        replaceable: whether a model reads its attention's name from there, each, and that stands
            for a function of transformers': a user's own may compute anything.
        layers: modules whose gradient checkpointing is on.
        functions: what the names of attention stand for.
        models: of transformers, each.
    """

    configs: tuple[Any, ...]
    replaceable: tuple[bool, ...]
    layers: tuple[Any, ...]
    functions: tuple[Any, ...]
    models: tuple[Any, ...]

    @contextlib.contextmanager
    def inside(self, checkpoint: Callable[..., Any]) -> Iterator[None]:
        """The context in which the model runs; ``checkpoint(layer, *args)`` keeps inputs only."""
        functions = [(layer, layer._gradient_checkpointing_func) for layer in self.layers]
        handles: list[Any] = []
        try:
            for layer in self.layers:
                layer._gradient_checkpointing_func = checkpoint
            for model in self.models:  # the instance's attribute hides the class's method
                model.__dict__[PADDING_WARNING] = _says_nothing
            handles = [
                model.register_forward_pre_hook(_with_mask, with_kwargs=True)
                for model in self.models
                if getattr(model.config, "use_cache", False)
            ]
            with self._configured(), value_free_masks():
                yield
        finally:
            for handle in handles:
                handle.remove()
            for model in self.models:
                model.__dict__.pop(PADDING_WARNING, None)
            for layer, function in functions:
                layer._gradient_checkpointing_func = function

    @contextlib.contextmanager
    def _configured(self) -> Iterator[None]:
        """The context of configurations that name our attention, and no cache."""
        before = [(c, c._attn_implementation, getattr(c, "use_cache", None)) for c in self.configs]
        switched = {id(config) for config in self._switched()}
        try:
            for config, implementation, cache in before:  # a setting reaches configs within
                here = ATTENTION if id(config) in switched else implementation
                config._attn_implementation = here
                if cache:
                    config.use_cache = False
            yield
        finally:
            for config, implementation, cache in before:
                config._attn_implementation = implementation
                if cache:
                    config.use_cache = cache

    def checkpointing(self, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        """`checkpoint` for layers, which read the configurations when they run again, too."""
        return within(self._configured, checkpoint)

    def notes(self) -> list[str]:
        """For `MAML.explain`: what is done differently."""
        names = sorted({str(config._attn_implementation) for config in self._switched()})
        lines = [
            f"{', '.join(names)} attention runs as fastmaml's, inside the meta-step only: that has "
            "second derivatives"
            if names
            else "attention is left as it is"
        ]
        if self.layers:
            lines.append(
                "its layers are checkpointed, by fastmaml itself; in forward mode (MixedMode) and "
                "in embeddings that adapt in some rows they run whole"
                if any(layer.training for layer in self.layers)
                else "gradient checkpointing does nothing in evaluation mode: model.train() does"
            )
        if any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")):
            lines.append("under autocast the model runs on PyTorch's operations, no backend's")
        return [f"transformers: {line}" for line in lines]

    def _switched(self) -> list[Any]:
        """Configurations whose attention changes: not eager where its probabilities are wanted."""
        return [
            config
            for config, can in zip(self.configs, self.replaceable, strict=True)
            if can and not (config._attn_implementation == "eager" and config.output_attentions)
        ]


def find_host(model: nn.Module) -> TransformersHost | None:
    """The host of a model that is, or contains, one of transformers; else None.

    Only a program that has imported transformers can have such a model, so nothing is imported.
    """
    library = sys.modules.get("transformers.modeling_utils")
    if library is None:
        return None
    models = tuple(m for m in model.modules() if isinstance(m, library.PreTrainedModel))
    if not models:
        return None
    configs: dict[int, tuple[Any, bool]] = {}
    for module in models:
        config, can = module.config, bool(module._supports_sdpa)
        configs[id(config)] = config, can and configs.get(id(config), (config, True))[1]
    for config, can in list(configs.values()):
        _collect(config, can, configs)
    layers = (m for m in model.modules() if getattr(m, "gradient_checkpointing", False))
    found = tuple(m for m in layers if hasattr(m, "_gradient_checkpointing_func"))
    every = [config for config, _ in configs.values()]
    functions = [_attention(library, model, config._attn_implementation) for config in every]
    ours = _attention(library, model, ATTENTION)
    replaceable = tuple(
        can and all(map(of_transformers, (*ours, *own)))
        for (_, can), own in zip(configs.values(), functions, strict=True)
    )
    known = (*ours, *sum(functions, ()))
    warning = tuple(m for m in models if PADDING_WARNING not in m.__dict__)
    return TransformersHost(tuple(every), replaceable, found, known, warning)


def _with_mask(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """Positions without a mask get one that leaves nothing out: see `TransformersHost`."""
    signature = inspect.signature(model.forward)
    bound = signature.bind_partial(*args, **kwargs)
    given: dict[str, Any] = bound.arguments
    if "attention_mask" not in signature.parameters or given.get("attention_mask") is not None:
        return None
    tokens: Any = given.get("input_ids")
    vectors: Any = given.get("inputs_embeds")
    if given.get("position_ids") is None or (tokens is None and vectors is None):
        return None
    like = vectors[..., 0] if tokens is None else tokens
    given["attention_mask"] = torch.ones_like(like, dtype=torch.int64)
    return bound.args, bound.kwargs


def _says_nothing(*_: Any) -> None:
    """In place of a warning."""


def _attention(library: Any, model: nn.Module, name: str | None) -> tuple[Any, ...]:
    """What runs in a model under a name of attention; each of its modules' files may have another.

    Nothing where that is not to be seen, as in models that do without the table of names.
    """
    if name is not None and name != "eager":
        table = getattr(library, "ALL_ATTENTION_FUNCTIONS", {})
        return (table[name],) if name in table else ()
    files = {type(m).__module__ for m in model.modules()}
    found = (vars(sys.modules[f]).get("eager_attention_forward") for f in files if f in sys.modules)
    return tuple(dict.fromkeys(f for f in found if f is not None))


def _collect(config: Any, replaceable: bool, found: dict[int, tuple[Any, bool]]) -> None:
    """The configurations inside one, after it, unless a model of their own has them."""
    for name in getattr(config, "sub_configs", ()):
        inner = getattr(config, name, None)
        if inner is not None and id(inner) not in found:
            found[id(inner)] = inner, replaceable
            _collect(inner, replaceable, found)
