// Bias and activation after a matrix product, in one pass over its result.
#include "../math/activation.h"
#include "columns.cuh"

namespace fastmaml::cuda {
namespace {

template <class S, math::Act ACT>
FM_KERNEL epilogue_kernel(const __grid_constant__ EpilogueArgs a, Grid grid, bool vectors) {
  using A = Acc<S>;
  constexpr int V = kVector<S>;
  S *z = static_cast<S*>(a.z), *y = static_cast<S*>(a.y);
  for (int64_t job = blockIdx.x; job < grid.tasks * grid.splits * grid.tiles; job += gridDim.x) {
    const Place at = place<S, V>(grid, job);
    for (int64_t row = at.begin; row < at.end; row += at.step) {
      const int64_t i = (at.task * a.rows + row) * a.channels + at.channel;
      if (vectors) {
        A b[V], s[V];
        read<S, V>(a.b, at.task, at.channel, b);
        read<S, V>(Input{z, 0}, 0, i, s);
#pragma unroll
        for (int v = 0; v < V; ++v) s[v] += b[v];
        if (y != z) write<S, V>(z, i, s);
#pragma unroll
        for (int v = 0; v < V; ++v) s[v] = math::activate<ACT>(s[v]);
        write<S, V>(y, i, s);
      } else {
        for (int v = 0; v < V && at.channel + v < a.channels; ++v) {
          const A b = a.b.data ? widen(slice<S>(a.b, at.task)[at.channel + v]) : A(0);
          const A s = widen(z[i + v]) + b;
          if (y != z) z[i + v] = narrow<S>(s);
          y[i + v] = narrow<S>(math::activate<ACT>(s));
        }
      }
    }
  }
}

}  // namespace

int launch_epilogue(Dtype dtype, const EpilogueArgs& a, void* stream) {
  return by_dtype(dtype, [&](auto zero) {
    using S = decltype(zero);
    constexpr int64_t kRows = 256;  // of a block: 4 a thread
    Grid size{a.tasks, a.rows, a.channels, ceil_div(a.channels, kTile<S, kVector<S>>), ceil_div(a.rows, kRows)};
    const int64_t jobs = size.tasks * size.tiles * size.splits;
    if (jobs == 0) return;
    const bool vectors = a.channels % kVector<S> == 0 && aligned(a.z) && aligned(a.y) &&
                         (!a.b.data || aligned<S>(a.b, a.tasks));
    math::with_act(a.act, [&](auto tag) {
      FM_LAUNCH((epilogue_kernel<S, decltype(tag)::value>), grid(jobs), kThreads, stream, a, size, vectors);
    });
  });
}

}  // namespace fastmaml::cuda
