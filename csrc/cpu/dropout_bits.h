// Random masks as a function of a key: element i is kept where a hash of (key, i) is at least p 2^32.
// The definition, with the same bits, is in fastmaml/ops/dropout_mask.py.
#pragma once

#include <cstdint>

#include "../math/elementary.h"
#include "simd.h"

namespace fastmaml::dropout {

constexpr uint64_t kStride = 0x9E3779B1;  // the golden ratio's bits

FM_INLINE uint32_t mixed(uint64_t x) {
  uint32_t y = static_cast<uint32_t>(x) ^ static_cast<uint32_t>(x >> 32);
  y = (y ^ y >> 16) * 0x7FEB352D;
  y = (y ^ y >> 15) * 0x846CA68B;
  return y ^ y >> 16;
}

// The masks of all tasks, but for their keys.
template <class S>
struct Rule {
  uint32_t threshold;
  S kept;  // the value of what is kept

  explicit Rule(double p)
      : threshold(p >= 1 ? UINT32_MAX : static_cast<uint32_t>(p * 4294967296.0)),
        kept(p >= 1 ? S(0) : static_cast<S>(1 / (1 - p))) {}
};

// The elements [first, first + count) of a task's mask; seed = mixed(key).
template <class S>
FM_CLONES void fill(S* out, const Rule<S>& rule, uint32_t seed, int64_t first, int64_t count) {
  const uint64_t start = seed + static_cast<uint64_t>(first) * kStride;
  const uint32_t threshold = rule.threshold;
  const S kept = rule.kept;
#pragma omp simd
  for (uint32_t i = 0; i < static_cast<uint32_t>(count); ++i)
    out[i] = mixed(start + i * kStride) >= threshold ? kept : S(0);
}

}  // namespace fastmaml::dropout
