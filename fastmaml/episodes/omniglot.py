"""`omniglot`: few-shot episodes of handwritten characters."""

from __future__ import annotations

import hashlib
import os

import torch
from torch import Tensor

from fastmaml.episodes.batch import Tree
from fastmaml.episodes.checks import check_choice
from fastmaml.episodes.omniglot_images import URL, Characters, load
from fastmaml.episodes.sampler import EpisodeSampler

SPLITS = ("train", "validation", "test")
PROTOCOLS = ("alphabets", "random")


def omniglot(
    ways: int = 5,
    shots: int = 1,
    queries: int | None = None,
    tasks: int = 32,
    split: str = "train",
    root: str | os.PathLike[str] | None = None,
    protocol: str = "alphabets",
    validation_alphabets: int = 0,
    rotations: bool | None = None,
    download: bool = True,
    url: str = URL,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> EpisodeSampler:
    """Episodes of Omniglot: inputs float32 ``[tasks, examples, 1, 28, 28]``, 0 paper and 1 ink.

    Omniglot (Lake et al. 2015) has 1,623 characters of 50 alphabets, drawn by 20 people each. Who
    is in which split depends on the protocol:

    - "alphabets", the authors' own and the harder one: "train" is the background set (964
      characters of 30 alphabets) and "test" the evaluation set (659 of 20 other alphabets). The
      characters of the last `validation_alphabets` background alphabets by name are taken out of
      "train" and are "validation".
    - "random" (as Vinyals et al. 2016, Santoro et al. 2016 and the MAML paper do): all characters
      in one fixed random order (of the SHA-256 of their names): 1,100 for "train", 100 for
      "validation" and the remaining 423 for "test". Alphabets are shared between the splits.

    The data is looked for in `root` and in its subfolder ``omniglot``: ``omniglot28.npz``, or the
    folders ``images_background`` and ``images_evaluation`` (``Alphabet/characterNN/*.png``), or
    their official archives (``.zip``); otherwise the archives are downloaded to that subfolder
    (16 MB) and their checksums verified. What was read from images is kept beside them as
    ``omniglot28.npz`` (0.9 MB) where the folder can be written. Images are reduced from 105x105 to
    28x28 by taking the nearest pixel. Reading needs ``pip install "fastmaml[vision]"``.

    Args:
        ways: classes a task.
        shots: support examples a class.
        queries: query examples a class; None for as many as `shots`.
        tasks: tasks a meta-batch.
        split: "train", "validation" or "test".
        root: the folder of the data, or an ``omniglot28.npz``; None for the environment variable
            FASTMAML_DATA or else ``~/.cache/fastmaml``.
        protocol: "alphabets" or "random".
        validation_alphabets: alphabets held out of the background set, from 0 to one less than
            there are; of use only with protocol "alphabets".
        rotations: whether each character turned by 90, 180 and 270 degrees makes three more
            classes (Santoro et al. 2016); None for yes in "train" and no elsewhere.
        download: whether the archives may be downloaded.
        url: where the archives lie, for those who keep a mirror.
        seed: of the sampler's own generator.
        device: where the images are held and episodes are made; None for the CPU.

    Raises:
        ValueError: an unknown split or protocol, an empty split, damaged data, or as
            `EpisodeSampler`.
        FileNotFoundError: no data, and `download` is False.
        ConnectionError: the archives cannot be downloaded.
        ImportError: numpy or pillow is missing.
    """
    check_choice("split", split, SPLITS)
    check_choice("protocol", protocol, PROTOCOLS)
    if protocol == "random" and validation_alphabets:
        raise ValueError(
            f"validation_alphabets={validation_alphabets} is of use with protocol='alphabets' "
            "only; 'random' always holds out 100 characters."
        )
    background, evaluation = load(root, download, url)
    if protocol == "alphabets":
        characters = _by_alphabet(background, evaluation, split, validation_alphabets)
    else:
        characters = _at_random(background, evaluation, split)
    turns = 4 if (split == "train" if rotations is None else rotations) else 1
    return EpisodeSampler(
        _classes(characters.images, turns),
        ways=ways,
        shots=shots,
        queries=queries,
        tasks=tasks,
        seed=seed,
        device=device,
        transform=_to_float,
    )


def _by_alphabet(
    background: Characters, evaluation: Characters, split: str, held_out: int
) -> Characters:
    if split == "test":
        return evaluation
    alphabet = [name.split("/")[0] for name in background.names]
    alphabets = sorted(set(alphabet))
    if not 0 <= held_out < len(alphabets):
        raise ValueError(
            f"validation_alphabets={held_out}: the background set has {len(alphabets)} alphabets, "
            f"so give a number from 0 to {len(alphabets) - 1}."
        )
    if split == "validation" and held_out == 0:
        raise ValueError(
            "split='validation' is empty: with protocol='alphabets', give validation_alphabets=, "
            "the same for 'train' and 'validation', to hold out some of the background alphabets."
        )
    validation = set(alphabets[len(alphabets) - held_out :])
    wanted = split == "validation"
    return background[[i for i, name in enumerate(alphabet) if (name in validation) == wanted]]


def _at_random(background: Characters, evaluation: Characters, split: str) -> Characters:
    names = background.names + evaluation.names
    if len(names) != 1623:
        raise ValueError(
            f"protocol='random' divides all 1,623 characters, but the data has {len(names)}. "
            "Complete it, or choose protocol='alphabets'."
        )
    # An order by hash stays the same with every version of every library.
    order = sorted(range(1623), key=lambda i: hashlib.sha256(names[i].encode()).digest())
    part = {"train": slice(1100), "validation": slice(1100, 1200), "test": slice(1200, None)}[split]
    everything = Characters(torch.cat([background.images, evaluation.images]), names)
    return everything[order[part]]


def _classes(images: Tensor, turns: int) -> tuple[Tensor, Tensor]:
    """Inputs [examples, 1, 28, 28] and labels of `turns` classes a character."""
    turned = torch.cat([images.rot90(k, (-2, -1)) for k in range(turns)])
    labels = torch.arange(len(turned)).repeat_interleave(images.shape[1])
    return turned.flatten(0, 1).unsqueeze(1), labels


def _to_float(images: Tree) -> Tensor:
    return images.float()
