"""`digits`: few-shot episodes of real handwritten digits that come with the package."""

from __future__ import annotations

import gzip
from importlib.resources import files

import torch
from torch import Tensor

from fastmaml.episodes.batch import Tree
from fastmaml.episodes.checks import check_choice
from fastmaml.episodes.sampler import EpisodeSampler

IMAGES = 1797
SPLITS = {"train": (0, 1, 2, 3), "validation": (4, 5, 6), "test": (7, 8, 9)}


def digits(
    split: str = "train",
    ways: int = 5,
    shots: int = 1,
    queries: int | None = 5,
    tasks: int = 16,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> EpisodeSampler:
    """Episodes of handwritten digits: inputs float32 ``[tasks, examples, 1, 8, 8]`` in [0, 1].

    Each digit is two classes: upright, and turned by 90 degrees (turned by 180 degrees a 0 or an 8
    would be itself). The splits are disjoint by digit: train has 0 to 3 (8 classes), validation 4
    to 6 (6 classes), test 7 to 9 (6 classes), with 174 to 183 images a class.

    The images are the 1,797 of the test part of "Optical Recognition of Handwritten Digits" by
    E. Alpaydin and C. Kaynak (UCI Machine Learning Repository, 1998, doi 10.24432/C50P49, licence
    CC BY 4.0), as scikit-learn distributes them in ``sklearn.datasets.load_digits``.

    Args:
        split: "train", "validation" or "test".
        ways: classes a task.
        shots: support examples a class.
        queries: query examples a class; None for as many as `shots`.
        tasks: tasks a meta-batch.
        seed: of the sampler's own generator.
        device: where the images are held and episodes are made; None for the CPU.

    Raises:
        ValueError: an unknown split, or as `EpisodeSampler`.
    """
    check_choice("split", split, tuple(SPLITS))
    images, labels = load()
    kept = torch.isin(labels, torch.tensor(SPLITS[split]))
    upright, digit = images[kept].unsqueeze(1), labels[kept]
    turned = upright.rot90(1, (-2, -1))
    return EpisodeSampler(
        (torch.cat([upright, turned]), torch.cat([digit, digit + 10])),
        ways=ways,
        shots=shots,
        queries=queries,
        tasks=tasks,
        seed=seed,
        device=device,
        transform=_scaled,
    )


def load() -> tuple[Tensor, Tensor]:
    """The images, uint8 ``[1797, 8, 8]`` with ink from 0 to 16, and the digits, int64 ``[1797]``.

    ``digits.bin.gz`` is the gzip of 1797 × 64 bytes of images, row by row, then 1797 bytes of
    digits, both in scikit-learn's order.
    """
    packed = files("fastmaml.episodes").joinpath("digits.bin.gz").read_bytes()
    values = torch.frombuffer(bytearray(gzip.decompress(packed)), dtype=torch.uint8)
    images, labels = values.split([IMAGES * 64, IMAGES])
    return images.view(IMAGES, 8, 8), labels.long()


def _scaled(images: Tree) -> Tensor:
    return images.float() / 16
