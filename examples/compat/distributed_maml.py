"""MAML whose tasks are spread over processes: every process has its share of each meta-batch.

python examples/compat/distributed_maml.py --processes 2 --iterations 100
"""

import random
import tempfile

import synthetic
import torch
import tyro
from torch import distributed, multiprocessing, nn

import fastmaml.compat.learn2learn as l2l

FAST_LR, META_LR, STEPS = 0.5, 0.003, 1


def meta_train(rank: int, processes: int, tasks: int, iterations: int, double: bool) -> list[float]:
    """What one process does; the mean query loss of every iteration, of all processes."""
    random.seed(42)  # all processes draw the same tasks and begin with the same parameters
    torch.manual_seed(42)
    dtype = torch.float64 if double else torch.float32
    tasksets = synthetic.tasksets(5, 2, (1, 28, 28))
    model = l2l.vision.models.OmniglotFC(28**2, 5, sizes=[32, 16]).to(dtype)
    maml = l2l.algorithms.MAML(model, lr=FAST_LR)
    opt = torch.optim.Adam(maml.parameters(), META_LR)
    loss = nn.CrossEntropyLoss()

    errors = []
    for iteration in range(iterations):
        opt.zero_grad()
        batches = [tasksets.train.sample() for _ in range(tasks)]
        total = torch.zeros((), dtype=dtype)
        for data, labels in batches[rank::processes]:
            data = data.to(dtype)
            learner = maml.clone()
            for _ in range(STEPS):
                learner.adapt(loss(learner(data[::2]), labels[::2]))
            error = loss(learner(data[1::2]), labels[1::2]) / tasks
            error.backward()
            total += error.detach()
        if processes > 1:
            for tensor in (total, *(p.grad for p in maml.parameters())):
                distributed.all_reduce(tensor)
        opt.step()
        errors.append(total.item())
        if rank == 0:
            print(f"{iteration:5}  loss {errors[-1]:.4f}")
    return errors


def process(rank: int, folder: str, processes: int, *options: int) -> None:
    """One of several processes on this machine; they meet in `folder`."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=processes
    )
    errors = meta_train(rank, processes, *options)
    torch.save(errors, f"{folder}/{rank}.pt")
    distributed.barrier()  # nobody leaves while another may still be receiving
    distributed.destroy_process_group()


def main(
    processes: int = 2, tasks: int = 4, iterations: int = 3, double: bool = False
) -> list[float]:
    """Meta-train; the mean query loss of every iteration."""
    if processes == 1:
        return meta_train(0, 1, tasks, iterations, double)
    with tempfile.TemporaryDirectory() as folder:
        given = (folder, processes, tasks, iterations, double)
        multiprocessing.spawn(process, given, nprocs=processes)
        return torch.load(f"{folder}/0.pt")


if __name__ == "__main__":
    tyro.cli(main)
