"""`MAML`: any module as a meta-learner, and what it gives."""

from fastmaml.maml.maml import MAML
from fastmaml.maml.output import MetaOutput
from fastmaml.maml.per_task import PerTask
from fastmaml.maml.plus_plus import mamlpp

__all__ = ["MAML", "MetaOutput", "PerTask", "mamlpp"]
