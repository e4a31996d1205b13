"""Layers whose frozen weight is elsewhere; they stand in the places of torch's."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from fastmaml.frozen.kept import Away, Holder, Kept
from fastmaml.frozen.products import lookup, product


class FetchingLayer(nn.Module):
    """A layer that fetches its weight whenever it runs. The weight is no parameter.

    Args:
        holder: of the weight; layers that have it in common share one.
        device: where the layer runs, for those who ask its weight for a device.
    """

    unrecorded: ClassVar[str] = (
        "the model's frozen weights are fetched whenever a layer runs, and a recording would keep "
        "all of them on the device"
    )
    """Why a meta-step with such a layer runs eagerly."""

    def __init__(self, holder: Holder, device: torch.device) -> None:
        super().__init__()
        self.holder, self.device = holder, device

    @property
    def kept(self) -> Kept:
        """The weight, where it is now."""
        return self.holder.kept

    @property
    def weight(self) -> Tensor:
        """A stand-in that has the weight's shape, dtype and device, and raises when it is used."""
        return Away.of(self.kept, self.device)

    def extra_repr(self) -> str:
        """The weight's shape, and where it lies."""
        return f"{list(self.kept.shape)} {type(self.kept).__name__}"

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move to another device; only what is here moves.

        Raises:
            ValueError: another dtype is asked for.
        """
        like = fn(torch.empty(0, dtype=self.kept.dtype, device=self.device))
        if like.dtype != self.kept.dtype:
            raise ValueError(
                f"{self.kept.name} is {self.kept.dtype} and lies elsewhere, and cannot become "
                f"{like.dtype}: convert the model before frozen.offload or frozen.shard."
            )
        self.device = like.device
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        state = self.kept.state()
        if state is not None:
            destination[f"{prefix}weight"] = state

    def _load_from_state_dict(
        self,
        state: dict[str, Any],
        prefix: str,
        local: Any,
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        name = f"{prefix}weight"
        given = state.get(name)
        assign = local.get("assign_to_params_buffers", False)
        rest = {n: x for n, x in state.items() if n != name}
        super()._load_from_state_dict(rest, prefix, local, strict, missing, unexpected, errors)
        if given is None:
            if self.kept.state() is not None:
                missing.append(name)
        elif given.shape != self.kept.shape:
            errors.append(
                f"size mismatch for {name}: {list(given.shape)} is given, and the layer has "
                f"{list(self.kept.shape)}."
            )
        elif given.is_meta:
            errors.append(f"{name} is on the device meta, without numbers: load them first.")
        elif assign and given.dtype != self.kept.dtype:
            errors.append(
                f"{name} is {given.dtype}, and lies elsewhere as {self.kept.dtype}, which "
                "assign=True cannot change: leave it out, which converts."
            )
        else:
            self.holder.kept = self.kept.like(given, copy=not assign)


@final
class FetchingLinear(FetchingLayer):
    """``y = x Wᵀ + b``, as `torch.nn.Linear`; or ``x W + b``, as transformers' ``Conv1D``.

    Args:
        holder: of W.
        device: see `FetchingLayer`.
        bias: the layer's own, which may be trained; or None.
        columns: whether it is ``x W``.
    """

    def __init__(
        self, holder: Holder, device: torch.device, bias: nn.Parameter | None, columns: bool
    ) -> None:
        super().__init__(holder, device)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", bias)
        self.columns = columns
        rows, width = self.kept.shape
        self.in_features, self.out_features = (rows, width) if columns else (width, rows)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., out]`` of ``[..., in]``; under autocast in its dtype.

        Raises:
            ValueError: x is not of the weight's dtype.
        """
        kind, dtype = x.device.type, self.kept.dtype
        if torch.is_autocast_enabled(kind) and x.is_floating_point() and x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
            x = x.to(dtype)
        if x.dtype != dtype:
            raise ValueError(
                f"{self.kept.name} is {dtype} and its layer's input {x.dtype}: convert the model "
                "before frozen.offload or frozen.shard, or run it under torch.autocast."
            )
        y = product(x, self.kept, self.columns, dtype)
        return y if self.bias is None else y + self.bias.to(dtype)


@final
class FetchingEmbedding(FetchingLayer):
    """Rows of a table, as `torch.nn.Embedding`."""

    def __init__(self, holder: Holder, device: torch.device) -> None:
        super().__init__(holder, device)
        self.num_embeddings, self.embedding_dim = self.kept.shape

    def forward(self, numbers: Tensor) -> Tensor:
        """``[..., width]`` of whole numbers ``[...]``.

        Raises:
            IndexError: one of them is negative, or too large.
        """
        return lookup(numbers, self.kept)
