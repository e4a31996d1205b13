// Which instruction set the kernels use: the best this processor has, or what FASTMAML_ISA asks for.
#include "kernels.h"

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <cstring>

#define FASTMAML_DECLARE(isa)         \
  namespace fastmaml::isa {           \
  extern const Kernels<float> kFloat; \
  extern const Kernels<double> kDouble; \
  }
FASTMAML_DECLARE(base)
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FASTMAML_X86_LEVELS
FASTMAML_DECLARE(v3)
FASTMAML_DECLARE(v4)
#endif

namespace fastmaml {
namespace {

// 2: v4, 1: v3, 0: base. FASTMAML_ISA lowers it (for tests); it cannot raise it.
int level() {
  int best = 0;
#ifdef FASTMAML_X86_LEVELS
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = 1;
  if (best == 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    best = 2;
#endif
  const char* asked = std::getenv("FASTMAML_ISA");
  if (asked == nullptr || *asked == '\0') return best;
  const char* names[] = {"base", "v3", "v4"};
  for (int i = 0; i <= best; ++i)
    if (std::strcmp(asked, names[i]) == 0) return i;
  STD_TORCH_CHECK(false, "FASTMAML_ISA=", asked, ": this machine has base to ", names[best]);
}

template <class S>
const Kernels<S>& pick() {
#ifdef FASTMAML_X86_LEVELS
  const int best = level();
  if constexpr (sizeof(S) == 4) return best == 2 ? v4::kFloat : best == 1 ? v3::kFloat : base::kFloat;
  else return best == 2 ? v4::kDouble : best == 1 ? v3::kDouble : base::kDouble;
#else
  level();
  if constexpr (sizeof(S) == 4) return base::kFloat;
  else return base::kDouble;
#endif
}

}  // namespace

template <class S>
const Kernels<S>& kernels() {
  static const Kernels<S>& chosen = pick<S>();
  return chosen;
}
template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

}  // namespace fastmaml
