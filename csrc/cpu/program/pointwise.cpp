#include "pointwise.h"

#include "../../math/elementary.h"
#include "../simd.h"
#include "../work.h"

namespace fastmaml::program {
namespace {

using Kind = Pointwise::Kind;

// As PyTorch computes them, to the bit.
template <Kind K, class S>
FM_INLINE S apply(S a, S b) {
  if constexpr (K == Kind::add) return a + b;
  if constexpr (K == Kind::sub) return a - b;
  if constexpr (K == Kind::mul) return a * b;
  if constexpr (K == Kind::div) return a / b;
  if constexpr (K == Kind::neg) return -a;
  if constexpr (K == Kind::square) return a * a;
  if constexpr (K == Kind::cube) return a * a * a;
}

// One run of the innermost loop. The usual steps are constants, so that it becomes vectors.
template <Kind K, class S>
FM_CLONES void row(const S* a, const S* b, S* out, int64_t n, int64_t a_step, int64_t b_step, int64_t out_step) {
  if (a_step == 1 && b_step == 1 && out_step == 1) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = apply<K>(a[i], b[i]);
  } else if (a_step == 1 && b_step == 0 && out_step == 1) {
    const S same = *b;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = apply<K>(a[i], same);
  } else if (a_step == 0 && b_step == 1 && out_step == 1) {
    const S same = *a;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = apply<K>(same, b[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i * out_step] = apply<K>(a[i * a_step], b[i * b_step]);
  }
}

template <Kind K, class S>
void loops(const Pointwise& p, const S* a, const S* b, S* out) {
  const auto rank = static_cast<int64_t>(p.size.size());
  const int64_t inner = rank ? p.size[rank - 1] : 1;
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < rank; ++d) rows *= p.size[d];
  const auto step = [&](const std::vector<int64_t>& of) { return rank ? of[rank - 1] : 0; };
  const int64_t a_step = step(p.a_step), b_step = b ? step(p.b_step) : 0, out_step = step(p.out_step);
  const S number = static_cast<S>(p.number);
  // A single long row is cut, so that threads can share it.
  constexpr int64_t kBlock = 16384;
  const int64_t pieces = divide_up(std::max<int64_t>(inner, 1), kBlock);
  parallel(rows * pieces, std::min(inner, kBlock), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      int64_t rest = item / pieces, from_a = 0, from_b = 0, from_out = 0;
      for (int64_t d = rank - 2; d >= 0; --d) {
        const int64_t i = rest % p.size[d];
        rest /= p.size[d];
        from_a += i * p.a_step[d], from_out += i * p.out_step[d];
        if (b) from_b += i * p.b_step[d];
      }
      const int64_t first = item % pieces * kBlock, n = std::min(inner - first, kBlock);
      row<K>(a + from_a + first * a_step, b ? b + from_b + first * b_step : &number,
             out + from_out + first * out_step, n, a_step, b_step, out_step);
    }
  });
}

}  // namespace

template <class S>
void run_pointwise(const Pointwise& p, const S* a, const S* b, S* out) {
  switch (p.kind) {
    case Kind::add: return loops<Kind::add>(p, a, b, out);
    case Kind::sub: return loops<Kind::sub>(p, a, b, out);
    case Kind::mul: return loops<Kind::mul>(p, a, b, out);
    case Kind::div: return loops<Kind::div>(p, a, b, out);
    case Kind::neg: return loops<Kind::neg>(p, a, b, out);
    case Kind::square: return loops<Kind::square>(p, a, b, out);
    case Kind::cube: return loops<Kind::cube>(p, a, b, out);
  }
}

template void run_pointwise<float>(const Pointwise&, const float*, const float*, float*);
template void run_pointwise<double>(const Pointwise&, const double*, const double*, double*);

}  // namespace fastmaml::program
