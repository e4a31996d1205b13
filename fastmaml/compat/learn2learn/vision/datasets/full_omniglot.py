"""`FullOmniglot`: all 1,623 characters."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmaml.compat.learn2learn.vision.datasets.images import (
    Images,
    Root,
    Transform,
    folder,
    need,
)
from fastmaml.episodes.omniglot_images import PARTS, URL, load


class FullOmniglot(Images):
    """Omniglot (Lake et al. 2015): 20 drawings each of 1,623 characters, labelled 0 to 1,622.

    The 964 characters of the background set come first, both parts by alphabet and character. It is
    read, and downloaded where that is allowed, as `fastmaml.episodes.omniglot` says, from `root` or
    its sub-folder ``omniglot-py``. Images are float32 ``[1, 28, 28]``, 0 paper and 1 ink. They are
    the nearest pixels of the originals, black or white; learn2learn's are smoothed.

    Args:
        root: the folder of the data. With the default the folder named by the environment variable
            FASTMAML_DATA is used, if there is one.
        transform: given an image of Pillow of 28x28 pixels, black on white.
        target_transform: of the labels.
        download: whether the archives (16 MB) may be downloaded.

    Raises:
        FileNotFoundError: no data, and `download` is False.
        ConnectionError, ValueError, ImportError: as `fastmaml.episodes.omniglot`.
    """

    def __init__(
        self,
        root: Root = "~/data",
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        download: bool = False,
    ) -> None:
        parts = load(_place(root), download, URL)
        characters = torch.cat([part.images for part in parts])  # [characters, drawings, 28, 28]
        self.images = characters.flatten(0, 1).unsqueeze(1)
        labels = torch.arange(len(characters)).repeat_interleave(characters.shape[1])
        super().__init__(labels.tolist(), transform, target_transform)
        self._targets = labels

    def source(self, index: int) -> Any:
        """An image of Pillow of 28x28 pixels, black on white."""
        return need("PIL.Image").fromarray((1 - self.images[index, 0]).mul(255).numpy())

    def tensor(self, index: int) -> Tensor:
        """Float32 ``[1, 28, 28]``, 1 ink."""
        return self.images[index].float()

    def tensors_at(self, indices: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Images and labels of these items in one read, where there are no transforms."""
        if self.transform is not None or self.target_transform is not None:
            return None
        index = torch.tensor(indices)
        return self.images[index].float(), self._targets[index]


def _place(root: Root) -> Root | None:
    if str(root) == "~/data" and os.environ.get("FASTMAML_DATA"):
        return None  # where the loader looks by itself
    nested = folder(root) / "omniglot-py"
    return nested if any((nested / part).exists() for part in PARTS) else folder(root)
