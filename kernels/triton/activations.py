"""Activations of the epilogue, by the codes of csrc/math/activation_codes.h."""

# ruff: noqa: N803 (constants of a kernel are capitals)

import triton
import triton.language as tl

# Saved for the derivative is the input of these, the output of the others.
SAVES_INPUT = (3, 4, 6)


@triton.jit
def tanh(x):
    """Exact to float32 rounding; the interpreter has no libdevice."""
    # Near 0 the quotient cancels: there a series, exact to float32.
    square = x * x
    series = 17.0 / 315 - square * (62.0 / 2835)
    series = x - x * square * (1.0 / 3 - square * (2.0 / 15 - square * series))
    small = tl.exp(-2.0 * tl.abs(x))
    quotient = (1.0 - small) / (1.0 + small)
    return tl.where(tl.abs(x) < 0.3, series, tl.where(x < 0, -quotient, quotient))


@triton.jit
def activate(x, ACT: tl.constexpr):
    """0 none, 1 relu, 2 tanh, 3 gelu, 4 gelu_tanh, 5 sigmoid, 6 silu; x is float32."""
    if ACT == 1:
        x = tl.where(x < 0, 0.0, x)  # so that NaN stays
    elif ACT == 2:
        x = tanh(x)
    elif ACT == 3:
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACT == 4:
        x = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif ACT == 5:
        x = 1.0 / (1.0 + tl.exp(-x))
    elif ACT == 6:
        x = x / (1.0 + tl.exp(-x))
    return x
