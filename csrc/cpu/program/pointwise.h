// Sums, differences, products and powers of two tensors, or of a tensor and a number, with broadcasting.
#pragma once

#include <cstdint>
#include <vector>

#include "../../tensors.h"

namespace fastmaml::program {

struct Pointwise {
  enum class Kind { add, sub, mul, div, neg, square, cube };
  static constexpr int64_t kKinds = 7;
  Kind kind = Kind::add;
  int64_t a = 0, b = -1;  // numbers of values; without b its place is the number's
  double number = 0;
  int64_t result = 0;
  bool in_place = false;  // the result lies where a does
  // Loops, the innermost last, with steps in elements.
  std::vector<int64_t> size, a_step, b_step, out_step;
};

// out = a · b; b is nothing where the number stands for it.
template <class S>
void run_pointwise(const Pointwise& p, const S* a, const S* b, S* out);

}  // namespace fastmaml::program
