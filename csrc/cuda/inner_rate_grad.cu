// The gradient of learned rates: sums over tasks (and over all elements, for one rate a tensor).
#include "inner_list.cuh"

namespace fastmaml::cuda {
namespace {

constexpr int64_t kSlice = 4096;  // elements of one task that a block sums for a scalar rate

// out[i] = scale * sum over tasks of h[t, i] g[t, i]; tasks in order, so the sum is always the same.
template <class S, int V>
FM_KERNEL rate_grad_kernel(const __grid_constant__ InnerList list, Acc<S> scale, int64_t jobs) {
  using A = Acc<S>;
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const InnerJob at = find_job(list, job);
    const InnerTensor& x = list.tensors[at.tensor];
    const int64_t i = (at.job * kThreads + threadIdx.x) * V;
    if (i >= x.size) continue;
    A sum[V] = {};
#pragma unroll 4
    for (int64_t task = 0; task < x.tasks; ++task) {
      A h[V], g[V];
      read<S, V>(x.p, task, i, h);
      read<S, V>(x.g, task, i, g);
#pragma unroll
      for (int k = 0; k < V; ++k) sum[k] += h[k] * g[k];
    }
#pragma unroll
    for (int k = 0; k < V; ++k) sum[k] *= scale;
    write<S, V>(x.out, i, sum);
  }
}

// One partial sum a job, (task, slice of kSlice elements) in order.
template <class S>
FM_KERNEL scalar_partials_kernel(const __grid_constant__ InnerList list, Acc<S>* partial, int64_t jobs) {
  using A = Acc<S>;
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const InnerJob at = find_job(list, job);
    const InnerTensor& x = list.tensors[at.tensor];
    const bool empty = x.tasks == 0 || x.size == 0;
    const int64_t slices = empty ? 1 : (x.size + kSlice - 1) / kSlice;
    const int64_t task = at.job / slices, start = (at.job - task * slices) * kSlice;
    const int64_t end = empty ? start : start + kSlice < x.size ? start + kSlice : x.size;
    const S *h = slice<S>(x.p, task), *g = slice<S>(x.g, task);
    A sum = 0;
    for (int64_t i = start + threadIdx.x; i < end; i += kThreads) sum += widen(h[i]) * widen(g[i]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[job] = sum;
  }
}

template <class S>
FM_KERNEL scalar_sums_kernel(const __grid_constant__ InnerList list, const Acc<S>* partial, Acc<S> scale) {
  using A = Acc<S>;
  const InnerTensor& x = list.tensors[blockIdx.x];
  const int64_t first = blockIdx.x == 0 ? 0 : list.tensors[blockIdx.x - 1].end;
  A sum = 0;
  for (int64_t i = first + threadIdx.x; i < x.end; i += kThreads) sum += partial[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *static_cast<S*>(x.out) = narrow<S>(scale * sum);
}

// A tensor of no elements still has one (empty) job, so that its gradient is written: zero.
int64_t scalar_jobs(const InnerTensor& x) {
  const int64_t jobs = x.tasks * ceil_div(x.size, kSlice);
  return jobs > 0 ? jobs : 1;
}

template <class S> void launch(InnerTensor* tensors, int64_t count, double scale, void* workspace, void* stream) {
  using A = Acc<S>;
  constexpr int V = kVector<S>;
  const auto launch_dense = [&](bool vectors) {
    const auto jobs_of = [&](const InnerTensor& x) {
      return x.scalar_rate || x.vectors != vectors ? 0 : ceil_div(x.size, kThreads * (vectors ? V : 1));
    };
    for_pieces(tensors, count, jobs_of, [&](const InnerList& list, unsigned blocks, int64_t jobs) {
      if (vectors) FM_LAUNCH((rate_grad_kernel<S, V>), blocks, kThreads, stream, list, A(scale), jobs);
      else FM_LAUNCH((rate_grad_kernel<S, 1>), blocks, kThreads, stream, list, A(scale), jobs);
    });
  };
  for (int64_t i = 0; i < count; ++i) {
    InnerTensor& x = tensors[i];
    x.vectors = x.size % V == 0 && aligned<S>(x.p, x.tasks) && aligned<S>(x.g, x.tasks) && aligned(x.out);
  }
  launch_dense(true);
  launch_dense(false);
  A* partial = static_cast<A*>(workspace);
  const auto jobs_of = [](const InnerTensor& x) { return x.scalar_rate ? scalar_jobs(x) : 0; };
  for_pieces(tensors, count, jobs_of, [&](const InnerList& list, unsigned blocks, int64_t jobs) {
    FM_LAUNCH((scalar_partials_kernel<S>), blocks, kThreads, stream, list, partial, jobs);
    FM_LAUNCH((scalar_sums_kernel<S>), list.count, kThreads, stream, list, partial, A(scale));
    partial += jobs;
  });
}

}  // namespace

int64_t inner_rate_partials(const InnerTensor* tensors, int64_t count) {
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += tensors[i].scalar_rate ? scalar_jobs(tensors[i]) : 0;
  return total;
}

int launch_inner_rate_grad(Dtype dtype, InnerTensor* tensors, int64_t count, double scale, void* partial, void* stream) {
  return by_dtype(dtype, [&](auto zero) {
    launch<decltype(zero)>(tensors, count, scale, partial, stream);
  });
}

}  // namespace fastmaml::cuda
