// What the CPU kernels of this folder share: checks, allocation in a chosen memory order, and inputs
// as (pointer, task stride).
//
// A memory order lists the dimensions 1.. of a [T, ...] tensor, outermost first. Elementwise ops keep
// the order their input came in (convolution weights are not row-major), the others ask for theirs.
#pragma once

#include <algorithm>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "../tensors.h"

namespace fastmaml {

using OptionalTensor = std::optional<Tensor>;

inline Sizes sizes_of(const Tensor& x) { return Sizes(x.sizes().begin(), x.sizes().end()); }

inline std::string shape_text(const Sizes& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

// ---- checks: each names the op and the argument ----

inline void check_floating(const char* op, const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu(), op, ": ", name, " is not on the CPU, as the other tensors are");
  STD_TORCH_CHECK(
      x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, op, ": ", name,
      " has dtype ", toString(x.scalar_type()), "; on the CPU it must be Float or Double");
}

inline void check_rank(const char* op, const char* name, const Tensor& x, int64_t least) {
  STD_TORCH_CHECK(x.dim() >= least, op, ": ", name, " has shape ", shape_text(sizes_of(x)),
                  "; it needs at least ", least, " dimensions, tasks first");
}

inline void check_tensor(const char* op, const char* name, const Tensor& x, ScalarType dtype,
                         const Sizes& sizes) {
  STD_TORCH_CHECK(x.is_cpu(), op, ": ", name, " is not on the CPU, as the other tensors are");
  STD_TORCH_CHECK(x.scalar_type() == dtype, op, ": ", name, " has dtype ", toString(x.scalar_type()),
                  ", not ", toString(dtype));
  STD_TORCH_CHECK(sizes_of(x) == sizes, op, ": ", name, " has shape ", shape_text(sizes_of(x)), ", not ",
                  shape_text(sizes));
}

inline void check_optional(const char* op, const char* name, const OptionalTensor& x, ScalarType dtype,
                           const Sizes& sizes) {
  if (x) check_tensor(op, name, *x, dtype, sizes);
}

// ---- outputs ----

inline int32_t shim_dtype(const Tensor& x) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(x.get(), &dtype));
  return dtype;
}

inline Tensor empty_in_order(const Sizes& sizes, const Sizes& order, int32_t dtype) {
  Sizes strides(sizes.size(), 1);
  int64_t next = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    strides[*d] = next;
    next *= std::max<int64_t>(sizes[*d], 1);
  }
  if (!sizes.empty()) strides[0] = order.size() + 1 == sizes.size() ? next : strides[0];
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype,
      aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

inline Tensor empty_dense(const Sizes& sizes, int32_t dtype) {
  return empty_in_order(sizes, row_major(static_cast<int64_t>(sizes.size())), dtype);
}

// An output that was not asked for.
inline Tensor nothing(int32_t dtype) { return empty_dense({0}, dtype); }

// ---- inputs ----

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

// x where its slices are dense in that order, else a copy (of one task, where all tasks share it).
inline Tensor in_order(const Tensor& x, const Sizes& order) {
  if (dense_within_task(x, order)) return x;
  const Tensor source = x.size(0) > 1 && x.stride(0) == 0 ? stable::narrow(
      const_cast<Tensor&>(x), 0, 0, 1) : x;
  Tensor copy = empty_in_order(sizes_of(source), order, shim_dtype(x));
  stable::copy_(copy, source);
  return copy;
}

// One input as the kernels see it; a missing optional one has no data.
template <class S>
struct Input {
  Tensor tensor;  // keeps a copy alive
  const S* data = nullptr;
  int64_t stride = 0;

  Input(const Tensor& x, const Sizes& order)
      : tensor(in_order(x, order)),
        data(static_cast<const S*>(tensor.const_data_ptr())),
        stride(task_stride(tensor)) {}
  Input(const OptionalTensor& x, const Sizes& order) {
    if (x) *this = Input(*x, order);
  }

  const S* task(int64_t t) const { return data ? data + t * stride : nullptr; }
};

template <class S>
S* output(const Tensor& x) {
  return static_cast<S*>(x.mutable_data_ptr());
}

// Calls f(S{}) with the element type of a checked floating tensor.
template <class F>
auto with_scalar(const Tensor& x, F&& f) {
  return x.scalar_type() == ScalarType::Double ? f(double{}) : f(float{});
}

}  // namespace fastmaml
