// Mean squared error of each task and its derivatives with respect to x.
#include "kernel_table.h"
#include "simd.h"
#include "views.h"
#include "work.h"

namespace fastmaml {
namespace {

// Sums run over chunks in S and over chunks in double: as accurate as summing in double, at the
// speed of S.
constexpr int64_t kChunk = 128;
constexpr int64_t kBlock = 16384;

// Sum of a (x - y), a being x - y itself where it is not given.
template <class S>
FM_CLONES double weighted_difference(const S* a, const S* x, const S* y, int64_t n) {
  double total = 0;
  for (int64_t from = 0; from < n; from += kChunk) {
    const int64_t to = std::min(n, from + kChunk);
    S sum = 0;
    if (a) {
#pragma omp simd reduction(+ : sum)
      for (int64_t i = from; i < to; ++i) sum += a[i] * (x[i] - y[i]);
    } else {
#pragma omp simd reduction(+ : sum)
      for (int64_t i = from; i < to; ++i) sum += (x[i] - y[i]) * (x[i] - y[i]);
    }
    total += static_cast<double>(sum);
  }
  return total;
}

template <class S>
FM_CLONES void scaled_difference(S scale, const S* x, const S* y, S* out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = scale * (x[i] - y[i]);
}

template <class S>
FM_CLONES void scaled(S scale, const S* x, S* out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = scale * x[i];
}

void check_pair(const char* op, const Tensor& x, const Tensor& target) {
  check_floating(op, "x", x);
  check_least_rank(op, "x", x, 1);
  check_tensor(op, "target", target, x.scalar_type(), sizes_of(x));
}

// [T]: factor / n times the sum over each task of a (x - target).
Tensor reduce(const OptionalTensor& a, const Tensor& x, const Tensor& target, double factor) {
  const int64_t tasks = x.size(0), n = elements_per_task(x), blocks = divide_up(n, kBlock);
  Tensor losses = empty_dense({tasks}, shim_dtype(x));
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    const Sizes order = dense_order(x);
    const Input<S> as(a, order), xs(x, order), ys(target, order);
    std::vector<double> part(tasks * blocks);
    parallel(tasks * blocks, std::min(n, kBlock), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t t = i / blocks, from = i % blocks * kBlock;
        part[i] = weighted_difference<S>(a ? as.task(t) + from : nullptr, xs.task(t) + from,
                                         ys.task(t) + from, std::min(kBlock, n - from));
      }
    });
    S* out = output<S>(losses);
    for (int64_t t = 0; t < tasks; ++t) {
      double sum = 0;
      for (int64_t b = 0; b < blocks; ++b) sum += part[t * blocks + b];
      out[t] = static_cast<S>(factor * sum / static_cast<double>(n));
    }
  });
  return losses;
}

// Like x: 2/n g[t] times (x - target), or times h where that is given.
Tensor spread(const Tensor& g, const OptionalTensor& h, const Tensor& x, const Tensor& target) {
  const int64_t tasks = x.size(0), n = elements_per_task(x);
  const Sizes order = dense_order(x);
  Tensor y = empty_in_order(sizes_of(x), order, shim_dtype(x));
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    const Input<S> gs(g, {}), hs(h, order), xs(x, order), ys(target, order);
    S* out = output<S>(y);
    parallel_elements(tasks, n, [&](int64_t t, int64_t from, int64_t to) {
      const S scale = *gs.task(t) * static_cast<S>(2.0 / static_cast<double>(n));
      S* row = out + t * n + from;
      if (h) scaled<S>(scale, hs.task(t) + from, row, to - from);
      else scaled_difference<S>(scale, xs.task(t) + from, ys.task(t) + from, row, to - from);
    });
  });
  return y;
}

Tensor task_mse(const Tensor& x, const Tensor& target) {
  check_pair("task_mse", x, target);
  return reduce(std::nullopt, x, target, 1.0);
}

Tensor task_mse_bwd(const Tensor& g, const Tensor& x, const Tensor& target) {
  check_pair("task_mse_bwd", x, target);
  check_tensor("task_mse_bwd", "g", g, x.scalar_type(), {x.size(0)});
  return spread(g, std::nullopt, x, target);
}

std::tuple<Tensor, Tensor> task_mse_bwd2(const Tensor& h, const Tensor& g, const Tensor& x,
                                         const Tensor& target, int64_t need) {
  const char* op = "task_mse_bwd2";
  check_pair(op, x, target);
  check_tensor(op, "h", h, x.scalar_type(), sizes_of(x));
  check_tensor(op, "g", g, x.scalar_type(), {x.size(0)});
  const int32_t dtype = shim_dtype(x);
  return {need & 1 ? reduce(h, x, target, 2.0) : nothing(dtype),
          need & 2 ? spread(g, h, x, target) : nothing(dtype)};
}

}  // namespace
}  // namespace fastmaml

STABLE_TORCH_LIBRARY_IMPL(fastmaml, CPU, m) {
  FM_CPU_KERNEL(m, task_mse);
  FM_CPU_KERNEL(m, task_mse_bwd);
  FM_CPU_KERNEL(m, task_mse_bwd2);
}
