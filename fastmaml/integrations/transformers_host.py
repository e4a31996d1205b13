"""What models of Hugging Face transformers need inside a meta-step."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

ATTENTION = "fastmaml"
"""The name of our attention among transformers' implementations."""


@final
@dataclass(frozen=True)
class TransformersHost:
    """How a model that contains models of transformers runs inside a meta-step.

    While it does, and only then:

    - Attention is `F.scaled_dot_product_attention` through fastmaml, which has every derivative:
      transformers' fused ones have no second one. The configuration names it meanwhile.
    - A mask ``[examples, length]`` becomes one that broadcasts, without looking at its values as
      transformers does, which vmap and recordings cannot.
    - No cache of keys and values is made (``use_cache``).
    - Layers whose gradient checkpointing is on are checkpointed by fastmaml, which knows the
      adapted parameters and second derivatives.

    Attributes:
        configs: of the models, each once.
        replaceable: whether a model reads its attention's name from there, each.
        layers: modules whose gradient checkpointing is on.
    """

    configs: tuple[Any, ...]
    replaceable: tuple[bool, ...]
    layers: tuple[Any, ...]

    @contextlib.contextmanager
    def inside(self, checkpoint: Callable[..., Any]) -> Iterator[None]:
        """The context in which the model runs; ``checkpoint(layer, *args)`` keeps inputs only."""
        before = [(c, c._attn_implementation, getattr(c, "use_cache", None)) for c in self.configs]
        functions = [(layer, layer._gradient_checkpointing_func) for layer in self.layers]
        try:
            for layer in self.layers:
                layer._gradient_checkpointing_func = checkpoint
            for config in self._switched():
                config._attn_implementation = ATTENTION
            for config, _, cache in before:
                if cache:
                    config.use_cache = False
            yield
        finally:
            for layer, function in functions:
                layer._gradient_checkpointing_func = function
            for config, implementation, cache in before:
                config._attn_implementation = implementation
                if cache:
                    config.use_cache = cache

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
            lines.append(f"{len(self.layers)} layers are checkpointed, by fastmaml itself")
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
    _register()
    configs: dict[int, tuple[Any, bool]] = {}
    for module in models:
        _collect(module.config, bool(module._supports_sdpa), configs)
    layers = (m for m in model.modules() if getattr(m, "gradient_checkpointing", False))
    found = tuple(m for m in layers if hasattr(m, "_gradient_checkpointing_func"))
    found_configs, replaceable = zip(*configs.values(), strict=True)
    return TransformersHost(found_configs, replaceable, found)


def _collect(config: Any, replaceable: bool, found: dict[int, tuple[Any, bool]]) -> None:
    """A configuration and those inside it, each once."""
    if id(config) not in found:
        found[id(config)] = config, replaceable
        for name in getattr(config, "sub_configs", ()):
            if (inner := getattr(config, name, None)) is not None:
                _collect(inner, replaceable, found)


def _register() -> None:
    """Make our attention known to transformers, by the two interfaces that it has for that."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(ATTENTION, sdpa_attention_forward)
    AttentionMaskInterface.register(ATTENTION, attention_mask)


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **rest: Any,
) -> Tensor | None:
    """Where attention looks, True for the keys that count: ``[examples, 1, 1 or length, length]``.

    As transformers' own for `sdpa`, but whether there is a mask never depends on its values, and a
    mask that is the same for all queries stays one row.
    """
    from transformers import masking_utils

    square = q_length == kv_length and q_offset == 0 and rest.get("local_size") is None
    both_ways = mask_function is masking_utils.bidirectional_mask_function and kv_offset == 0
    if attention_mask is None and both_ways and allow_is_bidirectional_skip:
        return None
    causal = mask_function is masking_utils.causal_mask_function
    if attention_mask is None and causal and allow_is_causal_skip and square:
        return None
    if both_ways and attention_mask is not None and attention_mask.shape[-1] == kv_length:
        return attention_mask[:, None, None, :].bool()
    return masking_utils.sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        q_offset,
        kv_offset,
        mask_function or masking_utils.causal_mask_function,
        attention_mask,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        **rest,
    )
