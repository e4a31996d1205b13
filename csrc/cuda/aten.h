// The few PyTorch operators that the matrix-bound families are made of, through the stable ABI.
#pragma once

#include "launch.h"

namespace fastmaml::cuda {

// a [tasks, n, k] times b [tasks, k, m] into out, by cuBLAS.
inline void product(const Tensor& a, const Tensor& b, const Tensor& out) {
  std::array<StableIValue, 3> stack{stable::detail::from(a), stable::detail::from(b), stable::detail::from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::bmm", "out", stack.data(), TORCH_ABI_VERSION));
  (void)stable::detail::to<Tensor>(stack[0]);  // the result is a handle that somebody must free
}

inline Tensor expand(const Tensor& x, const Sizes& sizes) {
  std::array<StableIValue, 3> stack{stable::detail::from(x), stable::detail::from(sizes), stable::detail::from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::expand", "", stack.data(), TORCH_ABI_VERSION));
  return stable::detail::to<Tensor>(stack[0]);
}

using stable::transpose;

}  // namespace fastmaml::cuda
