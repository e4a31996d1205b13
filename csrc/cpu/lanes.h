// Neighbouring numbers as one value, for kernels whose loops the compiler does not vectorise by itself:
// comparisons that pick between values, and bytes beside floats.
//
// The vectors are GCC's: 64 bytes wide whatever the machine, which each clone (simd.h) cuts into
// registers of its own. One lane stands for the rest of a row that does not fill a vector.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../math/elementary.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // no vector crosses a call: everything here is inlined

namespace fastmaml {

template <class S, int W>
struct Lanes {
  using Int = std::conditional_t<sizeof(S) == 4, int32_t, int64_t>;
  typedef S Vector __attribute__((vector_size(W * sizeof(S))));
  typedef Int Index __attribute__((vector_size(W * sizeof(S))));
  typedef uint8_t Bytes __attribute__((vector_size(W)));
  typedef double Wide __attribute__((vector_size(W * sizeof(double))));
  static constexpr int width = W;

  static FM_INLINE Vector load(const S* p) {
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static FM_INLINE void store(S* p, const Vector& v) { std::memcpy(p, &v, sizeof v); }
  static FM_INLINE Index load_index(const uint8_t* p) {
    Bytes b;
    std::memcpy(&b, p, sizeof b);
    return __builtin_convertvector(b, Index);
  }
  static FM_INLINE void store_index(uint8_t* p, const Index& v) {
    const Bytes b = __builtin_convertvector(v, Bytes);
    std::memcpy(p, &b, sizeof b);
  }
  static FM_INLINE void add(double* p, const Vector& v) {
    Wide w;
    std::memcpy(&w, p, sizeof w);
    w += __builtin_convertvector(v, Wide);
    std::memcpy(p, &w, sizeof w);
  }
};

template <class S>
struct Lanes<S, 1> {
  using Vector = S;
  using Index = int;
  static constexpr int width = 1;

  static FM_INLINE S load(const S* p) { return *p; }
  static FM_INLINE void store(S* p, S v) { *p = v; }
  static FM_INLINE int load_index(const uint8_t* p) { return *p; }
  static FM_INLINE void store_index(uint8_t* p, int v) { *p = static_cast<uint8_t>(v); }
  static FM_INLINE void add(double* p, S v) { *p += static_cast<double>(v); }
};

#define FM_INLINE_LAMBDA __attribute__((always_inline))

// body(Lanes, first channel) over all channels; body must be inlined (generic lambda, FM_INLINE_LAMBDA).
template <class S, class Body>
FM_INLINE void for_lanes(int64_t channels, const Body& body) {
  constexpr int kWidth = 64 / sizeof(S);
  int64_t c = 0;
  for (; c + kWidth <= channels; c += kWidth) body(Lanes<S, kWidth>{}, c);
  for (; c < channels; ++c) body(Lanes<S, 1>{}, c);
}

}  // namespace fastmaml
