// Whether there is an infinity or a NaN among the numbers of some tensors, in one pass and one call.
#include <algorithm>
#include <atomic>

#include "views.h"
#include "work.h"

namespace fastmaml {
namespace {

constexpr int64_t kBlock = 16384;

// An exponent of all ones, in n numbers of that many bits.
template <class Bits, Bits kExponent>
bool finite(const Bits* x, int64_t n) {
  Bits any = 0;
  for (int64_t i = 0; i < n; ++i) any |= static_cast<Bits>(-static_cast<Bits>((x[i] & kExponent) == kExponent));
  return any == 0;
}

// How many elements lie between the first one and the last, both included.
int64_t reach(const Tensor& x) {
  int64_t last = 0;
  for (int64_t d = 0; d < x.dim(); ++d) last += (x.size(d) - 1) * x.stride(d);
  return last + 1;
}

bool of_tensor(const Tensor& x) {
  const int64_t n = x.numel() == 0 ? 0 : reach(x);
  // What lies between the elements is looked at, too: memory that is the tensor's storage.
  if (!x.is_cpu() || n > 2 * x.numel()) return false;
  const void* data = x.const_data_ptr();
  const auto part = [&](int64_t from, int64_t count) {
    if (x.scalar_type() == ScalarType::Float)
      return finite<uint32_t, 0x7f800000u>(static_cast<const uint32_t*>(data) + from, count);
    return finite<uint64_t, 0x7ff0000000000000ull>(static_cast<const uint64_t*>(data) + from, count);
  };
  if (x.scalar_type() != ScalarType::Float && x.scalar_type() != ScalarType::Double) return false;
  std::atomic<bool> all{true};
  parallel(divide_up(n, kBlock), kBlock, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end && all; ++b)
      if (!part(b * kBlock, std::min(kBlock, n - b * kBlock))) all = false;
  });
  return all;
}

bool all_finite(std::vector<Tensor> tensors) {
  return std::all_of(tensors.begin(), tensors.end(), of_tensor);
}

}  // namespace
}  // namespace fastmaml

// No op of ours, but a question. False where it cannot tell: of other dtypes, devices, and of tensors
// that are few of the elements between their first and their last one.
STABLE_TORCH_LIBRARY_FRAGMENT(fastmaml, m) { m.def("all_finite(Tensor[] tensors) -> bool"); }

STABLE_TORCH_LIBRARY_IMPL(fastmaml, CompositeExplicitAutograd, m) {
  m.impl("all_finite", TORCH_BOX(&fastmaml::all_finite));
}
