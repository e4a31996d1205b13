// Images that lie channels-last, in PyTorch's usual layout.
#include "gemm/kernels.h"
#include "views.h"
#include "work.h"

namespace fastmaml {
namespace {

Tensor channels_first(const Tensor& x) {
  const char* op = "channels_first";
  check_rank(op, "x", x, 4);
  check_floating(op, "x", x);
  const int64_t images = x.size(0), channels = x.size(1), pixels = x.size(2) * x.size(3);
  Tensor y = empty_dense({images, channels, x.size(2), x.size(3)}, shim_dtype(x));
  if (images == 0 || channels == 0 || pixels == 0) return y;
  with_scalar(x, [&](auto scalar) {
    using S = decltype(scalar);
    const Input<S> from(x, {2, 3, 1});
    S* to = output<S>(y);
    parallel(images, channels * pixels, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        kernels<S>().transpose(to + i * channels * pixels, pixels, from.task(i), channels, pixels, channels);
    });
  });
  return y;
}

}  // namespace
}  // namespace fastmaml

// No op of ours, but a copy: PyTorch's goes element by element.
STABLE_TORCH_LIBRARY_FRAGMENT(fastmaml, m) { m.def("channels_first(Tensor x) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(fastmaml, CPU, m) {
  m.impl("channels_first", TORCH_BOX(&fastmaml::channels_first));
}
