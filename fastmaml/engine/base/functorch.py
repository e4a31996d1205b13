"""What is used of the private parts of `torch.func`; no other file names them."""

from __future__ import annotations

from torch import Tensor
from torch._C import _functorch as private
from torch._functorch import autograd_function, pyfunctorch

CGradInterpreterPtr = private.CGradInterpreterPtr
TransformType = private.TransformType
add_batch_dim = private._add_batch_dim
custom_function_call = autograd_function.custom_function_call
get_inplace_requires_grad_allowed = private.get_inplace_requires_grad_allowed
get_interpreter_stack = private.get_interpreter_stack
get_unwrapped = private.get_unwrapped
is_batchedtensor = private.is_batchedtensor
is_functorch_wrapped_tensor = private.is_functorch_wrapped_tensor
is_legacy_batchedtensor = private.is_legacy_batchedtensor
maybe_current_level = private.maybe_current_level
maybe_get_bdim = private.maybe_get_bdim
maybe_get_level = private.maybe_get_level
set_inplace_requires_grad_allowed = private.set_inplace_requires_grad_allowed
temporarily_clear_interpreter_stack = pyfunctorch.temporarily_clear_interpreter_stack


def unwrapped(x: Tensor) -> Tensor:
    """The tensor of all tasks that it is a share of, below all transforms."""
    while is_functorch_wrapped_tensor(x):
        x = get_unwrapped(x)
    return x


def needs_gradient(x: Tensor) -> bool:
    """Whether it does anywhere: one that is wrapped does not tell of what it wraps."""
    while not x.requires_grad and is_functorch_wrapped_tensor(x):
        x = get_unwrapped(x)
    return x.requires_grad
