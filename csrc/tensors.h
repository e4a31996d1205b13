// What every CPU and CUDA binding shares: checks that name the argument, and layouts per task.
//
// A task's slice must be dense in the kernel's layout; the stride from task to task may be anything,
// zero included, so that parameters expanded over tasks are never copied.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace fastmaml {

namespace stable = torch::stable;
using stable::Tensor;
using torch::headeronly::ScalarType;
using Sizes = std::vector<int64_t>;

// Whether dimensions 1.. are dense in the order given (outermost first); sizes of 1 match anything.
inline bool dense_within_task(const Tensor& x, const Sizes& order) {
  int64_t expected = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    if (x.size(*d) != 1 && x.stride(*d) != expected) return false;
    expected *= x.size(*d);
  }
  return true;
}

inline Sizes row_major(int64_t rank) {
  Sizes order;
  for (int64_t d = 1; d < rank; ++d) order.push_back(d);
  return order;
}

// x itself where its slices are dense row-major, else a copy of which they are.
inline Tensor task_contiguous(const Tensor& x) {
  return dense_within_task(x, row_major(x.dim())) ? x : stable::contiguous(x);
}

inline int64_t task_stride(const Tensor& x) { return x.size(0) <= 1 ? 0 : x.stride(0); }

}  // namespace fastmaml
