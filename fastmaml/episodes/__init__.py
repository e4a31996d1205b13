"""Episodes: what a task is made of, a sampler for any labelled data, and the data sets."""

from fastmaml.episodes.batch import Batch, Episodes
from fastmaml.episodes.digits import digits
from fastmaml.episodes.omniglot import omniglot
from fastmaml.episodes.sampler import EpisodeSampler
from fastmaml.episodes.sinusoid import sinusoid
from fastmaml.episodes.source import EpisodeSource

__all__ = [
    "Batch",
    "EpisodeSampler",
    "EpisodeSource",
    "Episodes",
    "digits",
    "omniglot",
    "sinusoid",
]
