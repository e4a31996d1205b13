"""MAML with an LSTM that continues sine waves of unknown amplitude and phase, task by task.

python examples/compat/maml_rnn.py --iterations 500 --meta-batch-size 16
"""

import torch
import tyro
from torch import Tensor, nn

import fastmaml.compat.learn2learn as l2l


class Forecaster(nn.Module):
    """An LSTM and a linear layer: the next value after every value of a series."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, hidden_size, batch_first=True)
        self.linear = nn.Linear(hidden_size, 1)

    def forward(self, series: Tensor) -> Tensor:
        """From ``[examples, times, 1]`` to ``[examples, times, 1]``."""
        return self.linear(self.lstm(series)[0])


def sample(examples: int, times: int, dtype: torch.dtype) -> Tensor:
    """Pieces of one wave, ``[examples, times + 1, 1]``."""
    amplitude, phase = 0.5 + 2 * torch.rand(1), 3.14 * torch.rand(1)
    start = 10 * torch.rand(examples, 1)
    moments = start + 0.3 * torch.arange(times + 1)
    return (amplitude * torch.sin(moments + phase)).unsqueeze(-1).to(dtype)


def main(
    shots: int = 3,
    times: int = 8,
    meta_lr: float = 0.005,
    fast_lr: float = 0.1,
    meta_batch_size: int = 3,
    adaptation_steps: int = 2,
    hidden_size: int = 6,
    iterations: int = 3,
    seed: int = 42,
    double: bool = False,
) -> list[float]:
    """Meta-train; the mean query loss of every iteration."""
    torch.manual_seed(seed)
    dtype = torch.float64 if double else torch.float32
    model = Forecaster(hidden_size).to(dtype)
    maml = l2l.algorithms.MAML(model, lr=fast_lr)
    opt = torch.optim.Adam(maml.parameters(), meta_lr)
    loss = nn.MSELoss()

    errors = []
    for iteration in range(iterations):
        opt.zero_grad()
        meta_train_error = 0.0
        for _ in range(meta_batch_size):
            series = sample(2 * shots, times, dtype)
            past, future = series[:, :-1], series[:, 1:]
            learner = maml.clone()
            for _ in range(adaptation_steps):
                learner.adapt(loss(learner(past[:shots]), future[:shots]))
            error = loss(learner(past[shots:]), future[shots:]) / meta_batch_size
            error.backward()
            meta_train_error += error.item()
        print(f"{iteration:5}  loss {meta_train_error:.4f}")
        errors.append(meta_train_error)
        opt.step()
    return errors


if __name__ == "__main__":
    tyro.cli(main)
