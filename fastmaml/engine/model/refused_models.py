"""Modules that a meta-step cannot look into."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from fastmaml.integrations.quantized.host import find_quantized


def check_model(model: nn.Module) -> None:
    """Raise ValueError for what is no module, hides what it computes, or runs it elsewhere.

    A scripted module's calls are not seen (its dropout and normalisation would do as in plain
    PyTorch), and a replicated one runs in threads of its own.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}; give a torch.nn.Module.")
    for name, module in model.named_modules():
        where = f"model.{name}" if name else "model"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{where} was made by torch.jit.script or torch.jit.trace, which hide the model's "
                "layers: give the Python module that it was made from. For speed it need not be "
                "compiled: a meta-step is recorded."
            )
        if isinstance(module, nn.DataParallel):
            raise ValueError(
                f"{where} is an nn.DataParallel, which runs replicas in threads of its own: give "
                f"{where}.module, and put torch.nn.parallel.DistributedDataParallel around the "
                "MAML to use several GPUs."
            )
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise ValueError(
                f"{where} is a DistributedDataParallel, which would communicate at every inner "
                f"step: give {where}.module, and put DistributedDataParallel around the MAML."
            )
    find_quantized(model)  # which raises for what it does not know
    check_whole(model)
    for name, parameter in model.named_parameters():
        if parameter.layout is not torch.strided and parameter.requires_grad:
            raise ValueError(
                f"the parameter {name} is sparse ({parameter.layout}), and cannot be learned: keep "
                "its entries as a dense parameter and build the matrix in forward() with "
                "torch.sparse_coo_tensor, or freeze it with requires_grad_(False)."
            )


def check_whole(model: nn.Module) -> None:
    """Raise ValueError where this rank has only a share of the model's parameters.

    Or where a module is sharded by FSDP, whatever its parameters are now: it frees gathered weights
    after a forward pass and gathers them again for the first derivative alone. The second one reads
    freed memory, which ends the process (seen in PyTorch 2.13).
    """
    sharded = _classes("torch.distributed.fsdp", *_SHARDED)
    if sharded and (found := [n for n, m in model.named_modules() if isinstance(m, sharded)]):
        where = f"model.{found[0]}" if found[0] else "model"
        raise ValueError(
            f"{where} is sharded by FSDP, whose hooks free weights that a second derivative still "
            f"reads. {_INSTEAD}"
        )
    distributed = _classes("torch.distributed.tensor", "DTensor")
    if not distributed:
        return
    for name, parameter in model.named_parameters():
        if isinstance(parameter, distributed):
            raise ValueError(
                f"the parameter {name} is a DTensor, of which each rank has a share, and a "
                f"meta-step needs it whole. {_INSTEAD}"
            )


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP sharded this very module."""
    return isinstance(module, _classes("torch.distributed.fsdp", *_SHARDED))


_SHARDED = ("FSDPModule", "FullyShardedDataParallel")
_INSTEAD = (
    "To shard what is learned, give the MAML itself to fully_shard, and nothing inside of it, and "
    "call it; evaluate, adapt_to and explain go between its unshard() and reshard(). To shard a "
    "frozen base: fastmaml.frozen.shard(model, device)."
)


def _classes(module: str, *names: str) -> tuple[Any, ...]:
    """Those of a module that the program has imported; else it can have none of their objects."""
    library = sys.modules.get(module)
    return tuple(getattr(library, name) for name in names if hasattr(library, name))
