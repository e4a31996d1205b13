// Layer normalisation of rows, with weights per task, and its two derivatives.
//
// The formulas are those of task_batch_norm.cu along a row, with G = g w; hw adds to the gradient of
// x what it would give as a weight. A warp owns a row; sums over rows (gw, gb) go by columns.
#include "columns.cuh"

namespace fastmaml::cuda {
namespace {

// f(offset of V elements in the row) for all of this lane's share of a row.
template <int V, class F> FM_DEVICE void along_row(int64_t channels, F f) {
  for (int64_t i = int64_t(threadIdx.x % 32) * V; i < channels; i += 32 * V) f(i);
}

struct Row {
  int64_t task, row, at;  // at: counted over all tasks
};

template <class Args, class F> FM_DEVICE void for_rows(const Args& a, F f) {
  const int64_t step = int64_t(gridDim.x) * kWarps;
  for (int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; i < a.tasks * a.rows; i += step) {
    const int64_t task = i / a.rows;
    f(Row{task, i - task * a.rows, i});
  }
}

template <class S, int V>
FM_KERNEL forward_kernel(const __grid_constant__ LayerNormArgs a) {
  using A = Acc<S>;
  for_rows(a, [&](Row r) {
    const int64_t start = r.row * a.channels;
    A count = 0, origin = 0, sum = 0, squares = 0;
    along_row<V>(a.channels, [&](int64_t i) {
      A x[V];
      read<S, V>(a.x, r.task, start + i, x);
      if (count == A(0)) origin = x[0];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A d = x[v] - origin;
        sum += d;
        squares += d * d;
      }
      count += A(V);
    });
    A total[3] = {};
    if (count > A(0)) {
      const A spread = squares - sum * (sum / count);
      total[0] = count, total[1] = origin + sum / count, total[2] = spread < A(0) ? A(0) : spread;
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      A other[3];
#pragma unroll
      for (int k = 0; k < 3; ++k) other[k] = __shfl_down_sync(kWholeWarp, total[k], offset);
      Moments::merge(total, other);
    }
    const A mean = __shfl_sync(kWholeWarp, total[1], 0);
    const A variance = __shfl_sync(kWholeWarp, total[2], 0) / A(a.channels);
    const A rstd = A(1) / sqrt(variance + A(a.eps));
    if (threadIdx.x % 32 == 0) {
      static_cast<A*>(a.mean_out)[r.at] = mean;
      static_cast<A*>(a.rstd_out)[r.at] = rstd;
    }
    along_row<V>(a.channels, [&](int64_t i) {
      A x[V], w[V], b[V];
      read<S, V>(a.x, r.task, start + i, x);
      read<S, V>(a.w, r.task, i, w, A(1));
      read<S, V>(a.b, r.task, i, b);
#pragma unroll
      for (int v = 0; v < V; ++v) x[v] = (x[v] - mean) * rstd * w[v] + b[v];
      write<S, V>(a.y, r.at * a.channels + i, x);
    });
  });
}

template <class S, int V>
FM_KERNEL backward_kernel(const __grid_constant__ LayerNormArgs a) {
  using A = Acc<S>;
  for_rows(a, [&](Row r) {
    const int64_t start = r.row * a.channels;
    const A mean = slice<A>(a.mean, r.task)[r.row], rstd = slice<A>(a.rstd, r.task)[r.row];
    const auto load = [&](int64_t i, A(&normal)[V], A(&g)[V]) {
      A w[V];
      read<S, V>(a.x, r.task, start + i, normal);
      read<S, V>(a.g, r.task, start + i, g);
      read<S, V>(a.w, r.task, i, w, A(1));
#pragma unroll
      for (int v = 0; v < V; ++v) normal[v] = (normal[v] - mean) * rstd, g[v] *= w[v];
    };
    A m1 = 0, m2 = 0;
    along_row<V>(a.channels, [&](int64_t i) {
      A normal[V], g[V];
      load(i, normal, g);
#pragma unroll
      for (int v = 0; v < V; ++v) m1 += g[v], m2 += g[v] * normal[v];
    });
    m1 = warp_sum(m1) / A(a.channels), m2 = warp_sum(m2) / A(a.channels);
    along_row<V>(a.channels, [&](int64_t i) {
      A normal[V], g[V];
      load(i, normal, g);
#pragma unroll
      for (int v = 0; v < V; ++v) g[v] = rstd * (g[v] - m1 - normal[v] * m2);
      write<S, V>(a.gx, r.at * a.channels + i, g);
    });
  });
}

// Also leaves a1 and a2 of every row in `means`, for the gradient of w.
template <class S, int V>
FM_KERNEL backward2_kernel(const __grid_constant__ LayerNormArgs a, Acc<S>* means) {
  using A = Acc<S>;
  for_rows(a, [&](Row r) {
    const int64_t start = r.row * a.channels;
    const A mean = slice<A>(a.mean, r.task)[r.row], rstd = slice<A>(a.rstd, r.task)[r.row];
    A m1 = 0, m2 = 0, a1 = 0, a2 = 0, a3 = 0, k1 = 0, k2 = 0;
    along_row<V>(a.channels, [&](int64_t i) {
      A x[V], g[V], w[V], h[V], hw[V];
      read<S, V>(a.x, r.task, start + i, x);
      read<S, V>(a.g, r.task, start + i, g);
      read<S, V>(a.hx, r.task, start + i, h);
      read<S, V>(a.w, r.task, i, w, A(1));
      read<S, V>(a.hw, r.task, i, hw);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A normal = (x[v] - mean) * rstd, G = g[v] * w[v], k = g[v] * hw[v];
        m1 += G, m2 += G * normal;
        a1 += h[v], a2 += h[v] * normal, a3 += G * h[v];
        k1 += k, k2 += k * normal;
      }
    });
    const A n = A(a.channels);
    m1 = warp_sum(m1) / n, m2 = warp_sum(m2) / n;
    a1 = warp_sum(a1) / n, a2 = warp_sum(a2) / n, a3 = warp_sum(a3) / n;
    k1 = warp_sum(k1) / n, k2 = warp_sum(k2) / n;
    const A q = a3 - a1 * m1 - a2 * m2;
    if (threadIdx.x % 32 == 0) means[2 * r.at] = a1, means[2 * r.at + 1] = a2;
    along_row<V>(a.channels, [&](int64_t i) {
      A x[V], g[V], w[V], h[V], hw[V], hb[V], gg[V], gx[V];
      read<S, V>(a.x, r.task, start + i, x);
      read<S, V>(a.g, r.task, start + i, g);
      read<S, V>(a.hx, r.task, start + i, h);
      read<S, V>(a.w, r.task, i, w, A(1));
      read<S, V>(a.hw, r.task, i, hw);
      read<S, V>(a.hb, r.task, i, hb);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A normal = (x[v] - mean) * rstd;
        const A P = g[v] * w[v] - m1 - normal * m2, H = h[v] - a1 - normal * a2;
        gg[v] = w[v] * rstd * H + hw[v] * normal + hb[v];
        const A of_hw = g[v] * hw[v] - k1 - normal * k2;
        gx[v] = rstd * of_hw - rstd * rstd * (a2 * P + m2 * H + normal * q);
      }
      if (a.gg) write<S, V>(a.gg, r.at * a.channels + i, gg);
      if (a.gx) write<S, V>(a.gx, r.at * a.channels + i, gx);
    });
  });
}

// gw = sum of g x^ and gb = sum of g over the rows.
struct WeightGradients {
  static constexpr int K = 2;
  using Merge = Sum;
  LayerNormArgs a;

  template <class S, int V> FM_DEVICE void gather(const Place& at, Acc<S> (&sum)[V][2]) const {
    using A = Acc<S>;
    for (int64_t i = at.begin; i < at.end; i += at.step) {
      const A mean = slice<A>(a.mean, at.task)[i], rstd = slice<A>(a.rstd, at.task)[i];
      A x[V], g[V];
      read<S, V>(a.x, at.task, i * a.channels + at.channel, x);
      read<S, V>(a.g, at.task, i * a.channels + at.channel, g);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v][0] += g[v], sum[v][1] += g[v] * ((x[v] - mean) * rstd);
    }
  }

  template <class S, int V> FM_DEVICE void apply(const Place& at, const Acc<S> (&total)[V][2]) const {
    if (!at.first) return;
    Acc<S> gw[V], gb[V];
#pragma unroll
    for (int v = 0; v < V; ++v) gb[v] = total[v][0], gw[v] = total[v][1];
    if (a.gw) write<S, V>(a.gw, at.task * a.channels + at.channel, gw);
    if (a.gb) write<S, V>(a.gb, at.task * a.channels + at.channel, gb);
  }
};

// gw = sum over the rows of g times the derivative of x^ along hx.
template <class A> struct WeightGradients2 {
  static constexpr int K = 1;
  using Merge = Sum;
  LayerNormArgs a;
  const A* means;

  template <class S, int V> FM_DEVICE void gather(const Place& at, A (&sum)[V][1]) const {
    if (!a.hx.data) return;
    for (int64_t i = at.begin; i < at.end; i += at.step) {
      const A mean = slice<A>(a.mean, at.task)[i], rstd = slice<A>(a.rstd, at.task)[i];
      const A *of_row = means + 2 * (at.task * a.rows + i), a1 = of_row[0], a2 = of_row[1];
      A x[V], g[V], h[V];
      read<S, V>(a.x, at.task, i * a.channels + at.channel, x);
      read<S, V>(a.g, at.task, i * a.channels + at.channel, g);
      read<S, V>(a.hx, at.task, i * a.channels + at.channel, h);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v][0] += g[v] * rstd * (h[v] - a1 - (x[v] - mean) * rstd * a2);
    }
  }

  template <class S, int V> FM_DEVICE void apply(const Place& at, const A (&total)[V][1]) const {
    if (!at.first) return;
    A gw[V];
#pragma unroll
    for (int v = 0; v < V; ++v) gw[v] = total[v][0];
    write<S, V>(a.gw, at.task * a.channels + at.channel, gw);
  }
};

template <class S> bool vectors(const LayerNormArgs& a) {
  if (a.channels % kVector<S> != 0) return false;
  for (const Input& in : {a.x, a.w, a.b, a.g, a.hx, a.hw, a.hb}) {
    if (in.data && !aligned<S>(in, a.tasks)) return false;
  }
  return true;
}

template <class S, int V> void run(const LayerNormArgs& a, void* workspace, void* stream) {
  using A = Acc<S>;
  A* means = static_cast<A*>(workspace);
  void* partial = means + 2 * a.tasks * a.rows;
  const unsigned blocks = grid(ceil_div(a.tasks * a.rows, kWarps));
  if (a.order == 0 && blocks) FM_LAUNCH((forward_kernel<S, V>), blocks, kThreads, stream, a);
  if (a.order == 1) {
    if (a.gx && blocks) FM_LAUNCH((backward_kernel<S, V>), blocks, kThreads, stream, a);
    if (a.gw || a.gb) columns<S, V>(WeightGradients{a}, a.tasks, a.rows, a.channels, partial, stream);
  }
  if (a.order == 2) {
    if (blocks) FM_LAUNCH((backward2_kernel<S, V>), blocks, kThreads, stream, a, means);
    if (a.gw) columns<S, V>(WeightGradients2<A>{a, means}, a.tasks, a.rows, a.channels, partial, stream);
  }
}

}  // namespace

int64_t layer_norm_workspace(const LayerNormArgs& a) {
  if (a.order == 0) return 0;
  return 2 * a.tasks * a.rows + columns_workspace(a.tasks, a.rows, a.channels, WeightGradients::K);
}

int launch_layer_norm(Dtype dtype, const LayerNormArgs& a, void* workspace, void* stream) {
  return by_dtype(dtype, [&](auto zero) {
    using S = decltype(zero);
    if (vectors<S>(a)) run<S, kVector<S>>(a, workspace, stream);
    else run<S, 1>(a, workspace, stream);
  });
}

}  // namespace fastmaml::cuda
