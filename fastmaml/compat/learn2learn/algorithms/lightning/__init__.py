"""MAML, ANIL, Prototypical Networks and MetaOptNet as modules of Lightning 2.

They need it: ``pip install "fastmaml[tools]"``. They stand on ``pytorch_lightning`` or on
``lightning``, whichever a script imported before them.
"""

from fastmaml.compat.learn2learn.algorithms.lightning.lightning_anil import LightningANIL
from fastmaml.compat.learn2learn.algorithms.lightning.lightning_episodic_module import (
    LightningEpisodicModule,
)
from fastmaml.compat.learn2learn.algorithms.lightning.lightning_maml import LightningMAML
from fastmaml.compat.learn2learn.algorithms.lightning.lightning_metaoptnet import (
    LightningMetaOptNet,
)
from fastmaml.compat.learn2learn.algorithms.lightning.lightning_protonet import (
    LightningPrototypicalNetworks,
)

__all__ = [
    "LightningANIL",
    "LightningEpisodicModule",
    "LightningMAML",
    "LightningMetaOptNet",
    "LightningPrototypicalNetworks",
]
