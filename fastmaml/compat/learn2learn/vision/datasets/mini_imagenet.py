"""`MiniImagenet`: 100 classes of ImageNet in 84x84 pixels."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from fastmaml.compat.learn2learn.vision.datasets.images import RECORD, Split, need, require


class MiniImagenet(Split):
    """miniImageNet (Vinyals et al. 2016) in the splits of Ravi and Larochelle 2017.

    It is read from ``root/mini-imagenet-cache-<mode>.pkl``, a pickle that must be from a source you
    trust. Images are float32 ``[3, 84, 84]`` from 0 to 255, as in learn2learn, also for the
    transform.

    Args:
        root: the folder of the data.
        mode: "train" (64 classes), "validation" (16) or "test" (20).
        transform: of the images.
        target_transform: of the labels.
        download: changes nothing; the error names the address.

    Raises:
        ValueError: an unknown mode.
        FileNotFoundError: the file is missing.
        ImportError: numpy is missing.
    """

    def read(self, root: Path, split: str) -> list[int]:
        """Read the images of a split, and return their labels."""
        need("numpy")
        name = f"mini-imagenet-cache-{self.mode}.pkl"
        data = pickle.loads(require(root / name, f"{RECORD}/{name}").read_bytes())
        self.x = torch.from_numpy(data["image_data"]).permute(0, 3, 1, 2)
        labels = [0] * len(self.x)
        for label, same in enumerate(data["class_dict"].values()):
            for i in same:
                labels[int(i)] = label
        return labels

    def source(self, index: int) -> Tensor:
        """Float32 ``[3, 84, 84]`` from 0 to 255."""
        return self.x[index].float()

    def tensor(self, index: int) -> Tensor:
        """The image, as `source` gives it: float32 ``[3, 84, 84]`` from 0 to 255."""
        return self.source(index)
