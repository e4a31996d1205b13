"""Episodes: what a task is made of, a sampler for any labelled data, and the data sets."""

from fastmaml.episodes.batch import Batch, Episodes
from fastmaml.episodes.birds import cub
from fastmaml.episodes.cifar100 import cifar_fs, fc100
from fastmaml.episodes.digits import digits
from fastmaml.episodes.given import GivenTask, given
from fastmaml.episodes.given_tasks import GivenTasks
from fastmaml.episodes.glue import glue
from fastmaml.episodes.image_sampler import ImageSampler
from fastmaml.episodes.imagenet_subsets import mini_imagenet, tiered_imagenet
from fastmaml.episodes.images import image_shape, image_splits, images
from fastmaml.episodes.imbalance import MetaDatasetShots
from fastmaml.episodes.instruction_source import Instructions
from fastmaml.episodes.instructions import answered, instructions
from fastmaml.episodes.mixture import Mixture
from fastmaml.episodes.named import InTurn, NamedEpisodes
from fastmaml.episodes.omniglot import omniglot
from fastmaml.episodes.sampler import EpisodeSampler
from fastmaml.episodes.sinusoid import sinusoid
from fastmaml.episodes.source import EpisodeSource
from fastmaml.episodes.table import table
from fastmaml.episodes.table_scaling import Scaling
from fastmaml.episodes.table_source import EachTask, Table
from fastmaml.episodes.text import text
from fastmaml.episodes.text_task import TextTask, text_task

__all__ = [
    "Batch",
    "EachTask",
    "EpisodeSampler",
    "EpisodeSource",
    "Episodes",
    "GivenTask",
    "GivenTasks",
    "ImageSampler",
    "InTurn",
    "Instructions",
    "MetaDatasetShots",
    "Mixture",
    "NamedEpisodes",
    "Scaling",
    "Table",
    "TextTask",
    "answered",
    "cifar_fs",
    "cub",
    "digits",
    "fc100",
    "given",
    "glue",
    "image_shape",
    "image_splits",
    "images",
    "instructions",
    "mini_imagenet",
    "omniglot",
    "sinusoid",
    "table",
    "text",
    "text_task",
    "tiered_imagenet",
]
