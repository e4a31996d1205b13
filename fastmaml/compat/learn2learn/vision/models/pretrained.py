"""`get_pretrained_backbone`: weights that were trained with supervision, from local files."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from fastmaml.compat.learn2learn.vision.models.cnn4 import CNN4Backbone
from fastmaml.compat.learn2learn.vision.models.resnet12 import ResNet12Backbone
from fastmaml.compat.learn2learn.vision.models.wrn28 import WRN28Backbone

RECORD = "https://zenodo.org/record/5651278/files"
FILES = {
    ("mini-imagenet", "resnet12"): "25u1gtp5.pth",
    ("mini-imagenet", "wrn28"): "m8vz9plq.pth",
    ("tiered-imagenet", "resnet12"): "126od68s.pth",
    ("tiered-imagenet", "wrn28"): "2w8u50q4.pth",
    ("cifar-fs", "cnn4"): "2mbq7efr.pth",
    ("fc100", "cnn4"): "w02f5vab.pth",
}


def get_pretrained_backbone(
    model: str,
    dataset: str,
    spec: str = "default",
    root: str | os.PathLike[str] = "~/data",
    download: bool = False,
) -> nn.Module:
    """The features of a network with the weights that learn2learn's authors publish.

    They are read from ``root/pretrained_models/<dataset>/<model>.pth``. Nothing is downloaded: the
    authors give no checksums.

    Args:
        model: "cnn4", "resnet12" or "wrn28".
        dataset: "mini-imagenet", "tiered-imagenet", "cifar-fs" or "fc100".
        spec: "default" or "supervised", which are the same.
        root: the folder of the data.
        download: changes nothing but the message.

    Raises:
        ValueError: a combination that there is not.
        FileNotFoundError: the file is missing; the message says where it is to be had.
    """
    name = FILES.get((dataset, model))
    if name is None or spec not in ("default", "supervised"):
        known = ", ".join(f"{m} for {d}" for d, m in FILES)
        raise ValueError(
            f"there are no weights of model={model!r} for dataset={dataset!r} with spec={spec!r}; "
            f"there are, with spec='default': {known}."
        )
    path = Path(root).expanduser() / "pretrained_models" / dataset / f"{model}.pth"
    if not path.is_file():
        asked = "download=True downloads nothing, as there is no checksum to verify. " * download
        raise FileNotFoundError(
            f"there is no {path}. {asked}Fetch {RECORD}/{name} and put it there."
        )
    backbone: nn.Module
    if model == "cnn4":
        backbone = CNN4Backbone(channels=3, max_pool=True)
    else:
        backbone = ResNet12Backbone(avg_pool=False) if model == "resnet12" else WRN28Backbone()
    backbone.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return backbone
