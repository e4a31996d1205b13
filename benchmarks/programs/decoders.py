"""How long is a meta-step of a small decoder of transformers, beside a loop by hand?

    python -m benchmarks.programs.decoders [--subjects Llama Qwen3] [--calls 20] [--quick]

The next token of every place, of texts without a mask, by models of four layers with random
weights. The loop keeps the graph of every inner step (``create_graph=True``), and runs attention in
plain operations, as PyTorch's fused ones have no second derivative. Meta-gradients are compared in
float64 first; then the two take turns, call by call, and the first half of the calls is not
counted; last comes the peak of live tensors in one more. Writes
benchmarks/results/DEVICE/decoders.json after every row.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastmaml as fm
from benchmarks.support.reference import Parameters, hand_loop, relative
from benchmarks.support.results import about, place, quartiles, save
from fastmaml.measure.profile import LiveMemory

SUBJECTS = ("Llama", "Qwen3", "Gemma2", "GPTNeoX")
VOCABULARY, WIDTH, LAYERS, TASKS, TEXTS, LENGTH, STEPS, LR = 256, 128, 4, 4, 4, 32, 3, 0.01
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 352,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32,
    "max_position_embeddings": 64, "attention_dropout": 0.0, "use_cache": False, "pad_token_id": 0,
}  # fmt: skip


class Decoder(nn.Module):
    """A model of transformers that returns its logits."""

    def __init__(self, kind: str, layers: int) -> None:
        super().__init__()
        import transformers

        config = getattr(transformers, f"{kind}Config")(**SIZES, num_hidden_layers=layers)
        self.model = getattr(transformers, f"{kind}ForCausalLM")(config)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[texts, length]`` -> ``[texts, length, words]``."""
        logits: Tensor = self.model(input_ids=tokens).logits
        return logits


def decoder(kind: str, layers: int) -> Decoder:
    """The same weights each time."""
    torch.manual_seed(0)
    return Decoder(kind, layers)


def next_token(logits: Tensor, tokens: Tensor) -> Tensor:
    """The mean over all places."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def episodes() -> fm.Episodes:
    """Random tokens."""
    generator = torch.Generator().manual_seed(1)
    support, query = torch.randint(VOCABULARY, (2, TASKS, TEXTS, LENGTH), generator=generator)
    return fm.Episodes(fm.Batch(support, support), fm.Batch(query, query))


class ByHand:
    """One task at a time."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def step(self, given: fm.Episodes) -> Parameters:
        """The meta-gradient."""
        return hand_loop(self.model, next_token, given, LR, STEPS)[1]


class Ours:
    """All of them at once."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.maml = fm.MAML(model, LR, steps=STEPS, loss=next_token)

    def step(self, given: fm.Episodes) -> Parameters:
        """The meta-gradient."""
        self.maml.zero_grad()
        self.maml(given).loss.backward()
        return {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}


TOLERANCE = 1e-6
"""These models normalise in float32, whatever dtype they are of."""

CONTESTANTS = {"loop by hand": ByHand, "fastmaml": Ours}


def error(kind: str, layers: int) -> float:
    """In float64, of a first call and one after it."""
    given = episodes()
    expected = ByHand(decoder(kind, layers).double()).step(given)
    ours = Ours(decoder(kind, layers).double())
    return max(relative(ours.step(given), expected) for _ in range(2))


def measured(kind: str, layers: int, calls: int) -> dict[str, Any]:
    """Seconds of first calls and of the second half of the calls; bytes."""
    given = episodes()
    made = {name: contestant(decoder(kind, layers)) for name, contestant in CONTESTANTS.items()}
    turns: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(calls):
        for name, one in made.items():
            start = time.perf_counter()
            one.step(given)
            turns[name].append(time.perf_counter() - start)
    found: dict[str, Any] = {}
    for name, one in made.items():
        counted = turns[name][calls // 2 :]
        with LiveMemory() as memory:
            one.step(given)
        found[name] = {
            "first_s": turns[name][0],
            "median_s": statistics.median(counted),
            "quartiles_s": quartiles(counted, 6),
            "peak_bytes": memory.peak_bytes,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="few calls of one layer")
    parser.add_argument("--json", type=Path, help="where the results go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = place(options.json, "cpu", "decoders", options.quick)
    calls, layers = (4, 1) if options.quick else (options.calls, LAYERS)
    title = (
        f"{layers} layers, d={WIDTH}, {TASKS} tasks of {TEXTS} texts of {LENGTH} tokens, K={STEPS}"
    )
    result: dict[str, Any] = {**about("cpu"), "quick": options.quick, "calls": calls}
    result |= {"title": title, "rows": []}
    for kind in options.subjects:
        with sdpa_kernel(SDPBackend.MATH):
            row: dict[str, Any] = {"subject": kind, "error": error(kind, layers)}
            if not row["error"] < TOLERANCE:
                raise SystemExit(f"{kind}: {row['error']:.1e} off the loop.")
            row["contestants"] = measured(kind, layers, calls)
        result["rows"].append(row)
        save(path, result)
        print(kind, row["error"], row["contestants"], flush=True)


if __name__ == "__main__":
    main()
