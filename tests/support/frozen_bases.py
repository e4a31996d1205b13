"""Models with frozen bases and adapters, in float64, and what a `MAML` of them gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from problems import relative, tensor
from torch import Tensor, nn
from torch.nn import functional as F

import fastmaml as fm
from fastmaml.gradients import Checkpointed, GradientMethod, MixedMode, Unrolled

TASKS, STEPS, WAYS, WORDS, LENGTH = 4, 2, 3, 11, 5

EXACT: dict[str, GradientMethod] = {
    "unrolled": Unrolled(),
    "checkpointed": Checkpointed(),
    "segments": Checkpointed(1),
    "mixed-mode": MixedMode(),
}


class Adapted(nn.Module):
    """A linear layer and low-rank adapters."""

    def __init__(self, base: nn.Module, inner: int, outer: int) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = nn.Linear(inner, 2, bias=False), nn.Linear(2, outer, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.base(x) + self.up(self.down(x))
        return found


class Tied(nn.Module):
    """Embeds words with the weight that reads them out; a bias and a norm are learned, too."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 6)
        self.first = Adapted(nn.Linear(6, 7), 6, 7)
        self.second = Adapted(nn.Linear(7, 6, bias=False), 7, 6)
        self.norm = nn.LayerNorm(6)
        self.out = nn.Linear(6, WORDS)
        self.out.weight = self.words.weight
        for name, p in self.named_parameters():
            base = name.startswith("words") or ".base." in name
            p.requires_grad_(not base or name == "first.base.bias")

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words).mean(-2)
        x = self.norm(x + self.second(torch.tanh(self.first(x))))
        found: Tensor = self.out(x)
        return found[..., :WAYS]


def tied() -> nn.Module:
    torch.manual_seed(0)
    return Tied().double()


def adapters(name: str, _: Any) -> bool:
    """The scope: what else is trained is learned, and does not adapt."""
    return ".down." in name or ".up." in name or ".lora_" in name


def words(tasks: int = TASKS) -> fm.Episodes:
    """Word numbers ``[tasks, examples, length]``."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(WAYS).repeat(tasks, 2)
    shape = (tasks, 2 * WAYS, LENGTH)
    sets = [torch.randint(1, WORDS, shape, generator=generator) for _ in range(2)]
    return fm.Episodes(*(fm.Batch(x, labels) for x in sets))


def transformer(kind: str = "Llama") -> nn.Module:
    """A classifier with LoRA adapters that are not new; GPT2's linear layers are ``Conv1D``."""
    import transformers

    from fastmaml.integrations.transformers import Lora, with_lora

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2}
    sizes |= {"vocab_size": WORDS, "max_position_embeddings": LENGTH, "num_labels": WAYS}
    more = {"intermediate_size": 12, "num_key_value_heads": 1} if kind == "Llama" else {}
    config = getattr(transformers, f"{kind}Config")(**sizes, **more, pad_token_id=0)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    if kind == "Llama":  # whose own norms compute in float32, whatever the model's dtype
        layers = model.model.layers
        for owner in (model.model, *layers):
            for name, module in list(owner.named_children()):
                if type(module).__name__ == "LlamaRMSNorm":
                    setattr(owner, name, nn.RMSNorm(8))
    targets = ("q_proj", "v_proj", "down_proj") if kind == "Llama" else ("c_attn", "c_fc")
    model = with_lora(model, Lora(rank=2, targets=targets)).double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_B" in name:
                p.normal_(std=0.3)
    return model


def tokens(tasks: int = TASKS) -> fm.Episodes:
    """`words` as a model of transformers takes them."""
    sets = words(tasks).sets().values()
    return fm.Episodes(*(fm.Batch({"input_ids": s.inputs}, s.targets) for s in sets))


def gpt2() -> nn.Module:
    return transformer("GPT2")


BASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], fm.Episodes], Any]] = {
    "tied": (tied, words, F.cross_entropy),
    "llama": (transformer, tokens, fm.losses.classification),
    "gpt2": (gpt2, tokens, fm.losses.classification),
}
"""How to make each, its meta-batch, and its loss."""


def images() -> fm.Episodes:
    labels = torch.arange(WAYS).repeat(TASKS, 2)
    shape = (TASKS, 2 * WAYS, 1, 8, 8)
    return fm.Episodes(*(fm.Batch(tensor(*shape, seed=s), labels) for s in (1, 2)))


def conv() -> nn.Module:
    torch.manual_seed(0)
    return fm.models.conv4(WAYS, filters=4, image_size=8, channels=1).double()


def maml(name: str, model: nn.Module, method: GradientMethod | None, **more: Any) -> fm.MAML:
    options = {"steps": STEPS, "loss": BASES[name][2], "scope": adapters, "gradient": method}
    return fm.MAML(model, 0.5, **options | more)


def gradients(module: nn.Module) -> Tensor:
    """Of all parameters that have one, as one vector."""
    found = [p.grad.flatten().cpu() for p in module.parameters() if p.grad is not None]
    return torch.cat(found)


def expected(name: str) -> Tensor:
    """The meta-gradient of the model as it is, of the whole meta-batch."""
    make, episodes, _ = BASES[name]
    learner = maml(name, make(), Unrolled(), executor="eager", backend="reference")
    learner(episodes()).loss.backward()
    found = gradients(learner)
    first = maml(name, make(), fm.gradients.FirstOrder())
    first(episodes()).loss.backward()
    assert relative(gradients(first), found) > 1e-3, "second derivatives have to matter"
    return found
