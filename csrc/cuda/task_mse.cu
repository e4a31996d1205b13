// Mean squared error of each task, and its two derivatives with respect to x.
#include "map.cuh"

namespace fastmaml::cuda {
namespace {

constexpr int64_t kSlice = 8192, kMostSlices = 256;

// Slices of a task that are summed apart: from the size alone, so that results do not vary.
int64_t slices_of(int64_t size) {
  const int64_t slices = ceil_div(size, kSlice);
  return slices < 1 ? 1 : slices > kMostSlices ? kMostSlices : slices;
}

// Sums of h (x - target), h being x - target itself where there is none, times scale where final.
template <class S>
FM_KERNEL products_kernel(const __grid_constant__ MseArgs a, int64_t slices, Acc<S>* partial, void* out, Acc<S> scale) {
  using A = Acc<S>;
  const int64_t share = (a.size + slices - 1) / slices;
  for (int64_t job = blockIdx.x; job < a.tasks * slices; job += gridDim.x) {
    const int64_t task = job / slices, start = (job - task * slices) * share;
    const int64_t end = start + share < a.size ? start + share : a.size;
    const S *x = slice<S>(a.x, task), *y = slice<S>(a.target, task);
    const S* h = a.h.data ? slice<S>(a.h, task) : nullptr;
    A sum = 0;
#pragma unroll 4
    for (int64_t i = start + threadIdx.x; i < end; i += kThreads) {
      const A d = widen(x[i]) - widen(y[i]);
      sum += (h ? widen(h[i]) : d) * d;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
      if (slices == 1) static_cast<S*>(out)[task] = narrow<S>(scale * sum);
      else partial[job] = sum;
    }
  }
}

template <class S>
FM_KERNEL sums_kernel(int64_t tasks, int64_t slices, const Acc<S>* partial, void* out, Acc<S> scale) {
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    Acc<S> sum = 0;
    for (int64_t i = threadIdx.x; i < slices; i += kThreads) sum += partial[task * slices + i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) static_cast<S*>(out)[task] = narrow<S>(scale * sum);
  }
}

template <class S> void reduce(const MseArgs& a, void* out, double factor, void* workspace, void* stream) {
  using A = Acc<S>;
  const int64_t slices = slices_of(a.size);
  const A scale = A(a.size ? factor / double(a.size) : NAN);
  A* partial = static_cast<A*>(workspace);
  FM_LAUNCH((products_kernel<S>), grid(a.tasks * slices), kThreads, stream, a, slices, partial, out, scale);
  if (slices > 1) FM_LAUNCH((sums_kernel<S>), grid(a.tasks), kThreads, stream, a.tasks, slices, partial, out, scale);
}

// g[task] scale (x - y), or of h alone.
template <class S, bool DIFFERENCE> struct Spread {
  Input g;
  Acc<S> scale;
  template <class A, int IN> FM_DEVICE void operator()(const A (&in)[IN], A (&out)[1], int64_t task) const {
    out[0] = widen(*slice<S>(g, task)) * scale * (DIFFERENCE ? in[0] - in[IN - 1] : in[0]);
  }
};

template <class S> void run(const MseArgs& a, void* workspace, void* stream) {
  using A = Acc<S>;
  if (a.tasks == 0) return;
  const A scale = A(a.size ? 2.0 / double(a.size) : 0.0);
  if (a.order == 0) reduce<S>(a, a.losses, 1.0, workspace, stream);
  if (a.order == 1) map<S>(Map<2, 1>{{a.x, a.target}, {a.gx}, a.tasks, a.size}, false, Spread<S, true>{a.g, scale}, stream);
  if (a.order == 2 && a.gg) reduce<S>(a, a.gg, 2.0, workspace, stream);
  if (a.order == 2 && a.gx) map<S>(Map<1, 1>{{a.h}, {a.gx}, a.tasks, a.size}, false, Spread<S, false>{a.g, scale}, stream);
}

}  // namespace

int64_t mse_workspace(const MseArgs& a) { return a.tasks * slices_of(a.size); }

int launch_mse(Dtype dtype, const MseArgs& a, void* workspace, void* stream) {
  return by_dtype(dtype, [&](auto zero) { run<decltype(zero)>(a, workspace, stream); });
}

}  // namespace fastmaml::cuda
