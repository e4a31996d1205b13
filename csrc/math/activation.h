// Activations a(x) with their first and second derivatives, on the CPU and the GPU.
//
// Derivatives are taken at the saved tensor s: the output for relu, tanh and sigmoid (a' is a
// function of it, and so nothing else need be kept), the input where saves_input. `curvature` is
// the derivative of `slope` with respect to s itself, which is what a second derivative of the
// graph y -> slope(y) asks for.
#pragma once

#include "activation_codes.h"
#include "elementary.h"

namespace fastmaml::math {

// saves_input() of a code: a constant, which device code may read where it may not call.
template <Act A>
inline constexpr bool at_input = saves_input(A);

// gelu_tanh is x * sigmoid(v(x)), v(x) = sqrt(8/pi) (x + 0.044715 x^3); silu has v(x) = x.
constexpr double kGateLinear = 1.5957691216057307117;
constexpr double kGateCubic = 0.044715 * kGateLinear;

template <Act A, class S>
FM_INLINE S gate(S x) {
  return A == Act::silu ? x : x * (S(kGateLinear) + S(kGateCubic) * x * x);
}

template <Act A, class S>
FM_INLINE S gate_slope(S x) {
  return A == Act::silu ? S(1) : S(kGateLinear) + S(3 * kGateCubic) * x * x;
}

template <Act A, class S>
FM_INLINE S gate_curvature(S x) {
  return A == Act::silu ? S(0) : S(6 * kGateCubic) * x;
}

template <class S>
FM_INLINE S gelu_curvature(S x, S density) {
  return S(2) * density - density * x * x;
}

// sigmoid(v) and its slope, neither with cancellation.
template <class S>
struct Gate {
  S value, slope;
  FM_INLINE explicit Gate(S v) {
    const S e = vexp(v > S(0) ? -v : v);
    const S r = S(1) / (S(1) + e);
    value = v > S(0) ? r : e * r;
    slope = e * r * r;
  }
};

template <Act A, class S>
FM_INLINE S activate(S x) {
  if constexpr (A == Act::relu) return x <= S(0) ? S(0) : x;  // NaN stays NaN
  else if constexpr (A == Act::tanh) return vtanh(x);
  else if constexpr (A == Act::gelu) return x * normal_cdf(x, normal_pdf(x));
  else if constexpr (A == Act::sigmoid) return sigmoid(x);
  else if constexpr (at_input<A>) return x * sigmoid(gate<A>(x));
  else return x;
}

template <Act A, class S>
FM_INLINE S slope(S s) {
  if constexpr (A == Act::relu) return s <= S(0) ? S(0) : S(1);
  else if constexpr (A == Act::tanh) return S(1) - s * s;
  else if constexpr (A == Act::sigmoid) return s * (S(1) - s);
  else if constexpr (A == Act::gelu) {
    const S density = normal_pdf(s);
    return normal_cdf(s, density) + s * density;
  } else if constexpr (at_input<A>) {
    const Gate<S> p(gate<A>(s));
    return p.value + s * p.slope * gate_slope<A>(s);
  } else return S(1);
}

template <Act A, class S>
FM_INLINE S curvature(S s) {
  if constexpr (A == Act::tanh) return S(-2) * s;
  else if constexpr (A == Act::sigmoid) return S(1) - S(2) * s;
  else if constexpr (A == Act::gelu) return gelu_curvature(s, normal_pdf(s));
  else if constexpr (at_input<A>) {
    const Gate<S> p(gate<A>(s));
    const S d = gate_slope<A>(s);
    const S pd = p.slope * d;  // in this order nothing overflows before p.slope has made it zero
    return S(2) * pd + s * (p.slope * gate_curvature<A>(s) + pd * d * (S(1) - S(2) * p.value));
  } else return S(0);
}

// A run-time code as a compile-time constant: f(tag) with decltype(tag)::value.
template <Act A>
struct ActTag {
  static constexpr Act value = A;
};

// code is checked by the caller: 0 <= code < kActs.
template <class F>
inline void with_act(int64_t code, F&& f) {
  switch (static_cast<Act>(code)) {
    case Act::none: return f(ActTag<Act::none>{});
    case Act::relu: return f(ActTag<Act::relu>{});
    case Act::tanh: return f(ActTag<Act::tanh>{});
    case Act::gelu: return f(ActTag<Act::gelu>{});
    case Act::gelu_tanh: return f(ActTag<Act::gelu_tanh>{});
    case Act::sigmoid: return f(ActTag<Act::sigmoid>{});
    case Act::silu: return f(ActTag<Act::silu>{});
  }
}

}  // namespace fastmaml::math
