// What every CUDA binding shares: checks that name the argument, outputs, and the current stream.
//
// A memory order lists the dimensions 1.. of a [tasks, ...] tensor, outermost first. Under
// CUDA_ON_HOST the same bindings serve CPU tensors and the kernels run emulated: for the tests.
#pragma once

#define USE_CUDA  // un-hides the stable ABI's CUDA part; no CUDA header is needed
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <array>
#include <string>
#include <tuple>

#include "../tensors.h"
#include "kernels.h"

#ifdef CUDA_ON_HOST
#define FM_CUDA_OPS(m) STABLE_TORCH_LIBRARY_IMPL(fastmaml, CPU, m)
#else
#include <dlfcn.h>
#define FM_CUDA_OPS(m) STABLE_TORCH_LIBRARY_IMPL(fastmaml, CUDA, m)
#endif

namespace fastmaml::cuda {

using Optional = std::optional<Tensor>;

inline Sizes sizes_of(const Tensor& x) { return Sizes(x.sizes().begin(), x.sizes().end()); }

inline std::string shape_text(const Sizes& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

inline const Sizes kImageOrder = {1, 3, 4, 2};  // [tasks, images, channels, height, width]

// The memory order of x where its slices are dense in some order, else row-major.
inline Sizes dense_order(const Tensor& x) {
  const Sizes order = row_major(x.dim());
  if (dense_within_task(x, order)) return order;
  Sizes sorted = order;
  std::stable_sort(sorted.begin(), sorted.end(), [&](int64_t a, int64_t b) { return x.stride(a) > x.stride(b); });
  return dense_within_task(x, sorted) ? sorted : order;
}

// One call of an op: it checks, allocates on the device and keeps copies alive until it ends.
class Call {
 public:
  // x gives the device and, unless it is said otherwise, the dtype of everything.
  Call(const char* op, const char* name, const Tensor& x)
      : op_(op), device_(device_of(op, name, x)), type_(x.scalar_type())
#ifndef CUDA_ON_HOST
        , guard_(device_)
#endif
  {
    STD_TORCH_CHECK(type_ == ScalarType::Float || type_ == ScalarType::Double || type_ == ScalarType::BFloat16,
                    op, ": ", name, " has dtype ", toString(type_), "; it must be Float, Double or BFloat16");
  }

  Dtype dtype() const {
    return type_ == ScalarType::Double ? kFloat64 : type_ == ScalarType::Float ? kFloat32 : kBfloat16;
  }
  ScalarType type() const { return type_; }
  ScalarType wide_type() const { return type_ == ScalarType::Double ? type_ : ScalarType::Float; }

  void rank(const char* name, const Tensor& x, int64_t rank) const {
    STD_TORCH_CHECK(x.dim() == rank, op_, ": ", name, " has shape ", shape_text(sizes_of(x)), "; it must have ", rank,
                    " dimensions, tasks first");
  }

  void check(const char* name, const Tensor& x, ScalarType type, const Sizes& sizes) const {
    STD_TORCH_CHECK(on_device(x) && x.get_device_index() == device_, op_, ": ", name,
                    " is not on the device of the other tensors");
    STD_TORCH_CHECK(x.scalar_type() == type, op_, ": ", name, " has dtype ", toString(x.scalar_type()), ", not ",
                    toString(type));
    STD_TORCH_CHECK(sizes_of(x) == sizes, op_, ": ", name, " has shape ", shape_text(sizes_of(x)), ", not ",
                    shape_text(sizes));
  }

  Input input(const char* name, const Tensor& x, const Sizes& sizes, const Sizes& order) {
    return input(name, x, type_, sizes, order);
  }
  Input input(const char* name, const Optional& x, const Sizes& sizes, const Sizes& order) {
    return x ? input(name, *x, type_, sizes, order) : Input{};
  }
  Input input(const char* name, const Tensor& x, ScalarType type, const Sizes& sizes, const Sizes& order) {
    check(name, x, type, sizes);
    kept_.push_back(in_order(x, order));
    return {kept_.back().const_data_ptr(), task_stride(kept_.back())};
  }

  // x where its slices are dense in that order, else a copy (of one task, where all share it).
  Tensor in_order(const Tensor& x, const Sizes& order) const {
    if (dense_within_task(x, order)) return x;
    Tensor source = x;
    if (x.size(0) > 1 && x.stride(0) == 0) source = stable::narrow(source, 0, 0, 1);
    Tensor copy = empty(sizes_of(source), order, x.scalar_type());
    stable::copy_(copy, source);
    return copy;
  }

  Tensor empty(const Sizes& sizes, const Sizes& order, ScalarType type) const {
    Sizes strides(sizes.size(), 1);
    int64_t next = 1;
    for (auto d = order.rbegin(); d != order.rend(); ++d) {
      strides[*d] = next;
      next *= std::max<int64_t>(sizes[*d], 1);
    }
    if (!sizes.empty() && order.size() + 1 == sizes.size()) strides[0] = next;
    const int32_t code = stable::detail::to<int32_t>(stable::detail::from(type));
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(), code,
                                                    device_type(), device_, &handle));
    return Tensor(handle);
  }
  Tensor empty(const Sizes& sizes, const Sizes& order) const { return empty(sizes, order, type_); }
  Tensor empty(const Sizes& sizes) const { return empty(sizes, row_major(int64_t(sizes.size())), type_); }

  // An output that may not have been asked for: then it has no elements.
  Tensor wanted(bool yes, const Sizes& sizes, const Sizes& order) const { return yes ? empty(sizes, order) : empty({0}); }

  // Scratch of the accumulating type.
  void* workspace(int64_t elements) {
    if (elements == 0) return nullptr;
    kept_.push_back(empty({elements}, {}, wide_type()));
    return kept_.back().mutable_data_ptr();
  }

  void* stream() const {
#ifdef CUDA_ON_HOST
    return nullptr;
#else
    // Looked up at run time: libtorch_cuda is absent from a PyTorch for the CPU, which loads us too.
    using Get = AOTITorchError (*)(int32_t, void**);
    static const Get get = [] {
      void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
      return library ? reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
    }();
    STD_TORCH_CHECK(get, op_, ": this PyTorch has no CUDA");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(get(device_, &stream));
    return stream;
#endif
  }

  void done(int error) const {
    STD_TORCH_CHECK(error == 0, op_, ": the CUDA kernel was not launched: ", error_text(error));
  }

 private:
  static int32_t device_of(const char* op, const char* name, const Tensor& x) {
    STD_TORCH_CHECK(on_device(x), op, ": ", name, " is not on a CUDA device");  // before a guard is set
    return x.get_device_index();
  }
  static bool on_device(const Tensor& x) {
#ifdef CUDA_ON_HOST
    return x.is_cpu();
#else
    return x.is_cuda();
#endif
  }
  static int32_t device_type() {
#ifdef CUDA_ON_HOST
    return aoti_torch_device_type_cpu();
#else
    return aoti_torch_device_type_cuda();
#endif
  }

  const char* op_;
  int32_t device_;
  ScalarType type_;
  std::vector<Tensor> kept_;
#ifndef CUDA_ON_HOST
  stable::accelerator::DeviceGuard guard_;
#endif
};

inline void* pointer(const Tensor& x) { return x.numel() ? x.mutable_data_ptr() : nullptr; }

}  // namespace fastmaml::cuda
