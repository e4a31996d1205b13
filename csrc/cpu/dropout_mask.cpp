// Dropout masks of all tasks.
#include "kernel_table.h"
#include "dropout_bits.h"
#include "views.h"
#include "work.h"

namespace fastmaml {
namespace {

Tensor dropout_mask(const Tensor& key, int64_t size, double p, ScalarType dtype) {
  const char* op = "dropout_mask";
  STD_TORCH_CHECK(key.dim() == 1, op, ": key has shape ", shape_text(sizes_of(key)), ", not [tasks]");
  check_tensor(op, "key", key, ScalarType::Long, sizes_of(key));
  STD_TORCH_CHECK(size >= 0, op, ": size is ", size, "; it must not be negative");
  STD_TORCH_CHECK(p >= 0 && p <= 1, op, ": p is ", p, "; it must be a probability");
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op, ": dtype is ",
                  toString(dtype), "; on the CPU it must be Float or Double");
  const bool wide = dtype == ScalarType::Double;
  const int32_t code = wide ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
  Tensor mask = empty_dense({key.size(0), size}, code);
  const auto* keys = static_cast<const int64_t*>(key.const_data_ptr());
  const int64_t step = task_stride(key);
  with_scalar(mask, [&](auto zero) {
    using S = decltype(zero);
    const dropout::Rule<S> rule(p);
    parallel_elements(key.size(0), size, [&](int64_t t, int64_t begin, int64_t end) {
      const uint32_t seed = dropout::mixed(static_cast<uint64_t>(keys[t * step]));
      dropout::fill(output<S>(mask) + t * size + begin, rule, seed, begin, end - begin);
    });
  });
  return mask;
}

}  // namespace
}  // namespace fastmaml

STABLE_TORCH_LIBRARY_IMPL(fastmaml, CPU, m) {
  FM_CPU_KERNEL(m, dropout_mask);
}
