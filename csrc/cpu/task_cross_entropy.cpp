// Cross entropy of each task's logits against integer labels, and its derivatives.
//
// With p = softmax(x) a row's loss is lse - x[label], its gradient p - onehot, and its Hessian
// diag(p) - p p^T: everything follows from x and the saved log-sum-exp.
#include <cmath>
#include <limits>

#include "kernel_table.h"
#include "../math/elementary.h"

#include "simd.h"
#include "views.h"
#include "work.h"

namespace fastmaml {
namespace {

// shift and log of sum(exp(x - shift)): kept apart, since their sum, rounded, would spoil a small loss.
template <class S>
struct LogSum {
  S shift, log;
};

template <class S>
FM_CLONES LogSum<S> log_sum_exp(const S* x, int64_t n) {
  S top = -std::numeric_limits<S>::infinity();
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < n; ++i) top = x[i] > top ? x[i] : top;
  const S shift = std::isfinite(top) ? top : S(0);  // inf - inf is no way to find inf
  S sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += math::vexp(x[i] - shift);
  return {shift, std::log(sum)};
}

// p = scale softmax(x). Dividing by the sum takes out the rounding of lse.
template <class S>
FM_INLINE void softmax(const S* x, S lse, S scale, S* p, int64_t n) {
  S sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    p[i] = math::vexp(x[i] - lse);
    sum += p[i];
  }
  scale /= sum;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) p[i] *= scale;
}

// scale (softmax(x) - onehot(label))
template <class S>
FM_CLONES void gradient(const S* x, S lse, S scale, int64_t label, S* out, int64_t n) {
  softmax(x, lse, scale, out, n);
  out[label] -= scale;
}

// out = scale p (h - mean of h under p); returns that mean.
template <class S>
FM_CLONES S hessian_product(const S* h, const S* x, S lse, S scale, S* out, int64_t n) {
  softmax(x, lse, S(1), out, n);
  S mean = 0;
#pragma omp simd reduction(+ : mean)
  for (int64_t i = 0; i < n; ++i) mean += h[i] * out[i];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] *= scale * (h[i] - mean);
  return mean;
}

// Labels checked, and how many of each task count.
struct Labels {
  Tensor tensor;
  const int64_t* data;
  int64_t stride, ignore;
  std::vector<double> counts;

  Labels(const char* op, const Tensor& target, int64_t ignore, const Sizes& sizes)
      : tensor(task_contiguous(target)),
        data(static_cast<const int64_t*>(tensor.const_data_ptr())),
        stride(task_stride(tensor)),
        ignore(ignore),
        counts(sizes[0]) {
    for (int64_t t = 0; t < sizes[0]; ++t) {
      for (int64_t n = 0; n < sizes[1]; ++n) {
        const int64_t label = at(t, n);
        if (label == ignore) continue;
        STD_TORCH_CHECK(label >= 0 && label < sizes[2], op, ": target[", t, ", ", n, "] is ", label,
                        ", which is no class of x: it has ", sizes[2]);
        counts[t] += 1;
      }
    }
  }
  int64_t at(int64_t t, int64_t n) const { return data[t * stride + n]; }
};

double row_sum(const std::vector<double>& rows, int64_t t, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += rows[t * n + i];
  return sum;
}

Sizes checked(const char* op, const Tensor& x, const Tensor& target) {
  check_floating(op, "x", x);
  const Sizes sizes = sizes_of(x);
  STD_TORCH_CHECK(sizes.size() == 3, op, ": x has shape ", shape_text(sizes), ", not [tasks, N, classes]");
  check_tensor(op, "target", target, ScalarType::Long, {sizes[0], sizes[1]});
  return sizes;
}

// f(t, n, row) for every row, row = t * N + n.
template <class F>
void for_rows(const Sizes& sizes, const F& f) {
  constexpr int64_t kExpCost = 8;  // an exponential is worth this many plain elements
  parallel(sizes[0] * sizes[1], kExpCost * sizes[2], [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) f(row / sizes[1], row % sizes[1], row);
  });
}

std::tuple<Tensor, Tensor> task_cross_entropy(const Tensor& x, const Tensor& target, int64_t ignore) {
  const Sizes sizes = checked("task_cross_entropy", x, target);
  const Labels labels("task_cross_entropy", target, ignore, sizes);
  Tensor losses = empty_dense({sizes[0]}, shim_dtype(x));
  Tensor lse = empty_dense({sizes[0], sizes[1]}, shim_dtype(x));
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    const int64_t rows = sizes[1], classes = sizes[2];
    const Input<S> xs(x, {1, 2});
    S *loss = output<S>(losses), *lses = output<S>(lse);
    std::vector<double> part(sizes[0] * rows);  // each row's loss
    for_rows(sizes, [&](int64_t t, int64_t n, int64_t row) {
      const S* logits = xs.task(t) + n * classes;
      const LogSum<S> norm = log_sum_exp<S>(logits, classes);
      lses[row] = norm.shift + norm.log;
      const int64_t label = labels.at(t, n);
      if (label != ignore) part[row] = static_cast<double>(norm.shift) - logits[label] + norm.log;
    });
    for (int64_t t = 0; t < sizes[0]; ++t) {
      loss[t] = static_cast<S>(row_sum(part, t, rows) / labels.counts[t]);
    }
  });
  return {losses, lse};
}

Tensor task_cross_entropy_bwd(const Tensor& g, const Tensor& x, const Tensor& target, const Tensor& lse,
                              int64_t ignore) {
  const char* op = "task_cross_entropy_bwd";
  const Sizes sizes = checked(op, x, target);
  check_tensor(op, "g", g, x.scalar_type(), {sizes[0]});
  check_tensor(op, "lse", lse, x.scalar_type(), {sizes[0], sizes[1]});
  const Labels labels(op, target, ignore, sizes);
  Tensor gx = empty_dense(sizes, shim_dtype(x));
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    const int64_t classes = sizes[2];
    const Input<S> gs(g, {}), xs(x, {1, 2}), lses(lse, {1});
    S* out = output<S>(gx);
    for_rows(sizes, [&](int64_t t, int64_t n, int64_t row) {
      const int64_t label = labels.at(t, n);
      S* to = out + row * classes;
      if (label == ignore) return void(std::fill_n(to, classes, S(0)));
      const S scale = static_cast<S>(*gs.task(t) / labels.counts[t]);
      gradient<S>(xs.task(t) + n * classes, lses.task(t)[n], scale, label, to, classes);
    });
  });
  return gx;
}

std::tuple<Tensor, Tensor> task_cross_entropy_bwd2(const Tensor& h, const Tensor& g, const Tensor& x,
                                                   const Tensor& target, const Tensor& lse, int64_t ignore,
                                                   int64_t need) {
  const char* op = "task_cross_entropy_bwd2";
  const Sizes sizes = checked(op, x, target);
  check_tensor(op, "h", h, x.scalar_type(), sizes);
  check_tensor(op, "g", g, x.scalar_type(), {sizes[0]});
  check_tensor(op, "lse", lse, x.scalar_type(), {sizes[0], sizes[1]});
  const Labels labels(op, target, ignore, sizes);
  const int32_t dtype = shim_dtype(x);
  Tensor gg = need & 1 ? empty_dense({sizes[0]}, dtype) : nothing(dtype);
  Tensor gx = empty_dense(sizes, dtype);  // the softmax is worked out in it in any case
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    const int64_t rows = sizes[1], classes = sizes[2];
    const Input<S> hs(h, {1, 2}), gs(g, {}), xs(x, {1, 2}), lses(lse, {1});
    S *slope = output<S>(gg), *out = output<S>(gx);
    std::vector<double> part(sizes[0] * rows);  // each row's directional derivative along h
    for_rows(sizes, [&](int64_t t, int64_t n, int64_t row) {
      const int64_t label = labels.at(t, n);
      if (label == ignore) return void(std::fill_n(out + row * classes, classes, S(0)));
      const S *hr = hs.task(t) + n * classes, *xr = xs.task(t) + n * classes, norm = lses.task(t)[n];
      const S scale = static_cast<S>(*gs.task(t) / labels.counts[t]);
      const S mean = hessian_product<S>(hr, xr, norm, scale, out + row * classes, classes);
      part[row] = static_cast<double>(mean) - hr[label];
    });
    for (int64_t t = 0; (need & 1) && t < sizes[0]; ++t) {
      slope[t] = static_cast<S>(row_sum(part, t, rows) / std::max(labels.counts[t], 1.0));
    }
  });
  return {gg, need & 2 ? gx : nothing(dtype)};
}

}  // namespace
}  // namespace fastmaml

STABLE_TORCH_LIBRARY_IMPL(fastmaml, CPU, m) {
  FM_CPU_KERNEL(m, task_cross_entropy);
  FM_CPU_KERNEL(m, task_cross_entropy_bwd);
  FM_CPU_KERNEL(m, task_cross_entropy_bwd2);
}
