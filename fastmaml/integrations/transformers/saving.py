"""`save_pretrained`: a model, or its adapters alone, as transformers and peft load them."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn

from fastmaml.integrations.transformers.adapters import require_peft

Saved = Literal["model", "adapter"]

ADAPTER = "adapter_model.safetensors"


def save_pretrained(
    model: nn.Module, folder: str | os.PathLike[str], tokenizer: Any = None
) -> Saved:
    """Write a model of transformers into a folder, from which ``from_pretrained`` loads it.

    With adapters under which everything is frozen, these (and the classifier on top) are written
    alone, in peft's format: small, and loaded by ``peft.PeftModel.from_pretrained`` or peft's
    ``AutoPeftModelFor...`` together with the model that they were put into. Where weights under
    the adapters are trainable, so that the model is no longer the one that was loaded, the adapters
    are merged into a whole model.

    Args:
        model: of transformers or peft, such as ``maml.module`` or what ``maml.adapt_to`` returns;
            or a `PooledClassifier`. It is not changed.
        folder: made if it is missing; files of the same names are replaced.
        tokenizer: is saved with it.

    Returns:
        What was written: "model" or "adapter".

    Raises:
        ValueError: a model of another kind.
    """
    path, held = Path(folder), cast(Any, model)
    if tokenizer is not None:
        tokenizer.save_pretrained(path)
    adapted = any(".lora_" in name for name, _ in model.named_parameters())
    if adapted and hasattr(model, "get_base_model"):
        if _frozen_beneath(model):
            # Looking on the hub whether the vocabulary has grown would need the internet.
            held.save_pretrained(path, save_embedding_layers=False)
            return "adapter"
        model = merged(model)
    elif adapted:
        on_top = _modules_on_top(model)
        if on_top is not None:
            _save_injected(model, on_top, path)
            return "adapter"
        model = merged(model)
    if not hasattr(model, "save_pretrained"):
        raise ValueError(
            f"a {type(model).__name__} has no save_pretrained: this is for models of transformers "
            "and peft. Save its state_dict() (safetensors.torch.save_file) instead."
        )
    held = cast(Any, model)
    held.save_pretrained(path)
    return "model"


def merged(model: nn.Module) -> Any:
    """A copy of the model whose adapters have become part of its weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: Any = copy.deepcopy(model)
    if hasattr(found, "merge_and_unload"):  # a PeftModel
        return found.merge_and_unload(safe_merge=True)
    layers = [(n, m) for n, m in found.named_modules() if isinstance(m, BaseTunerLayer)]
    for name, layer in layers:
        layer.merge(safe_merge=True)
        parent, _, own = name.rpartition(".")
        setattr(found.get_submodule(parent), own, layer.get_base_layer())
    for holder in found.modules():
        for left in ("peft_config", "_hf_peft_config_loaded"):
            holder.__dict__.pop(left, None)
    return found


def _frozen_beneath(model: nn.Module) -> bool:
    """Whether what peft writes is all that can have been learned."""
    written = {x.data_ptr() for x in require_peft().get_peft_model_state_dict(model).values()}
    return all(p.data_ptr() in written for p in model.parameters() if p.requires_grad)


def _modules_on_top(model: nn.Module) -> list[str] | None:
    """The modules beside the pretrained one that hold all else that is trainable; None: others do.

    Of a model into which adapters were put in place.
    """
    inside = getattr(model, "base_model_prefix", None)
    names = [n for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n]
    tops = {name.partition(".")[0] for name in names}
    if not isinstance(inside, str) or inside in tops or not hasattr(model, "name_or_path"):
        return None
    return sorted(tops)


def _save_injected(model: nn.Module, on_top: list[str], folder: Path) -> None:
    from safetensors.torch import save_file

    held: Any = model
    config = copy.deepcopy(held.peft_config["default"])
    config.base_model_name_or_path = held.name_or_path
    config.task_type = "SEQ_CLS"
    config.modules_to_save = on_top
    config.inference_mode = True
    state: dict[str, Tensor] = {
        f"base_model.model.{name.replace('.default.', '.')}": parameter.detach().contiguous()
        for name, parameter in model.named_parameters()
        if ".lora_" in name or name.partition(".")[0] in on_top
    }
    config.save_pretrained(folder)
    save_file(state, folder / ADAPTER, metadata={"format": "pt"})
