"""Operations on all tasks of a meta-batch at once, each with its derivatives.

Every op has a PyTorch definition (``backend="reference"``) and kernels that compute the same:
``"cpp"``, ``"cuda"`` and ``"triton"``. With kernels, first and second derivatives are ops of the
same family, in reverse and forward mode, under vmap and in a trace; there is no third.
"""

from fastmaml.ops._load import BACKENDS, default_backend, families, kernels, status
from fastmaml.ops.coverage import alone, covers, parallel_region
from fastmaml.ops.dropout_mask import dropout_mask
from fastmaml.ops.inner_momentum import inner_momentum
from fastmaml.ops.inner_update import inner_update
from fastmaml.ops.task_act import task_act
from fastmaml.ops.task_attention import task_attention
from fastmaml.ops.task_batch_norm import task_batch_norm
from fastmaml.ops.task_conv2d import task_conv2d
from fastmaml.ops.task_cross_entropy import task_cross_entropy
from fastmaml.ops.task_embedding import task_embedding
from fastmaml.ops.task_layer_norm import task_layer_norm
from fastmaml.ops.task_linear import task_linear
from fastmaml.ops.task_mse import task_mse

__all__ = [
    "BACKENDS",
    "alone",
    "covers",
    "default_backend",
    "dropout_mask",
    "families",
    "inner_momentum",
    "inner_update",
    "kernels",
    "parallel_region",
    "status",
    "task_act",
    "task_attention",
    "task_batch_norm",
    "task_conv2d",
    "task_cross_entropy",
    "task_embedding",
    "task_layer_norm",
    "task_linear",
    "task_mse",
]
