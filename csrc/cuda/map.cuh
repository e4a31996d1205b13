// One pass over IN inputs and OUT outputs, element by element, all tasks in one launch.
#pragma once

#include "device.cuh"

namespace fastmaml::cuda {

// Null outputs are not written.
template <int IN, int OUT> struct Map {
  Input in[IN];
  void* out[OUT];
  int64_t tasks = 0, size = 0;
  bool vectors = false;  // found by map()
};

template <class S, int V, class F, int IN, int OUT>
FM_DEVICE void map_at(const Map<IN, OUT>& m, const F& f, int64_t task, int64_t i) {
  using A = Acc<S>;
  A x[IN][V], y[OUT][V];
#pragma unroll
  for (int k = 0; k < IN; ++k) read<S, V>(m.in[k], task, i, x[k]);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    A from[IN], to[OUT];
#pragma unroll
    for (int k = 0; k < IN; ++k) from[k] = x[k][v];
    f(from, to, task);
#pragma unroll
    for (int k = 0; k < OUT; ++k) y[k][v] = to[k];
  }
#pragma unroll
  for (int k = 0; k < OUT; ++k) {
    if (m.out[k]) write<S, V>(m.out[k], task * m.size + i, y[k]);
  }
}

// V elements a thread, so a job is kThreads * V consecutive elements of one task. What is not
// aligned (odd views, the tail) goes through the same threads one element at a time.
template <class S, class F, int IN, int OUT>
FM_KERNEL map_kernel(const __grid_constant__ Map<IN, OUT> m, F f) {
  constexpr int V = kVector<S>;
  const int64_t chunks = (m.size + kThreads * V - 1) / (kThreads * V);
  for (int64_t job = blockIdx.x; job < m.tasks * chunks; job += gridDim.x) {
    const int64_t task = job / chunks;
    const int64_t i = ((job - task * chunks) * kThreads + threadIdx.x) * V;
    if (m.vectors && i + V <= m.size) {
      map_at<S, V>(m, f, task, i);
    } else {
      for (int64_t j = i; j < i + V && j < m.size; ++j) map_at<S, 1>(m, f, task, j);
    }
  }
}

// f(const A (&in)[IN], A (&out)[OUT], int64_t task). flat: f has no use for the task, so that
// dense tensors may be walked as one.
template <class S, int IN, int OUT, class F>
void map(Map<IN, OUT> m, bool flat, F f, void* stream) {
  for (const Input& in : m.in) flat = flat && (!in.data || in.stride == m.size || m.tasks <= 1);
  if (flat) m.size *= m.tasks, m.tasks = 1;
  if (m.tasks == 0 || m.size == 0) return;
  m.vectors = true;
  for (const Input& in : m.in) m.vectors = m.vectors && (!in.data || aligned<S>(in, m.tasks));
  for (void* out : m.out) m.vectors = m.vectors && aligned<S>(Input{out, m.size}, m.tasks);
  const unsigned blocks = grid(m.tasks * ceil_div(m.size, kThreads * kVector<S>));
  FM_LAUNCH((map_kernel<S, F, IN, OUT>), blocks, kThreads, stream, m, f);
}

}  // namespace fastmaml::cuda
