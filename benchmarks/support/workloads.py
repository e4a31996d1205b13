"""The meta-steps that are timed: networks, shapes, weights and episodes.

Read by every worker process, JAX's too: torch is imported where it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

WIDTH, HEADS, FEED_FORWARD, LAYERS, VOCABULARY = 128, 4, 512, 2, 256  # of the transformer


@dataclass(frozen=True)
class Workload:
    """One meta-step.

    Attributes:
        key: a short name, for the command line.
        short: a column's heading.
        title: a description.
        network: "mlp", "policy", "conv4", "conv4-inplace", "resnet12" or "transformer".
        tasks, steps, lr: of the meta-batch and of the inner loop.
        support, query: examples a task.
        ways: classes, or numbers to predict in a regression.
        shape: of an example.
        filters: channels of conv4's layers, or an MLP's hidden width (0: the usual one).
    """

    key: str
    short: str
    title: str
    network: str
    tasks: int
    steps: int
    lr: float
    support: int
    query: int
    ways: int
    shape: tuple[int, ...]
    filters: int = 0

    @property
    def regression(self) -> bool:
        """Whether the loss is the squared error; else cross-entropy."""
        return self.network in ("mlp", "policy")


WORKLOADS = {
    work.key: work
    for work in (
        Workload(
            "sinusoid-1", "sinusoid, K=1",
            "sinusoid MLP 1-40-40-1, 25 tasks, 10 shots, K=1",
            "mlp", 25, 1, 0.01, 10, 10, 1, (1,),
        ),
        Workload(
            "sinusoid-5", "sinusoid, K=5",
            "sinusoid MLP 1-40-40-1, 25 tasks, 10 shots, K=5",
            "mlp", 25, 5, 0.01, 10, 10, 1, (1,),
        ),
        Workload(
            "omniglot-5w", "Omniglot 5w1s, K=1",
            "Omniglot conv4-64, 5-way 1-shot, 32 tasks, K=1",
            "conv4", 32, 1, 0.4, 5, 5, 5, (1, 28, 28), 64,
        ),
        Workload(
            "omniglot-20w", "Omniglot 20w1s, K=5",
            "Omniglot conv4-64, 20-way 1-shot, 8 tasks, K=5",
            "conv4", 8, 5, 0.01, 20, 20, 20, (1, 28, 28), 64,
        ),
        Workload(
            "images-32", "3x32x32 5w5s, K=5",
            "conv4-32 on 3x32x32, 5-way 5-shot, 15 queries a class, 4 tasks, K=5",
            "conv4", 4, 5, 0.01, 25, 75, 5, (3, 32, 32), 32,
        ),
        Workload(
            "transformer", "transformer, K=5",
            "2-layer transformer, d=128, 8 x 32 tokens, 4 tasks, K=5",
            "transformer", 4, 5, 0.01, 8, 8, 5, (32,),
        ),
        Workload(
            "policy", "policy MLP, K=1",
            "policy MLP 2-64-64-2 with tanh, 20 tasks of 2,000 + 2,000 rows, K=1",
            "policy", 20, 1, 0.1, 2000, 2000, 2, (2,), 64,
        ),
        Workload(
            "images-84", "3x84x84 5w5s, K=5",
            "conv4-32 on 3x84x84, 5-way 5-shot, 15 queries a class, 4 tasks, K=5",
            "conv4", 4, 5, 0.01, 25, 75, 5, (3, 84, 84), 32,
        ),
        Workload(
            "images-84-inplace", "3x84x84 5w5s, K=5, ReLU in place",
            "conv4-32, nn.ReLU(inplace=True), on 3x84x84, 5w5s, 15 queries a class, 4 tasks, K=5",
            "conv4-inplace", 4, 5, 0.01, 25, 75, 5, (3, 84, 84), 32,
        ),
        Workload(
            "resnet-12", "ResNet-12, K=2",
            "ResNet-12 on 3x84x84, 5-way 1-shot, 1 query a class, 2 tasks, K=2",
            "resnet12", 2, 2, 0.01, 5, 5, 5, (3, 84, 84),
        ),
    )
}  # fmt: skip

LARGE = ("policy", "images-84", "images-84-inplace", "resnet-12")
"""Those that take long, in results of their own."""


def network(work: Workload) -> nn.Module:
    """The workload's network, in training mode, as torch initialises it."""
    import fastmaml as fm

    if work.network == "mlp":
        return fm.models.mlp(1, 1, [work.filters or 40] * 2)
    if work.network == "policy":
        return with_tanh(fm.models.mlp(*work.shape, work.ways, [work.filters] * 2))
    if work.network == "resnet12":
        return fm.models.resnet12(work.ways, work.shape[0])
    if work.network.startswith("conv4"):
        channels, size, _ = work.shape
        conv4 = fm.models.conv4(work.ways, channels, work.filters, pool="max", image_size=size)
        return in_place(conv4) if work.network == "conv4-inplace" else conv4
    return transformer(work.ways)


def with_tanh(model: nn.Module) -> nn.Module:
    """The model with tanh for ReLU."""
    from torch import nn

    features: Any = model.get_submodule("features")
    features[1], features[3] = nn.Tanh(), nn.Tanh()
    return model


def in_place(model: nn.Module) -> nn.Module:
    """The model with every ReLU overwriting what it is given."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    return model


def transformer(classes: int) -> nn.Module:
    """Tokens to classes: embedding, pre-norm layers, a norm, the mean over tokens, a classifier."""
    from torch import Tensor, nn

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, WIDTH)
            self.layers = nn.Sequential(
                *(
                    nn.TransformerEncoderLayer(
                        WIDTH, HEADS, FEED_FORWARD, dropout=0.0, activation="gelu",
                        batch_first=True, norm_first=True,
                    )
                    for _ in range(LAYERS)
                )
            )  # fmt: skip
            self.norm = nn.LayerNorm(WIDTH)
            self.classifier = nn.Linear(WIDTH, classes)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.norm(self.layers(self.embedding(tokens)))
            y: Tensor = self.classifier(x.mean(1))
            return y

    return Transformer()


def arrays(work: Workload, seed: int = 0) -> dict[str, Any]:
    """NumPy arrays: weights as ``w.NAME``, and ``support.inputs``, ``support.targets``, ..."""
    import torch

    torch.manual_seed(seed)
    found = {f"w.{name}": p.detach().numpy() for name, p in network(work).named_parameters()}
    amplitude, phase = torch.rand(2, work.tasks, 1, 1).unbind()
    for part, examples in (("support", work.support), ("query", work.query)):
        size = (work.tasks, examples, *work.shape)
        if work.network == "policy":
            x = torch.randn(size)
            y = torch.randn(work.tasks, 1, work.ways) - x
        elif work.network == "mlp":
            x = 10 * torch.rand(size) - 5
            y = (0.1 + 4.9 * amplitude) * torch.sin(x + torch.pi * phase)
        else:
            tokens = work.network == "transformer"
            x = torch.randint(VOCABULARY, size) if tokens else torch.randn(size)
            y = (torch.arange(examples) % work.ways).expand(work.tasks, -1).contiguous()
        found |= {f"{part}.inputs": x.numpy(), f"{part}.targets": y.numpy()}
    return found
