"""Modules that a meta-step cannot look into."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn


def check_model(model: nn.Module) -> None:
    """Raise ValueError for what is no module, hides what it computes, or runs it elsewhere.

    A scripted module's calls are not seen (its dropout and normalisation would do as in plain
    PyTorch), and a replicated one runs in threads of its own. One that is sharded by FSDP frees
    gathered weights after a forward pass and gathers them for its first derivative alone: the
    second one reads freed memory (a crash of the process in PyTorch 2.13).
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
        if isinstance(module, _sharding()):
            raise ValueError(
                f"{where} is sharded by FSDP, whose hooks free weights that a second derivative "
                "still reads: give the plain model, freeze its base, and split that over the ranks "
                "with fastmaml.frozen.shard(model, device), or keep it in the host's memory with "
                "fastmaml.frozen.offload(model, device)."
            )
    for name, parameter in model.named_parameters():
        if isinstance(parameter, _distributed()):
            raise ValueError(
                f"the parameter {name} is a DTensor, which vmap and recordings do not know: give "
                "the plain model, and split its frozen weights over the ranks with "
                "fastmaml.frozen.shard(model, device)."
            )
        if parameter.layout is not torch.strided and parameter.requires_grad:
            raise ValueError(
                f"the parameter {name} is sparse ({parameter.layout}), and cannot be learned: keep "
                "its entries as a dense parameter and build the matrix in forward() with "
                "torch.sparse_coo_tensor, or freeze it with requires_grad_(False)."
            )


def _sharding() -> tuple[Any, ...]:
    """FSDP's modules, where a program has imported it: else it can have none."""
    library = sys.modules.get("torch.distributed.fsdp")
    names = ("FSDPModule", "FullyShardedDataParallel")
    return tuple(getattr(library, name) for name in names if hasattr(library, name))


def _distributed() -> tuple[Any, ...]:
    """The class of distributed tensors, likewise."""
    library = sys.modules.get("torch.distributed.tensor")
    return (library.DTensor,) if library is not None else ()
