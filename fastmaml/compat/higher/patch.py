"""Models whose parameters are exchanged: `monkeypatch`, `make_functional`, `buffer_sync`.

The names are higher's. Nothing is patched: a functional model is a private copy of the module's
tree, and no class is made for it.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from fastmaml.compat.higher.functional_module import FunctionalModule
from fastmaml.compat.higher.tree import Device, PrivateCopy, private_copy

_MonkeyPatchBase = FunctionalModule
"""What scripts annotate with, and ask ``isinstance`` of. It is one class, and not to subclass."""


def monkeypatch(
    module: nn.Module,
    device: Device = None,
    copy_initial_weights: bool = True,
    track_higher_grads: bool = True,
) -> FunctionalModule:
    """A functional model that begins with the module's parameters.

    Args:
        module: any module; it never changes.
        device: where the copies of parameters and buffers go.
        copy_initial_weights: by default the initial fast parameters are **detached** copies, so
            that nothing is learned about the module's own parameters. False, as MAML needs it,
            keeps them connected.
        track_higher_grads: whether the parameters of earlier times are kept.

    Raises:
        TypeError: `module` is no module.
        ValueError: it is, or contains, a functional model.
    """
    copy, initial = _copied(module, device)
    if copy_initial_weights:
        pairs = zip(initial, module.parameters(), strict=True)
        initial = [p.detach().requires_grad_(q.requires_grad) for p, q in pairs]
    fmodel = FunctionalModule(copy)
    fmodel.track_higher_grads = track_higher_grads
    fmodel.update_params(initial)
    return fmodel


def make_functional(
    module: nn.Module,
    encapsulator: Callable[[FunctionalModule, nn.Module], None] | None = None,
) -> FunctionalModule:
    """A functional model without parameters: its first call needs ``params=``.

    Args:
        module: any module; its buffers are copied.
        encapsulator: called with the functional model and the module, to give it parameters
            (``fmodel.update_params(...)``) or whatever else.

    Raises:
        TypeError: `module` is no module.
        ValueError: it is, or contains, a functional model.
    """
    fmodel = FunctionalModule(_copied(module, None)[0])
    if encapsulator is not None:
        encapsulator(fmodel, module)
    return fmodel


def buffer_sync(module: nn.Module, fmodule: FunctionalModule, device: Device = None) -> None:
    """Copy the module's buffers once more into a functional model that was made of it.

    Args:
        module: what the functional model was made of.
        fmodule: the functional model.
        device: where the copies go; None for where they are.

    Raises:
        ValueError: the model has not the module's structure.
    """
    sources, targets = dict(module.named_modules()), dict(fmodule.named_modules())
    if sources.keys() != targets.keys():
        different = sorted(sources.keys() ^ targets.keys())[:5]
        raise ValueError(
            f"buffer_sync: {', '.join(different)} is in one of the two only; give the module that "
            "the functional model was made of."
        )
    for path, source in sources.items():
        for name, buffer in source._buffers.items():
            copy = None if buffer is None else buffer.detach().clone()
            moved = copy if copy is None or device is None else copy.to(device)
            targets[path]._buffers[name] = moved


def _copied(module: nn.Module, device: Device) -> tuple[PrivateCopy, list[Tensor]]:
    if not isinstance(module, nn.Module):
        raise TypeError(f"a functional model is made of an nn.Module, not of {module!r}.")
    children = [child for m in module.modules() for child in m._modules.values()]
    if any(type(m) is FunctionalModule for m in [module, *children]):
        raise ValueError(
            "this module is, or contains, a functional model already. Make it of the original "
            "module, and give it parameters with fmodel.update_params(...)."
        )
    return private_copy(module, device)
