"""`offload` and `shard`: put layers that fetch their weights in the places of frozen ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import distributed, nn

from fastmaml.frozen.kept import Holder, Kept, OnHost
from fastmaml.frozen.layers import FetchingEmbedding, FetchingLayer, FetchingLinear
from fastmaml.frozen.shares import Shared

Model = TypeVar("Model", bound=nn.Module)


def offload(
    model: Model, device: torch.device | str, *, layers: str | None = None, pin: bool | None = None
) -> Model:
    """Keep a model's frozen weights in the host's memory; each comes here while it is used.

    The meta-gradient is the same, with every gradient method. Memory on the device: of the frozen
    weights one at a time, as no graph keeps a copy. Time: a pass over the model copies each of them
    once, for all tasks that run at a time, and every derivative again; see
    docs/how_to/sharded_bases.md. A model with such layers runs eagerly. Not for a base that fits.

    Weights of `nn.Linear`, `nn.Embedding` and transformers' ``Conv1D`` are kept so, where they are
    frozen. Everything else moves to the device.

    Args:
        model: changed in place, before it is given to `MAML` and after adapters are in it. Its
            ``state_dict()`` stays what it was; the weights are no parameters any more.
        device: where the model runs. "cpu" keeps the weights where they are, for tests.
        layers: a shell pattern for the names of the layers whose weights are kept so, as
            ``"model.layers.*"``; None for all with frozen ones.
        pin: lock the weights' memory, which makes copies several times as fast; the pages cannot
            be shared with other processes then. None: where the device is a GPU.

    Returns:
        The model.

    Raises:
        ValueError: nothing is frozen, or `layers` names nothing, or layers that are trained; a
            layer has hooks or a forward of its own, or weights on "meta"; or `pin` without a GPU.
            The model is then as it was.
    """
    device = _usable(device)
    pinned = device.type == "cuda" if pin is None else pin
    if pinned and not torch.cuda.is_available():
        raise ValueError("pin=True locks memory for a GPU, and there is none: leave pin out.")
    _place(model, device, layers, lambda name, weight, number: OnHost(name, weight, pinned))
    return model


def shard(
    model: Model,
    device: torch.device | str,
    *,
    layers: str | None = None,
    group: distributed.ProcessGroup | None = None,
) -> Model:
    """Split a model's frozen weights over ranks; all gather each one while it is used.

    As `offload`, with the other ranks in the host's place: a rank keeps its share of each weight,
    and one whole weight at a time. It stands in the place of FSDP2's ``fully_shard``, whose hooks
    free gathered weights that second derivatives still read. Tasks are divided over ranks by
    DistributedDataParallel around the `MAML`, as ever.

    All ranks have to run the same layers in the same order: as many tasks on each, of the same
    shapes. Ranks that do not raise at the first weight that differs; one that runs on alone waits
    until the group's timeout.

    Args:
        model: the same on every rank; see `offload`. ``state_dict()`` leaves the weights out, and
            `load_state_dict` takes whole ones or none.
        device: of this rank; where its shares are kept and the model runs.
        layers: see `offload`.
        group: of the ranks; None for all. Weights get a group of their own among these.

    Returns:
        The model.

    Raises:
        ValueError: as `offload`; there is no process group; or the ranks' weights differ.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ValueError(
            "frozen.shard needs a process group: call torch.distributed.init_process_group(), and "
            "launch with torchrun."
        )
    device = _usable(device)
    found = dict(_chosen(model, layers))
    _require_alike(found, group)
    ranks = distributed.get_process_group_ranks(group or distributed.group.WORLD)
    own = distributed.new_group(ranks)
    _place(model, device, layers, lambda name, x, number: Shared(name, number, x, own, device))
    return model


def _usable(device: torch.device | str) -> torch.device:
    """The device, tried before anything moves.

    Raises:
        ValueError: nothing is computed there.
    """
    found = torch.device(device)
    if found.type == "meta":
        raise ValueError("device='meta' computes nothing: give the one on which the model runs.")
    torch.empty(0, device=found)
    return found


def _require_alike(layers: dict[str, nn.Module], group: distributed.ProcessGroup | None) -> None:
    """Raise ValueError where the ranks do not have the same weights, by their sums."""
    own = {
        n: (tuple(w.shape), str(w.dtype), w.detach().double().sum().item())
        for n, w in ((n, _weight(m)) for n, m in layers.items())
    }
    every: list[dict[str, object] | None] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(every, own, group=group)
    for rank, other in enumerate(every):
        if other != own:
            names = [n for n in {**own, **(other or {})} if (other or {}).get(n) != own.get(n)]
            raise ValueError(
                f"rank {rank} of the group has other frozen weights than this rank "
                f"({', '.join(names[:4])}): load the same model on every rank, or seed them alike."
            )


def _place(
    model: nn.Module,
    device: torch.device,
    layers: str | None,
    keep: Callable[[str, torch.Tensor, int], Kept],
) -> None:
    """Exchange the layers; a weight that several have is kept once."""
    held: dict[int, tuple[torch.Tensor, Holder]] = {}
    made: dict[int, FetchingLayer] = {}
    for name, layer in list(_chosen(model, layers)):
        weight = _weight(layer)
        if id(weight) not in held:
            held[id(weight)] = weight, Holder(keep(f"{name}.weight", weight, len(held)))
        made[id(layer)] = _fetching(layer, held[id(weight)][1], device)
    for owner in list(model.modules()):
        for name, inner in owner._modules.items():
            if inner is not None and id(inner) in made:
                owner._modules[name] = made[id(inner)].train(inner.training)
    model.to(device)


def _fetching(layer: nn.Module, holder: Holder, device: torch.device) -> FetchingLayer:
    if isinstance(layer, nn.Embedding):
        return FetchingEmbedding(holder, device)
    bias = layer._parameters["bias"]
    return FetchingLinear(holder, device, bias, columns=not isinstance(layer, nn.Linear))


def _chosen(model: nn.Module, layers: str | None) -> Iterator[tuple[str, nn.Module]]:
    """The layers to exchange, by name.

    Raises:
        ValueError: see `offload`.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}; give a torch.nn.Module.")
    known = {n: m for n, m in model.named_modules() if n and _kind(m)}
    if layers is not None:
        known = {n: m for n, m in known.items() if fnmatchcase(n, layers)}
        trained = [n for n, m in known.items() if _weight(m).requires_grad]
        if trained:
            raise ValueError(
                f"layers={layers!r} names layers whose weights are trained "
                f"({', '.join(trained[:4])}): only frozen weights may lie elsewhere, as what "
                "adapts or is learned changes. Freeze them with requires_grad_(False), or leave "
                "them out."
            )
    frozen = {n: m for n, m in known.items() if not _weight(m).requires_grad}
    if not frozen:
        if any(isinstance(m, FetchingLayer) for m in model.modules()):
            raise ValueError(f"the frozen weights of {type(model).__name__} lie elsewhere already.")
        which = "no layer" if layers is None else f"no layer that layers={layers!r} names"
        raise ValueError(
            f"{which} of {type(model).__name__} is an nn.Linear, nn.Embedding or Conv1D with a "
            "frozen weight: freeze the base with requires_grad_(False) and put adapters into it "
            "first (fastmaml.integrations.transformers.with_lora)."
        )
    for name, layer in frozen.items():
        _require_plain(name, layer)
        yield name, layer


def _weight(layer: nn.Module) -> nn.Parameter:
    found = layer._parameters["weight"]
    assert found is not None
    return found


def _kind(layer: nn.Module) -> bool:
    """Whether it is of a kind whose weight may lie elsewhere: of a subclass one cannot know."""
    if type(layer) is nn.Embedding:
        return layer.max_norm is None
    library = sys.modules.get("transformers.pytorch_utils")
    return type(layer) in (nn.Linear, getattr(library, "Conv1D", nn.Linear))


def _require_plain(name: str, layer: nn.Module) -> None:
    hooks = [x for x in ("_forward_hooks", "_forward_pre_hooks") if getattr(layer, x)]
    hooks += [x for x in ("_backward_hooks", "_backward_pre_hooks") if getattr(layer, x)]
    if hooks or "forward" in layer.__dict__:
        raise ValueError(
            f"the layer {name} has {hooks[0] if hooks else 'a forward of its own'}, which a layer "
            "in its place would not have: remove it (a model that accelerate dispatched: load it "
            'without device_map), or leave it out with layers="...".'
        )
    if type(_weight(layer)) is not nn.Parameter:
        raise ValueError(
            f"{name}.weight is a {type(_weight(layer)).__name__}: give the model before it is "
            'sharded or quantized, or leave the layer out with layers="...".'
        )
    if _weight(layer).is_meta:
        raise ValueError(f"{name}.weight is on the device meta, without numbers: load them first.")
