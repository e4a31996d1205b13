"""Low-rank adapters, as `peft` makes them."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from fastmaml.integrations.quantized.host import find_quantized


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


def with_lora(model: nn.Module, lora: Lora, trainable: Collection[str] = ()) -> nn.Module:
    """The same model with adapters inside, and all else frozen but its last layer.

    Adapters of a model in bfloat16 or float16 are in float32, as peft has them; the last layer
    stays in the model's dtype.

    Args:
        model: of transformers, or a `PooledClassifier`; changed in place.
        lora: which adapters.
        trainable: the names of other parameters that stay trainable.

    Raises:
        ImportError: peft is not installed.
        ValueError: peft finds no layers for the adapters, or the last layer is quantized.
    """
    head = [n for n, p in model.named_parameters() if p.requires_grad][-1].rpartition(".")[0]
    _check_head(model, head)
    with _fitting(model, lora):
        model = require_peft().inject_adapter_in_model(_config(lora), model)
    _in_full_precision(model)
    for name, parameter in model.named_parameters():
        own = ".lora_" in name or name in trainable
        parameter.requires_grad_(own or name.rpartition(".")[0] == head)
    return model


def _check_head(model: nn.Module, head: str) -> None:
    """Raise ValueError where the last layer, which is to be learned, is quantized."""
    host = find_quantized(model)
    if host is not None and head in {layer.name for layer in host.layers}:
        raise ValueError(
            f"the last layer, {head!r}, is quantized, and cannot be learned: load the model with "
            f"modules_to_not_convert=[{head!r}] (TorchAoConfig) or llm_int8_skip_modules "
            "(BitsAndBytesConfig)."
        )


def _in_full_precision(model: nn.Module) -> None:
    """Adapters of a model in 16 bits in float32, as `peft.get_peft_model` has them."""
    for name, parameter in model.named_parameters():
        if ".lora_" in name and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def with_generating_lora(model: nn.Module, lora: Lora, kind: str) -> nn.Module:
    """A `peft.PeftModel` of a model that generates, all frozen but the adapters.

    Args:
        model: of transformers; changed in place.
        lora: which adapters.
        kind: "CAUSAL_LM" or "SEQ_2_SEQ_LM", as `peft` calls it.

    Raises:
        ImportError: peft is not installed.
        ValueError: peft finds no layers for the adapters.
    """
    with _fitting(model, lora):
        found: nn.Module = require_peft().get_peft_model(model, _config(lora, task_type=kind))
    return found


def require_peft() -> Any:
    """The library; an ImportError that says how to install it where it is absent."""
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            'adapters need peft: pip install "fastmaml[text]" (or pip install peft).'
        ) from error
    return peft


def _config(lora: Lora, **more: Any) -> Any:
    return require_peft().LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=None if lora.targets is None else list(lora.targets),
        **more,
    )


@contextmanager
def _fitting(model: nn.Module, lora: Lora) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # Of layers that hold their weight transposed, which peft sees by itself.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            # Of weights of torchao, into which no adapter can be merged again.
            warnings.filterwarnings("ignore", message=".*without `get_apply_tensor_subclass`")
            # Of a property of transformers' models that peft reads.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            yield
    except ValueError as error:
        raise ValueError(
            f"lora targets={lora.targets} do not fit {type(model).__name__}: "
            f"{str(error).splitlines()[0].rstrip('.')}. Name the ends of linear layers with "
            f"Lora(targets=(...)), of {', '.join(_linear_layers(model))}."
        ) from error


def _linear_layers(model: nn.Module) -> list[str]:
    """The last parts of their names, each once; with the part before where that is a number."""
    found: dict[str, None] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            before, _, last = name.rpartition(".")
            found[f"{before.rpartition('.')[2]}.{last}" if last.isdecimal() else last] = None
    return list(found)
