"""A loss of your own, one task at a time. See docs/extending/loss.md."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm


class Focal(nn.Module):
    """−(1 − p)^gamma · log p of the right class, the mean over examples (Lin et al., 2017)."""

    ignore_index = -100
    """Says that targets are labels, which are then checked; this one marks those left out."""

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """A scalar, of logits ``[examples, classes]`` and labels ``[examples]``."""
        log_p = logits.log_softmax(-1)
        counts = labels != self.ignore_index
        right = log_p.gather(-1, labels.where(counts, 0).unsqueeze(-1)).squeeze(-1)
        each = -((1 - right.exp()) ** self.gamma) * right
        return each.where(counts, 0).sum() / counts.sum()


def main() -> None:
    """With gamma 0 it is the cross-entropy; a label that is no class is refused by name."""
    torch.manual_seed(0)
    batch = fm.episodes.digits("train", ways=5, shots=5, tasks=4).sample()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 5))
    for loss in (F.cross_entropy, Focal(0.0), Focal(2.0)):
        maml = fm.MAML(model, lr=0.3, steps=3, loss=loss)
        found = torch.autograd.grad(maml(batch).loss, list(maml.parameters()))
        size = torch.cat([g.flatten() for g in found]).norm()
        name = f"{loss.gamma=}" if isinstance(loss, Focal) else loss.__name__
        print(f"{name}: |meta-gradient| = {size:.6f}")

    batch.query.targets[2, 7] = 5
    try:
        maml(batch)
    except ValueError as error:
        print(error)


if __name__ == "__main__":
    main()
