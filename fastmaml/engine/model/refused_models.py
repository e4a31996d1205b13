"""Modules that a meta-step cannot look into."""

from __future__ import annotations

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
    for name, parameter in model.named_parameters():
        if parameter.layout is not torch.strided and parameter.requires_grad:
            raise ValueError(
                f"the parameter {name} is sparse ({parameter.layout}), and cannot be learned: keep "
                "its entries as a dense parameter and build the matrix in forward() with "
                "torch.sparse_coo_tensor, or freeze it with requires_grad_(False)."
            )
