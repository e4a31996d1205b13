"""Triton kernels of the matrix-bound op families and of embeddings, as the raw ops are called.

Each public name is a `torch.library` op of the namespace ``fastmaml_triton``: it has a fake
version, so that a trace shows it as one node, and no autograd, which `fastmaml.ops` adds.
float32 is computed in full precision unless PyTorch's own switch for matrix products says tf32
(``torch.set_float32_matmul_precision("high")``); float16 and bfloat16 are summed in float32;
float64 goes to PyTorch's own kernels, as tensor cores and Triton have little to add there.
"""

try:
    import triton  # noqa: F401
except ImportError as error:
    raise ImportError(
        "fastmaml.kernels needs Triton, which is not installed: run `pip install triton` (it comes "
        "with CUDA builds of PyTorch), or choose another backend: reference, cpp or cuda."
    ) from error

from .task_attention import task_attention, task_attention_bwd, task_attention_bwd2
from .task_conv2d import task_conv2d, task_conv2d_dgrad, task_conv2d_wgrad
from .task_embedding import task_embedding, task_embedding_grad
from .task_linear import task_linear, task_linear_dgrad, task_linear_wgrad

__all__ = [
    "task_attention",
    "task_attention_bwd",
    "task_attention_bwd2",
    "task_conv2d",
    "task_conv2d_dgrad",
    "task_conv2d_wgrad",
    "task_embedding",
    "task_embedding_grad",
    "task_linear",
    "task_linear_dgrad",
    "task_linear_wgrad",
]
