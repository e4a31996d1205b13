"""What a model may read while it runs, of every kind, and how each of these may change.

A reader is a function that makes a module ``[n, 3]`` to ``[n, 3]`` and the changes that concern it;
each takes a number. `LOSSES` are the same for losses.
"""

from properties.readers.attributes import ATTRIBUTES
from properties.readers.base import Change, Made
from properties.readers.code import CODE
from properties.readers.losses import LOSSES
from properties.readers.structure import STRUCTURE
from properties.readers.tensors import TENSORS

READERS = {**ATTRIBUTES, **CODE, **TENSORS, **STRUCTURE}

__all__ = ["LOSSES", "READERS", "Change", "Made"]
