// What the CPU kernels share: checks, allocation in a chosen memory order, and inputs as (pointer, task
// stride).
//
// Elementwise ops keep the memory order their input came in (convolution weights are not row-major),
// the others ask for theirs.
#pragma once

#include <tuple>
#include <type_traits>
#include <utility>

#include "../tensors.h"
#include "allocations.h"

namespace fastmaml {

// ---- checks: each names the op and the argument ----

inline void check_floating(const char* op, const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu(), op, ": ", name, " is not on the CPU, as the other tensors are");
  STD_TORCH_CHECK(
      x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, op, ": ", name,
      " has dtype ", toString(x.scalar_type()), "; on the CPU it must be Float or Double");
}

inline void check_least_rank(const char* op, const char* name, const Tensor& x, int64_t least) {
  STD_TORCH_CHECK(x.dim() >= least, op, ": ", name, " has shape ", shape_text(sizes_of(x)),
                  "; it needs at least ", least, " dimensions, tasks first");
}

inline void check_tensor(const char* op, const char* name, const Tensor& x, ScalarType dtype,
                         const Sizes& sizes) {
  STD_TORCH_CHECK(x.is_cpu(), op, ": ", name, " is not on the CPU, as the other tensors are");
  check_dtype_and_sizes(op, name, x, dtype, sizes);
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
  const Sizes strides = strides_in_order(sizes, order);
  if (allocations && allocations->places)
    if (const AtenTensorHandle handle = placed(*allocations, sizes, strides, dtype)) return Tensor(handle);
  Tensor made = empty_strided(sizes, strides, dtype, aoti_torch_device_type_cpu(), 0);
  if (allocations && !allocations->places) allocations->seen.push_back(made.const_data_ptr());
  return made;
}

inline Tensor empty_dense(const Sizes& sizes, int32_t dtype) {
  return empty_in_order(sizes, row_major(static_cast<int64_t>(sizes.size())), dtype);
}

// An output that was not asked for.
inline Tensor nothing(int32_t dtype) { return empty_dense({0}, dtype); }

// ---- inputs ----

inline Tensor in_order(const Tensor& x, const Sizes& order) {
  return in_order(x, order, [&](const Sizes& sizes, const Sizes& dense) {
    return empty_in_order(sizes, dense, shim_dtype(x));
  });
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
