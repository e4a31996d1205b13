"""The launches of attention and embedding kernels that `triton_resources.py` compiles."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastmaml.kernels.attention_backward import backward
from fastmaml.kernels.attention_forward import forward
from fastmaml.kernels.attention_second import second
from fastmaml.kernels.attention_work import Attention, block
from fastmaml.kernels.launch import Launch
from fastmaml.kernels.task_embedding import embedding, embedding_grad

META = torch.device("meta")
# 4 tasks of 16 sentences of 128 tokens, in BERT's 12 heads, and its table of word pieces.
TASKS, BATCH, HEADS, TOKENS, WORDS = 4, 16, 12, 128, 30_522


def attentions(dtype: torch.dtype) -> Iterator[tuple[str, list[Launch]]]:
    """Every kernel, on tensors that hold no data: sentences with padding, and causal ones."""
    for size in (32, 64):
        for causal in (False, True):
            q = torch.empty(TASKS, BATCH, TOKENS, HEADS, size, dtype=dtype, device=META)
            q = q.transpose(2, 3)
            padding = torch.empty(TASKS, BATCH, 1, 1, TOKENS, dtype=dtype, device=META)
            mask = None if causal else padding.expand(TASKS, BATCH, HEADS, TOKENS, TOKENS)
            key = torch.empty(TASKS, dtype=torch.int64, device=META)
            lse = torch.empty(q.shape[:4], device=META)
            work = Attention(q, q, q, mask, key, causal, size**-0.5, 0.0 if causal else 0.1)
            name = f"{size} causal" if causal else f"{size} padded, dropout"
            tiles = [block(kind, work) for kind in ("forward", "backward", "second")]
            given = q, q, lse
            yield f"task_attention {name}", [forward(work, tiles[0], q, lse)]
            yield f"task_attention_bwd {name}", backward(work, tiles[1], *given, q, q, q)
            tangents, out = (q, q, q), (q, q, q, q)
            yield f"task_attention_bwd2 {name}", second(work, tiles[2], tangents, *given, out)


def embeddings(dtype: torch.dtype) -> Iterator[tuple[str, list[Launch]]]:
    """Of a table with rows of 384."""
    table = torch.empty(TASKS, WORDS, 384, dtype=dtype, device=META)
    y = torch.empty(TASKS, BATCH * TOKENS, 384, dtype=dtype, device=META)
    ids = torch.empty(TASKS, BATCH * TOKENS, dtype=torch.int64, device=META)
    yield "task_embedding", [embedding(table, ids, y)]
    yield "task_embedding_grad", [embedding_grad(y, ids, table)]
