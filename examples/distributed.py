"""Split the tasks of every meta-batch over processes.

    torchrun --nproc-per-node=2 examples/distributed.py [--iterations 100]

Any number of processes gives the same training. One GPU a process where there are GPUs, else the
CPU; on several machines, see torchrun's own options.
"""

import argparse
import os

import torch
from torch import distributed
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import fastmaml as fm


def main() -> None:
    """Meta-train on the digits that come with fastmaml; the first process speaks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, default=100)
    options = parser.parse_args()

    cuda = torch.cuda.is_available()
    distributed.init_process_group("nccl" if cuda else "gloo")  # torchrun has set who is who
    rank, world = distributed.get_rank(), distributed.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")

    torch.manual_seed(0)
    model = fm.models.conv4(5, filters=16, image_size=8).to(device)
    maml = fm.MAML(model, lr=0.2, steps=2, loss=F.cross_entropy)
    wrapped = DistributedDataParallel(maml)
    optimizer = torch.optim.Adam(maml.parameters(), 2e-3)

    # The same seed everywhere: each process draws the whole meta-batch and takes its own tasks.
    train = fm.episodes.digits("train", ways=5, shots=5, tasks=16, seed=0)
    if rank == 0:
        print(f"{world} processes on {device.type}", flush=True)
    for _, whole in zip(range(options.iterations), train, strict=False):
        mine = whole[rank::world].to(device)
        out = wrapped(mine)
        # Gradients are averaged over processes: where these have different numbers of tasks, each
        # counts by its own.
        (out.loss * mine.tasks * world / whole.tasks).backward()
        optimizer.step()
        optimizer.zero_grad()

    test = fm.episodes.digits("test", ways=5, shots=5, tasks=100, seed=1).sample().to(device)
    if rank == 0:
        print(f"loss on unseen digits: {maml.evaluate(test).loss:.4f}", flush=True)
    distributed.barrier()  # nobody leaves before the first is done
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
