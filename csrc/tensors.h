// What every CPU and CUDA binding shares: checks that name the op and the argument, and memory orders.
//
// A memory order lists the dimensions 1.. of a [tasks, ...] tensor, outermost first. A task's slice must
// be dense in the order that the kernel wants; the stride from task to task may be anything, zero
// included, so that parameters expanded over tasks are never copied.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "math/activation_codes.h"

namespace fastmaml {

namespace stable = torch::stable;
using stable::Tensor;
using torch::headeronly::ScalarType;
using OptionalTensor = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

inline Sizes sizes_of(const Tensor& x) { return Sizes(x.sizes().begin(), x.sizes().end()); }

inline std::string shape_text(const Sizes& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

// ---- checks ----

inline void check_rank(const char* op, const char* name, const Tensor& x, int64_t rank) {
  STD_TORCH_CHECK(x.dim() == rank, op, ": ", name, " has shape ", shape_text(sizes_of(x)), "; it needs ", rank,
                  " dimensions, tasks first");
}

inline void check_dtype_and_sizes(const char* op, const char* name, const Tensor& x, ScalarType dtype,
                                  const Sizes& sizes) {
  STD_TORCH_CHECK(x.scalar_type() == dtype, op, ": ", name, " has dtype ", toString(x.scalar_type()),
                  ", not ", toString(dtype));
  STD_TORCH_CHECK(sizes_of(x) == sizes, op, ": ", name, " has shape ", shape_text(sizes_of(x)), ", not ",
                  shape_text(sizes));
}

inline void check_act(const char* op, int64_t act) {
  STD_TORCH_CHECK(act >= 0 && act < math::kActs, op, ": act is ", act, ", not 0 to ", math::kActs - 1);
}

// ---- memory orders ----

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

// Elements of one task, also where there are no tasks.
inline int64_t elements_per_task(const Tensor& x) {
  int64_t n = 1;
  for (int64_t d = 1; d < x.dim(); ++d) n *= x.size(d);
  return n;
}

// The memory order of x where its slices are dense in some order, else row-major.
inline Sizes dense_order(const Tensor& x) {
  Sizes order = row_major(x.dim());
  if (dense_within_task(x, order)) return order;
  Sizes sorted = order;
  std::stable_sort(sorted.begin(), sorted.end(),
                   [&](int64_t a, int64_t b) { return x.stride(a) > x.stride(b); });
  return dense_within_task(x, sorted) ? sorted : order;
}

// The strides of a tensor whose slices are dense in that order, one task after another.
inline Sizes strides_in_order(const Sizes& sizes, const Sizes& order) {
  Sizes strides(sizes.size(), 1);
  int64_t next = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    strides[*d] = next;
    next *= std::max<int64_t>(sizes[*d], 1);
  }
  if (!sizes.empty() && order.size() + 1 == sizes.size()) strides[0] = next;
  return strides;
}

// A new tensor.
inline Tensor empty_strided(const Sizes& sizes, const Sizes& strides, int32_t dtype, int32_t device_type,
                            int32_t device) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                  strides.data(), dtype, device_type, device, &handle));
  return Tensor(handle);
}

// A new tensor whose slices are dense in that order, one task after another.
inline Tensor empty_in_order(const Sizes& sizes, const Sizes& order, int32_t dtype, int32_t device_type,
                             int32_t device) {
  return empty_strided(sizes, strides_in_order(sizes, order), dtype, device_type, device);
}

// x where its slices are dense in that order, else a copy (of one task, where all tasks share it) in
// what empty(sizes, order) makes.
template <class Empty>
Tensor in_order(const Tensor& x, const Sizes& order, const Empty& empty) {
  if (dense_within_task(x, order)) return x;
  Tensor source = x;
  if (x.size(0) > 1 && x.stride(0) == 0) source = stable::narrow(source, 0, 0, 1);
  Tensor copy = empty(sizes_of(source), order);
  stable::copy_(copy, source);
  return copy;
}

}  // namespace fastmaml
