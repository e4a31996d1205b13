// Activations and their first two derivatives, elementwise, in whatever dense order they come.
#include "kernel_table.h"
#include "../math/activation.h"

#include "simd.h"
#include "views.h"
#include "work.h"

namespace fastmaml {
namespace {

using math::Act;

template <Act A, class S>
FM_CLONES void forward(const S* x, S* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = math::activate<A>(x[i]);
}

template <Act A, class S>
FM_CLONES void backward(const S* g, const S* s, S* out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = g[i] * math::slope<A>(s[i]);
}

template <Act A, class S>
FM_CLONES void curve(const S* h, const S* g, const S* s, S* out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = h[i] * g[i] * math::curvature<A>(s[i]);
}

Tensor task_act(const Tensor& x, int64_t act) {
  check_floating("task_act", "x", x);
  check_least_rank("task_act", "x", x, 1);
  check_act("task_act", act);
  const Sizes order = dense_order(x);
  Tensor y = empty_in_order(sizes_of(x), order, shim_dtype(x));
  const int64_t n = elements_per_task(x);
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    const Input<S> in(x, order);
    S* out = output<S>(y);
    math::with_act(act, [&](auto tag) {
      parallel_elements(x.size(0), n, [&](int64_t t, int64_t from, int64_t to) {
        forward<decltype(tag)::value>(in.task(t) + from, out + t * n + from, to - from);
      });
    });
  });
  return y;
}

// g * a'(s), for the backward and for the first result of the double backward.
Tensor times_slope(const char* op, const char* name, const Tensor& g, const Tensor& s, int64_t act) {
  check_floating(op, "s", s);
  check_least_rank(op, "s", s, 1);
  check_act(op, act);
  check_tensor(op, name, g, s.scalar_type(), sizes_of(s));
  const Sizes order = dense_order(s);
  Tensor y = empty_in_order(sizes_of(s), order, shim_dtype(s));
  const int64_t n = elements_per_task(s);
  with_scalar(s, [&](auto zero) {
    using S = decltype(zero);
    const Input<S> gs(g, order), ss(s, order);
    S* out = output<S>(y);
    math::with_act(act, [&](auto tag) {
      parallel_elements(s.size(0), n, [&](int64_t t, int64_t from, int64_t to) {
        backward<decltype(tag)::value>(gs.task(t) + from, ss.task(t) + from, out + t * n + from,
                                       to - from);
      });
    });
  });
  return y;
}

Tensor task_act_bwd(const Tensor& g, const Tensor& s, int64_t act) {
  return times_slope("task_act_bwd", "g", g, s, act);
}

std::tuple<Tensor, Tensor> task_act_bwd2(const Tensor& h, const Tensor& g, const Tensor& s, int64_t act,
                                         int64_t need) {
  const char* op = "task_act_bwd2";
  check_floating(op, "s", s);
  check_least_rank(op, "s", s, 1);
  check_act(op, act);
  check_tensor(op, "h", h, s.scalar_type(), sizes_of(s));
  check_tensor(op, "g", g, s.scalar_type(), sizes_of(s));
  Tensor gg = need & 1 ? times_slope(op, "h", h, s, act) : nothing(shim_dtype(s));
  if (!(need & 2)) return {gg, nothing(shim_dtype(s))};
  const Sizes order = dense_order(s);
  Tensor y = empty_in_order(sizes_of(s), order, shim_dtype(s));
  const int64_t n = elements_per_task(s);
  with_scalar(s, [&](auto zero) {
    using S = decltype(zero);
    const Input<S> hs(h, order), gs(g, order), ss(s, order);
    S* out = output<S>(y);
    math::with_act(act, [&](auto tag) {
      parallel_elements(s.size(0), n, [&](int64_t t, int64_t from, int64_t to) {
        curve<decltype(tag)::value>(hs.task(t) + from, gs.task(t) + from, ss.task(t) + from,
                                    out + t * n + from, to - from);
      });
    });
  });
  return {gg, y};
}

}  // namespace
}  // namespace fastmaml

STABLE_TORCH_LIBRARY_IMPL(fastmaml, CPU, m) {
  FM_CPU_KERNEL(m, task_act);
  FM_CPU_KERNEL(m, task_act_bwd);
  FM_CPU_KERNEL(m, task_act_bwd2);
}
