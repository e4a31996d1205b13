"""`ImageSampler`: episodes of images that are held as uint8."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from fastmaml.episodes.augment import Augment, augmentation
from fastmaml.episodes.batch import Tree
from fastmaml.episodes.checks import check_choice
from fastmaml.episodes.decoding import Fit, Shape
from fastmaml.episodes.held_out import SPLITS
from fastmaml.episodes.imbalance import MetaDatasetShots
from fastmaml.episodes.normalising import SAMPLED, Normalisation
from fastmaml.episodes.pictures import Pictures
from fastmaml.episodes.pixel_store import Pixels, in_file, in_memory
from fastmaml.episodes.sampler import EpisodeSampler
from fastmaml.episodes.shifts import turned_by
from fastmaml.episodes.sizes import Number, check_classes, check_number

Shots = Number | MetaDatasetShots | Literal["meta-dataset"]


@final
class ImageSampler(EpisodeSampler):
    """What `images` and the image data sets return: an `EpisodeSampler` of uint8 images.

    Meta-batches are float32 ``[tasks, examples, channels, height, width]``. Its state has, besides
    the generator, ``data``: a digest of its images, so that a run goes on with the same ones only;
    ``classes``: one of each class's; ``trained``: a digest of the names of the training classes;
    and, where the normalisation was found, ``measured``: a digest of the training images that it
    was found on.

    Attributes:
        class_names: of the split.
        splits: the names of the classes of every split.
        shape: channels, height and width.
        normalisation: mean and deviation of each channel; None where pixels are from 0 to 1.

    Args:
        pixels: what is drawn from.
        chosen: the number of each picture, by class.
        splits: as the attribute.
        normalisation: as the attribute.
        measured: the digests of the images that it was found on; none where it was given.
        rotations: whether each class turned by 90, 180 and 270 degrees is three more.
        origin: where the images come from, for errors.
        sampling: as of `EpisodeSampler`: ways, shots, queries, tasks, seed, device and augment.
    """

    def __init__(
        self,
        pixels: Pixels,
        chosen: Mapping[str, Sequence[int]],
        splits: Mapping[str, Sequence[str]],
        *,
        normalisation: Normalisation | None,
        measured: Sequence[bytes] = (),
        rotations: bool,
        origin: str,
        **sampling: Any,
    ) -> None:
        rows = torch.tensor([pixels.rows[i] for numbers in chosen.values() for i in numbers])
        label = torch.repeat_interleave(torch.tensor([len(x) for x in chosen.values()]))
        turns = 4 if rotations else 1
        data = torch.stack(
            [rows.repeat(turns), torch.arange(turns).repeat_interleave(len(rows))], 1
        )
        labels = torch.cat([label + turn * len(chosen) for turn in range(turns)])
        super().__init__((data, labels), **sampling)
        # What may be larger than memory stays in its file; only meta-batches go to the device.
        self._pixels = pixels.images if pixels.mapped else pixels.images.to(self.device)
        self.class_names = tuple(chosen)
        self.splits = {split: tuple(names) for split, names in splits.items()}
        self.shape: Shape = tuple(pixels.images.shape[1:])  # type: ignore[assignment]
        self.normalisation, self._rotations, self._origin = normalisation, rotations, origin
        digest = hashlib.blake2b(f"{self.shape} {rotations}".encode(), digest_size=16)
        for name, numbers in chosen.items():
            digest.update(f"{name}\0".encode())
            for i in numbers:
                digest.update(pixels.digests[pixels.rows[i]])
        self._classes = torch.stack(
            [_of_class([pixels.digests[pixels.rows[i]] for i in of]) for of in chosen.values()]
        )
        self._data = _as_tensor(digest.digest())
        trained = "\0".join(self.splits.get("train", self.class_names)).encode()
        self._trained = _as_tensor(hashlib.blake2b(trained, digest_size=16).digest())
        self._measured = (
            _as_tensor(hashlib.blake2b(b"".join(measured), digest_size=16).digest())
            if measured
            else None
        )

    def _examples(self, inputs: Tree) -> Tensor:
        """The images of rows of (image, quarter turns)."""
        rows, turns = inputs.unbind(-1)
        images = self._pixels.index_select(0, rows.flatten().to(self._pixels.device))
        images = images.to(self.device)
        if self._rotations:
            images = turned_by(images, turns.flatten())
        return images.unflatten(0, rows.shape)

    def _finished(self, inputs: Tree) -> Tensor:
        """Floating-point, normalised on the device."""
        if inputs.dtype != torch.uint8:
            raise ValueError(
                f"augment gives {inputs.dtype} of uint8 images, which are divided by 255 and "
                "normalised afterwards, once more: let it return uint8 (for torchvision's v2 "
                "without ToDtype and Normalize)."
            )
        return inputs.float() / 255 if self.normalisation is None else self.normalisation(inputs)

    def state_dict(self) -> dict[str, Tensor]:
        """Where the stream is, and of which images."""
        measured = {} if self._measured is None else {"measured": self._measured}
        told = {"data": self._data, "classes": self._classes, "trained": self._trained}
        return super().state_dict() | told | measured

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken, with the same images.

        Raises:
            ValueError: the images, their classes or their size are others, or as `EpisodeSource`.
        """
        saved = state.get("data")
        if saved is not None and not torch.equal(saved.cpu(), self._data):
            raise ValueError(
                f"{self._origin} has changed since this state was saved (images, classes, splits "
                "or their size): restore it, or start anew."
            )
        super().load_state_dict(state)

    def check_trained(self, state: Mapping[str, Tensor]) -> None:
        """Raise a ValueError if `state` is of a run that was trained on other classes or images.

        Of other classes, what is held out here may have been trained on there. By other images, it
        is normalised otherwise than there; those that no normalisation was found on (more than
        2,000, or none where it is given) change nothing here and are not compared.
        """
        saved = state.get("trained")
        if saved is not None and not torch.equal(saved.cpu(), self._trained):
            raise ValueError(
                f"{self._origin} has other training classes than this run had, so that some that "
                "it was trained on may be held out now: restore the folder and the splits."
            )
        saved = state.get("measured")
        now = self._measured
        if saved is not None and now is not None and not torch.equal(saved.cpu(), now):
            raise ValueError(
                f"{self._origin} has other training images than this run had, so that all images "
                "would be normalised otherwise than it was trained: restore them, or evaluate on "
                "other data (fastmaml eval RUN --change data=FOLDER)."
            )

    def check_other(self, state: Mapping[str, Tensor]) -> None:
        """Raise a ValueError if a class has the images of one that a run was trained on.

        For other data than the run's. Classes are compared by their images' files, all of them,
        whatever their names: one with an image more is not found out.

        Args:
            state: of the run's training episodes; one of before it told of classes says nothing.
        """
        trained = {bytes(one) for one in state.get("classes", torch.empty(0)).tolist()}
        own = zip(self.class_names, self._classes.tolist(), strict=True)
        if found := [name for name, one in own if bytes(one) in trained]:
            shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
            raise ValueError(
                f"{self._origin} has classes whose images are those of classes that "
                f"this run was trained on ({shown}): evaluate on others."
            )

    def __repr__(self) -> str:
        channels, height, width = self.shape
        return (
            super()
            .__repr__()
            .replace(
                "EpisodeSampler(", f"ImageSampler(channels={channels}, size=({height}, {width}), "
            )
        )


def image_sampler(
    pictures: Pictures,
    splits: Mapping[str, Sequence[str]],
    split: str | None,
    *,
    ways: Number,
    shots: Shots,
    queries: int | None = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    fit: Fit = "crop",
    normalise: Any = True,
    rotations: bool = False,
    augment: Augment | None = None,
    cache: str | os.PathLike[str] = "memory",
    **sampling: Any,
) -> ImageSampler:
    """An `ImageSampler` of a split of pictures; everything that can be is checked before reading.

    Args:
        pictures: all of them.
        splits: the classes of every split.
        split: which; None for all classes.
        ways: as of `images`, like all that follow.

    Raises:
        ValueError: as of `images`.
    """
    check_choice("fit", fit, ("crop", "stretch"))
    shots = MetaDatasetShots() if shots == "meta-dataset" else shots
    check_number("ways", ways)
    if not isinstance(shots, MetaDatasetShots):
        check_number("shots", shots)
    augmentation(augment)
    by_class: dict[str, list[int]] = {}
    for number, name in enumerate(pictures.classes):
        by_class.setdefault(name, []).append(number)
    names = list(by_class) if split is None else _names_of(split, splits, pictures.origin)
    counts = {f"{name!r} of {pictures.origin}": len(by_class[name]) for name in names}
    of = pictures.origin if split is None else f"the split {split!r} of {pictures.origin}"
    check_classes(counts, ways, shots, queries, of, turns=4 if rotations else 1)

    shape = pictures.shape(pair_of(size), channels_of(channels))
    if rotations and shape[1] != shape[2]:
        raise ValueError(
            f"rotations=True turns images by 90 degrees, and these have {shape[2]}x{shape[1]} "
            "pixels: give size= one number."
        )
    if normalise is not True and normalise is not False:
        normalise = Normalisation.given(normalise, shape[0])
    chosen = {name: by_class[name] for name in names}
    wanted = [i for numbers in chosen.values() for i in numbers]
    if cache == "memory":
        pixels = in_memory(pictures, wanted, shape, fit)
    else:
        pixels = in_file(pictures, shape, fit, Path(cache))
    measured: Sequence[bytes] = ()
    if normalise is True:
        train = names if split is None else splits["train"]
        every = [i for name in train for i in by_class[name]]
        some = every[:: -(-len(every) // SAMPLED)]
        held = all(i in pixels.rows for i in some)
        found = pixels if held else in_memory(pictures, some, shape, fit)
        normalise = Normalisation.found(found.images[[found.rows[i] for i in some]])
        measured = [found.digests[found.rows[i]] for i in some]
    return ImageSampler(
        pixels,
        chosen,
        {} if split is None else splits,
        normalisation=normalise or None,
        measured=measured,
        rotations=rotations,
        origin=pictures.origin,
        ways=ways,
        shots=shots,
        queries=queries,
        augment=augment,
        **sampling,
    )


def _names_of(split: str, splits: Mapping[str, Sequence[str]], origin: str) -> list[str]:
    check_choice("split", split, SPLITS)
    if splits[split]:
        return list(splits[split])
    sizes = ", ".join(f"{len(of)} for {name}" for name, of in splits.items())
    raise ValueError(
        f"split={split!r} of {origin} has no classes ({sizes}): name some with splits=, or give "
        "larger fractions."
    )


def channels_of(channels: int | None) -> int | None:
    """`channels`, if images can have so many; None to find them."""
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels!r}: give 1 (grey), 3 (colour), or None to find it.")
    return channels


def pair_of(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """`size` as height and width; None to find them."""
    pair = (size, size) if isinstance(size, int) else size
    if pair is None:
        return None
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"size={size!r}: give a number of pixels, or (height, width).")
    for one in pair:
        if not isinstance(one, int) or isinstance(one, bool) or one < 1:
            raise ValueError(f"size={size!r}: give positive numbers of pixels.")
    return pair[0], pair[1]


def _of_class(digests: Sequence[bytes]) -> Tensor:
    """A digest of a class's images, in whatever order."""
    return _as_tensor(hashlib.blake2b(b"".join(sorted(digests)), digest_size=16).digest())


def _as_tensor(digest: bytes) -> Tensor:
    return torch.tensor(list(digest), dtype=torch.uint8)
