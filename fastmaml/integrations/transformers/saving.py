"""`save_pretrained`: a model, or its adapters alone, as transformers and peft load them."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn

from fastmaml.integrations.quantized.host import find_quantized
from fastmaml.integrations.transformers.adapters import require_peft
from fastmaml.integrations.transformers.loading import quiet, require_transformers

Saved = Literal["model", "adapter"]

ADAPTER = "adapter_model.safetensors"

CLASSES = "id2label.json"
"""Beside an adapter: the classes' names by their numbers, where they have names."""


def save_pretrained(
    model: nn.Module, folder: str | os.PathLike[str], tokenizer: Any = None
) -> Saved:
    """Write a model of transformers into a folder, from which ``from_pretrained`` loads it.

    With adapters under which everything is frozen, these (and the classifier on top) are written
    alone, in peft's format: small, and loaded by ``peft.PeftModel.from_pretrained`` or peft's
    ``AutoPeftModelFor...`` together with the model that they were put into. Where weights under
    the adapters are trainable, so that the model is no longer the one that was loaded, the adapters
    are merged into a whole model, whose tied weights are untied where an adapter changes one.

    Args:
        model: of transformers or peft, such as ``maml.module`` or what ``maml.adapt_to`` returns;
            or a `PooledClassifier`. It is not changed.
        folder: made if it is missing; files of the same names are replaced.
        tokenizer: is saved with it.

    Returns:
        What was written: "model" or "adapter". Beside an adapter, ``id2label.json`` has the names
        of classes, where the configuration of the model names them.

    Raises:
        ValueError: a model of another kind, `folder` is a file, or adapters would have to be merged
            into quantized weights, which would round them once more.
    """
    path = Path(folder)
    if path.is_file():
        raise ValueError(f"{path} is a file: give a folder.")
    held, kind = _written_of(model)
    with quiet(require_transformers()):  # it shows a bar even for a file that takes no time
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
        if kind == "injected":
            _save_injected(held, _modules_on_top(held) or [], path)
        elif kind == "adapter":
            # Looking on the hub whether the vocabulary has grown would need the internet.
            held.save_pretrained(path, save_embedding_layers=False)
        else:
            held.save_pretrained(path)
    if kind == "model":
        return "model"
    _save_names(held, path)
    return "adapter"


def _written_of(model: nn.Module) -> tuple[Any, str]:
    """What is to be written of a model, and how."""
    adapted = any(".lora_" in name for name, _ in model.named_parameters())
    if adapted and hasattr(model, "merge_and_unload"):
        if _frozen_beneath(model):
            return model, "adapter"
        model = merged(model)
    elif adapted:
        if _modules_on_top(model) is not None:
            return model, "injected"
        model = merged(model)
    if _quantized_here(model):
        raise ValueError(
            "the model's weights were quantized after it was loaded, and not by transformers, "
            "which could not load them again: save adapters, with all else frozen."
        )
    if not hasattr(model, "save_pretrained"):
        raise ValueError(
            f"a {type(model).__name__} has no save_pretrained: this is for models of transformers "
            "and peft. Save its state_dict() (safetensors.torch.save_file) instead."
        )
    return model, "model"


def _quantized_here(model: Any) -> bool:
    """Whether layers are quantized that transformers did not quantize."""
    held = model.body if isinstance(getattr(model, "body", None), nn.Module) else model
    return find_quantized(model) is not None and not getattr(held, "is_quantized", False)


def merged(model: nn.Module) -> Any:
    """A copy of the model whose adapters have become part of its weights.

    Raises:
        ValueError: these are quantized.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if find_quantized(model) is not None:
        raise ValueError(
            "a whole model would be written, with its adapters merged into quantized weights, "
            "which rounds them once more. What is written as adapters alone is a model of "
            "transformers or peft under whose adapters everything is frozen, with classifiers on "
            "top; or load the model without quantization and put the adapters into that."
        )
    found: Any = copy.deepcopy(model)
    layers = [(n, m) for n, m in found.named_modules() if isinstance(m, BaseTunerLayer)]
    _untie(found, [layer.get_base_layer() for _, layer in layers])
    if hasattr(found, "merge_and_unload"):  # a PeftModel
        return found.merge_and_unload(safe_merge=True)
    for name, layer in layers:
        layer.merge(safe_merge=True)
        parent, _, own = name.rpartition(".")
        setattr(found.get_submodule(parent), own, layer.get_base_layer())
    for holder in found.modules():
        for left in ("peft_config", "_hf_peft_config_loaded"):
            holder.__dict__.pop(left, None)
    return found


def _untie(model: Any, layers: list[Any]) -> None:
    """Give layers that share a weight one of their own, as an adapter changes theirs alone."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for layer in layers:
        weight = layer.weight
        if owners.get(id(weight), 0) < 2:
            continue
        owners[id(weight)] -= 1
        layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
        for module in model.modules():
            if hasattr(getattr(module, "config", None), "tie_word_embeddings"):
                module.config.tie_word_embeddings = False


def _frozen_beneath(model: nn.Module) -> bool:
    """Whether what peft writes is all that can have been learned."""
    names: Any = model.peft_config
    states = [
        require_peft().get_peft_model_state_dict(
            model, adapter_name=name, save_embedding_layers=False
        )
        for name in names
    ]
    written = {x.data_ptr() for state in states for x in state.values()}
    return all(p.data_ptr() in written for p in model.parameters() if p.requires_grad)


def _modules_on_top(model: nn.Module) -> list[str] | None:
    """The modules beside the pretrained one that hold all else that is trainable; None: others do.

    Of a model into which adapters were put in place.
    """
    inside = getattr(model, "base_model_prefix", None)
    names = [n for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n]
    tops = {name.partition(".")[0] for name in names}
    adapted = {n.partition(".")[0] for n, _ in model.named_parameters() if ".lora_" in n}
    if not isinstance(inside, str) or inside in tops or not hasattr(model, "name_or_path"):
        return None
    if adapted != {inside} or len(cast(Any, model).peft_config) != 1:
        return None  # peft would look for the adapters of a module that it copies whole
    return sorted(tops)


def _save_injected(model: nn.Module, on_top: list[str], folder: Path) -> None:
    from safetensors.torch import save_file

    held: Any = model
    ((adapter, own),) = held.peft_config.items()
    config = copy.deepcopy(own)
    config.base_model_name_or_path = held.name_or_path
    config.task_type = "SEQ_CLS"
    config.modules_to_save = on_top
    config.inference_mode = True
    state: dict[str, Tensor] = {
        f"base_model.model.{name.replace(f'.{adapter}.', '.')}": parameter.detach().contiguous()
        for name, parameter in model.named_parameters()
        if ".lora_" in name or name.partition(".")[0] in on_top
    }
    config.save_pretrained(folder)
    save_file(state, folder / ADAPTER, metadata={"format": "pt"})


def _save_names(model: Any, folder: Path) -> None:
    """Write what the classes are called, which an adapter's configuration does not hold."""
    names = getattr(getattr(model, "config", None), "id2label", None) or {}
    if any(name != f"LABEL_{number}" for number, name in names.items()):
        (folder / CLASSES).write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
