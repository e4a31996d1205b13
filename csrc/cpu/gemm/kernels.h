// What the dense ops ask of the instruction set: one product of matrices, and what surrounds it.
//
// kernels_impl.h holds the code once; kernels_<isa>.cpp compile it for one instruction set each,
// and kernels<S>() picks the best that this processor has.
#pragma once

#include <cstdint>

namespace fastmaml {

// C[m, :] = start + sum over segments s and k < length of A(m, s, k) * B(s, k, :), where
//   A(m, s, k) = a[a_row[m] + a_segment[s] + k * a_step]
//   B(s, k, n) = row b_segment[s] + k of b, `b_step` apart (in panels: see below)
//   C(m, n)    = c[c_row[m] + n]
// and start is c itself (accumulate), the bias, or zero. Offsets instead of strides for the rows
// let one kernel be a linear layer, a convolution without im2col, and all their gradients.
//
// Fewer columns than a vector has lanes: b's rows must be readable up to a whole vector.
// In panels: b is `depth` rows cut into the column panels of `panel`, each dense, one after another.
template <class S>
struct Gemm {
  const S* a = nullptr;
  const S* b = nullptr;
  S* c = nullptr;
  const S* bias = nullptr;
  int64_t rows = 0, columns = 0;
  const int64_t* a_row = nullptr;
  const int64_t* c_row = nullptr;
  int64_t segments = 0, length = 0;
  const int64_t* a_segment = nullptr;
  const int64_t* b_segment = nullptr;
  int64_t a_step = 1, b_step = 0;
  int64_t depth = 0;  // > 0: b is in panels
  bool accumulate = false;
  bool relu = false;
};

template <class S>
struct Kernels {
  const char* name;
  int64_t lanes;  // of one vector
  void (*gemm)(const Gemm<S>&);
  // out[c, r] = in[r, c]; fewer rows than lanes are filled up with zeros where out_step has room
  void (*transpose)(S* out, int64_t out_step, const S* in, int64_t in_step, int64_t rows, int64_t columns);
  // in [depth, columns] to the panels of gemm
  void (*pack)(S* out, const S* in, int64_t in_step, int64_t depth, int64_t columns);
  // in [columns, depth] to the panels of gemm
  void (*pack_transposed)(S* out, const S* in, int64_t in_step, int64_t depth, int64_t columns);
  // out[n] = sum over rows of in[m, n]
  void (*sum_rows)(S* out, const S* in, int64_t in_step, int64_t rows, int64_t columns);
};

template <class S>
const Kernels<S>& kernels();

}  // namespace fastmaml
