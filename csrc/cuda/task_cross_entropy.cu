// Cross-entropy of each task's logits against integer labels, and its two derivatives.
//
// A warp owns a row. Labels are on the device, so nothing can be raised from here: one out of range
// is never used as an index, and makes the results of its task NaN.
#include "device.cuh"

namespace fastmaml::cuda {
namespace {

FM_DEVICE bool valid(const CrossEntropyArgs& a, int64_t label) { return label >= 0 && label < a.classes; }

// f(task, row within it, label) with a warp a row.
template <class F> FM_DEVICE void for_rows(const CrossEntropyArgs& a, F f) {
  const int64_t step = int64_t(gridDim.x) * kWarps;
  for (int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; i < a.tasks * a.rows; i += step) {
    const int64_t task = i / a.rows, row = i - task * a.rows;
    f(task, row, slice<int64_t>(a.target, task)[row]);
  }
}

template <class S>
FM_KERNEL log_sum_exp_kernel(const __grid_constant__ CrossEntropyArgs a) {
  using A = Acc<S>;
  const int lane = threadIdx.x % 32;
  for_rows(a, [&](int64_t task, int64_t row, int64_t) {
    const S* x = slice<S>(a.x, task) + row * a.classes;
    A top = -INFINITY;
    for (int64_t i = lane; i < a.classes; i += 32) {
      const A value = widen(x[i]);
      if (value > top) top = value;
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      const A other = __shfl_xor_sync(kWholeWarp, top, offset);
      if (other > top) top = other;
    }
    if (top - top != A(0)) top = 0;  // infinite: log(sum(exp)) itself is the answer
    A sum = 0;
    for (int64_t i = lane; i < a.classes; i += 32) sum += exp(widen(x[i]) - top);
    sum = warp_sum(sum);
    if (lane == 0) static_cast<A*>(a.lse_out)[task * a.rows + row] = top + log(sum);
  });
}

// What a block sums over the rows of its task; every thread's share in order, then the threads.
template <class A> struct Totals {
  A sum, scale;  // scale: 1 / rows that count; NaN after a label out of range
};

// of(row, label) for rows that count. The result is right in thread 0.
template <class A, class F> FM_DEVICE Totals<A> over_task(const CrossEntropyArgs& a, int64_t task, F of) {
  const int64_t* target = slice<int64_t>(a.target, task);
  A sum = 0, bad = 0;
  int64_t count = 0;
  for (int64_t row = threadIdx.x; row < a.rows; row += kThreads) {
    const int64_t label = target[row];
    if (label == a.ignore) continue;
    ++count;
    if (valid(a, label)) sum += of(row, label);
    else bad = NAN;
  }
  const int64_t counted = block_sum<long long>(count);
  sum = block_sum(sum);
  bad = block_sum(bad);
  return {sum, A(1) / A(counted) + bad};
}

template <class S>
FM_KERNEL losses_kernel(const __grid_constant__ CrossEntropyArgs a) {
  using A = Acc<S>;
  for (int64_t task = blockIdx.x; task < a.tasks; task += gridDim.x) {
    const S* x = slice<S>(a.x, task);
    const A* lse = static_cast<const A*>(a.lse_out) + task * a.rows;
    const auto loss = [&](int64_t row, int64_t label) { return lse[row] - widen(x[row * a.classes + label]); };
    const Totals<A> total = over_task<A>(a, task, loss);
    if (threadIdx.x == 0) static_cast<S*>(a.losses)[task] = narrow<S>(total.sum * total.scale);
  }
}

template <class A>
FM_KERNEL scales_kernel(const __grid_constant__ CrossEntropyArgs a, A* scales) {
  for (int64_t task = blockIdx.x; task < a.tasks; task += gridDim.x) {
    const Totals<A> total = over_task<A>(a, task, [](int64_t, int64_t) { return A(0); });
    if (threadIdx.x == 0) scales[task] = total.scale;
  }
}

// g scale (softmax - onehot)
template <class S>
FM_KERNEL backward_kernel(const __grid_constant__ CrossEntropyArgs a, const Acc<S>* scales) {
  using A = Acc<S>;
  for_rows(a, [&](int64_t task, int64_t row, int64_t label) {
    const S* x = slice<S>(a.x, task) + row * a.classes;
    S* gx = static_cast<S*>(a.gx) + (task * a.rows + row) * a.classes;
    const A lse = slice<A>(a.lse, task)[row], scale = scales[task] * widen(*slice<S>(a.g, task));
    for (int64_t i = threadIdx.x % 32; i < a.classes; i += 32) {
      const A p = exp(widen(x[i]) - lse);
      gx[i] = narrow<S>(label == a.ignore ? A(0) : scale * (i == label ? p - A(1) : p));
    }
  });
}

// g scale p (h - mean of h under p); the derivative of the row's loss along h goes to `slopes`.
template <class S>
FM_KERNEL backward2_kernel(const __grid_constant__ CrossEntropyArgs a, const Acc<S>* scales, Acc<S>* slopes) {
  using A = Acc<S>;
  const int lane = threadIdx.x % 32;
  for_rows(a, [&](int64_t task, int64_t row, int64_t label) {
    const S* x = slice<S>(a.x, task) + row * a.classes;
    const S* h = slice<S>(a.h, task) + row * a.classes;
    const A lse = slice<A>(a.lse, task)[row], scale = scales[task] * widen(*slice<S>(a.g, task));
    A mean = 0;
    for (int64_t i = lane; i < a.classes; i += 32) mean += exp(widen(x[i]) - lse) * widen(h[i]);
    mean = warp_sum(mean);
    if (lane == 0) slopes[task * a.rows + row] = valid(a, label) ? mean - widen(h[label]) : A(0);
    if (!a.gx) return;
    S* gx = static_cast<S*>(a.gx) + (task * a.rows + row) * a.classes;
    for (int64_t i = lane; i < a.classes; i += 32) {
      const A p = exp(widen(x[i]) - lse);
      gx[i] = narrow<S>(label == a.ignore ? A(0) : scale * p * (widen(h[i]) - mean));
    }
  });
}

template <class S>
FM_KERNEL slopes_kernel(const __grid_constant__ CrossEntropyArgs a, const Acc<S>* slopes) {
  using A = Acc<S>;
  for (int64_t task = blockIdx.x; task < a.tasks; task += gridDim.x) {
    const A* of_task = slopes + task * a.rows;
    const Totals<A> total = over_task<A>(a, task, [&](int64_t row, int64_t) { return of_task[row]; });
    const bool none = total.scale > A(1);  // 1 / 0: all are ignored
    if (threadIdx.x == 0) static_cast<S*>(a.gg)[task] = narrow<S>(none ? A(0) : total.sum * total.scale);
  }
}

template <class S> void run(const CrossEntropyArgs& a, void* workspace, void* stream) {
  using A = Acc<S>;
  const unsigned tasks = grid(a.tasks), rows = grid(ceil_div(a.tasks * a.rows, kWarps));
  if (tasks == 0) return;
  A *scales = static_cast<A*>(workspace), *slopes = scales + a.tasks;
  if (a.order == 0) {
    if (rows) FM_LAUNCH((log_sum_exp_kernel<S>), rows, kThreads, stream, a);
    FM_LAUNCH((losses_kernel<S>), tasks, kThreads, stream, a);
    return;
  }
  FM_LAUNCH((scales_kernel<A>), tasks, kThreads, stream, a, scales);
  if (a.order == 1 && rows) FM_LAUNCH((backward_kernel<S>), rows, kThreads, stream, a, scales);
  if (a.order == 2) {
    if (rows) FM_LAUNCH((backward2_kernel<S>), rows, kThreads, stream, a, scales, slopes);
    if (a.gg) FM_LAUNCH((slopes_kernel<S>), tasks, kThreads, stream, a, slopes);
  }
}

}  // namespace

int64_t cross_entropy_workspace(const CrossEntropyArgs& a) { return a.tasks * (1 + a.rows); }

int launch_cross_entropy(Dtype dtype, const CrossEntropyArgs& a, void* workspace, void* stream) {
  return by_dtype(dtype, [&](auto zero) { run<decltype(zero)>(a, workspace, stream); });
}

}  // namespace fastmaml::cuda
