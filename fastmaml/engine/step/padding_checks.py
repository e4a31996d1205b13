"""Whether examples that only fill up would have a part in the others' results."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastmaml.episodes.batch import Batch, Episodes
from fastmaml.losses import IGNORED, counted_rows


def check_padding(normalises: str | None, episodes: Episodes) -> None:
    """Raise ValueError where a model with BatchNorm would count examples that only fill up.

    Args:
        normalises: as `by_batch` says.
        episodes: targets with ``counts`` are taken to need them; labels are looked at.
    """
    if normalises is None:
        return
    name = next((name for name, batch in episodes.sets().items() if _padded(batch)), None)
    if name is not None:
        raise ValueError(
            f"{name}.targets has examples that do not count, and model.{normalises} normalises by "
            "the mean of all examples, so that these would change the others' results: give tasks "
            "of equal sizes (fm.episodes.table(..., unequal='buckets')), or a model without "
            "BatchNorm in training. If they are to be seen but not to be judged, give them another "
            f"label than {IGNORED}, and say so: loss=functools.partial(F.cross_entropy, "
            "ignore_index=-1)."
        )


def _padded(batch: Batch) -> bool:
    _, counts = counted_rows(batch.targets)
    if counts is not None:
        return True
    labels, judged = batch.targets, True
    if isinstance(labels, Mapping) and {"labels", "classes"} <= labels.keys():
        labels, judged = labels["labels"], labels["classes"] > 1  # others are regressions
    if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.is_floating_point():
        return False
    return bool(((labels == IGNORED) & judged).any())


def by_batch(model: nn.Module, own: bool) -> str | None:
    """The first module that normalises by its batch's statistics; None where there is none.

    One of another kind than PyTorch's says so in its class, as ``normalises_by_batch = True``.
    Other modules in which examples see one another, such as attention over them, are not known.

    Args:
        model: in its mode.
        own: whether BatchNorm uses the batch at hand in both modes; see `Routing`.
    """
    for name, module in model.named_modules():
        found = getattr(type(module), "normalises_by_batch", False)
        if isinstance(module, _BatchNorm):
            found = own or module.training or module.running_mean is None
        if found:
            return name or type(module).__name__
    return None
