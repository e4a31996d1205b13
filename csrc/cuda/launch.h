// What every CUDA binding shares: checks that name the argument, outputs, and the current stream.
//
// Under CUDA_ON_HOST the same bindings serve CPU tensors and the kernels run emulated: for the tests.
#pragma once

#define USE_CUDA  // un-hides the stable ABI's CUDA part; no CUDA header is needed
#include <torch/csrc/stable/accelerator.h>

#include <array>
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

inline const Sizes kImageOrder = {1, 3, 4, 2};  // [tasks, images, channels, height, width]

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

  void rank(const char* name, const Tensor& x, int64_t rank) const { check_rank(op_, name, x, rank); }

  void check(const char* name, const Tensor& x, ScalarType type, const Sizes& sizes) const {
    STD_TORCH_CHECK(on_device(x) && x.get_device_index() == device_, op_, ": ", name,
                    " is not on the device of the other tensors");
    check_dtype_and_sizes(op_, name, x, type, sizes);
  }

  Input input(const char* name, const Tensor& x, const Sizes& sizes, const Sizes& order) {
    return input(name, x, type_, sizes, order);
  }
  Input input(const char* name, const OptionalTensor& x, const Sizes& sizes, const Sizes& order) {
    return x ? input(name, *x, type_, sizes, order) : Input{};
  }
  Input input(const char* name, const Tensor& x, ScalarType type, const Sizes& sizes, const Sizes& order) {
    check(name, x, type, sizes);
    kept_.push_back(in_order(x, order));
    return {kept_.back().const_data_ptr(), task_stride(kept_.back())};
  }

  // x where its slices are dense in that order, else a copy.
  Tensor in_order(const Tensor& x, const Sizes& order) const {
    return fastmaml::in_order(x, order, [&](const Sizes& sizes, const Sizes& dense) {
      return empty(sizes, dense, x.scalar_type());
    });
  }

  Tensor empty(const Sizes& sizes, const Sizes& order, ScalarType type) const {
    const int32_t code = stable::detail::to<int32_t>(stable::detail::from(type));
    return empty_in_order(sizes, order, code, device_type(), device_);
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
