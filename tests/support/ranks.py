"""How the processes of a distributed test leave."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from torch import distributed


def leave() -> NoReturn:
    """Leave the group, and end this process without ending its interpreter first.

    DistributedDataParallel keeps its process group for good, so gloo's threads outlive
    `destroy_process_group`; one that lets go of its last tensor while the interpreter ends aborts
    the process (pytorch/pytorch#179291).
    """
    distributed.barrier()
    distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
