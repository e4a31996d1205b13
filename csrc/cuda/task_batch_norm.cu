// Batch normalisation per task, fused with ReLU and 2x2 max-pooling, and its two derivatives.
//
// With G the gradient at the normalised, scaled image (that of the output put back where each came
// from), M elements a channel, r = rstd and means over them:
//   m1 = mean G, m2 = mean G x^, P = G - m1 - x^ m2:    gx = w r P, gw = M m2, gb = M m1
// and along (hx, hw, hb), with a1 = mean hx, a2 = mean hx x^, H = hx - a1 - x^ a2 and
// q = mean G H = mean G hx - a1 m1 - a2 m2:
//   gg = w r H + hw x^ + hb, gw = M r q, gx = hw r P - w r^2 (a2 P + m2 H + x^ q).
#include "columns.cuh"

namespace fastmaml::cuda {
namespace {

// Up to 2x2 elements of one image and the output that they share.
struct Window {
  int64_t row[4], out;  // -1: outside of the image; a window cut by the border has no output
};

FM_DEVICE Window window(const BatchNormArgs& a, int64_t i) {
  if (!a.pool) return {{i, -1, -1, -1}, i};
  // The binding keeps a task below 2^31 rows: 32-bit divisions are several times cheaper.
  const uint32_t height = uint32_t(a.height), width = uint32_t(a.width);
  const uint32_t across = (width + 1) / 2, down = (height + 1) / 2;
  const uint32_t rest = uint32_t(i) / across, x = 2 * (uint32_t(i) - rest * across);
  const uint32_t image = rest / down, y = 2 * (rest - image * down);
  const int64_t row = (int64_t(image) * height + y) * width + x;
  const bool right = x + 1 < width, below = y + 1 < height;
  Window w;
  w.row[0] = row;
  w.row[1] = right ? row + 1 : -1;
  w.row[2] = below ? row + width : -1;
  w.row[3] = right && below ? row + width + 1 : -1;
  w.out = right && below ? (int64_t(image) * (height / 2) + y / 2) * (width / 2) + x / 2 : -1;
  return w;
}

// Per-channel constants of a thread's V channels.
template <class S, int V> struct Channels {
  using A = Acc<S>;
  A mean[V], rstd[V], w[V];
  FM_DEVICE Channels(const BatchNormArgs& a, const Place& at) {
    if (at.channel >= a.channels) return;
    read<A, V>(a.mean, at.task, at.channel, mean);
    read<A, V>(a.rstd, at.task, at.channel, rstd);
    read<S, V>(a.w, at.task, at.channel, w, A(1));
  }
};

// The output's gradient and where in the window it goes: element k for 0..3, nowhere for 4.
template <class S, int V> struct Gradient {
  Acc<S> g[V];
  uint8_t index[V];
  FM_DEVICE Gradient(const BatchNormArgs& a, const Place& at, int64_t out) {
#pragma unroll
    for (int v = 0; v < V; ++v) g[v] = 0, index[v] = a.index.data ? 4 : 0;
    if (out < 0) return;
    const int64_t i = out * a.channels + at.channel;
    read<S, V>(a.g, at.task, i, g);
    if (!a.index.data) return;
    const Pack<uint8_t, V> pack = load<V>(slice<uint8_t>(a.index, at.task) + i);
#pragma unroll
    for (int v = 0; v < V; ++v) index[v] = pack.v[v];
  }
  FM_DEVICE Acc<S> at(int v, int element) const { return index[v] == element ? g[v] : Acc<S>(0); }
};

struct Forward {
  static constexpr int K = 3;
  using Merge = Moments;
  BatchNormArgs a;

  // Sums relative to the thread's first element, which makes them those of a small spread.
  template <class S, int V> FM_DEVICE void gather(const Place& at, Acc<S> (&x)[V][3]) const {
    using A = Acc<S>;
    A count = 0, origin[V] = {}, sum[V] = {}, squares[V] = {};
    for (int64_t i = at.begin; i < at.end; i += at.step) {
      const Window w = window(a, i);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (w.row[e] < 0) continue;
        A value[V];
        read<S, V>(a.x, at.task, w.row[e] * a.channels + at.channel, value);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          if (count == A(0)) origin[v] = value[v];
          const A d = value[v] - origin[v];
          sum[v] += d;
          squares[v] += d * d;
        }
        count += A(1);
      }
    }
    if (count == A(0)) return;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A spread = squares[v] - sum[v] * (sum[v] / count);
      x[v][0] = count;
      x[v][1] = origin[v] + sum[v] / count;
      x[v][2] = spread < A(0) ? A(0) : spread;
    }
  }

  template <class S, int V> FM_DEVICE void apply(const Place& at, const Acc<S> (&total)[V][3]) const {
    using A = Acc<S>;
    if (at.channel >= a.channels) return;
    A scale[V], shift[V], mean[V], rstd[V];
    read<S, V>(a.w, at.task, at.channel, scale, A(1));
    read<S, V>(a.b, at.task, at.channel, shift);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A variance = total[v][2] / total[v][0];  // NaN for no elements
      mean[v] = total[v][0] > A(0) ? total[v][1] : variance;
      rstd[v] = A(1) / sqrt(variance + A(a.eps));
      scale[v] *= rstd[v];
    }
    if (at.first) {
      write<A, V>(a.mean_out, at.task * a.channels + at.channel, mean);
      write<A, V>(a.rstd_out, at.task * a.channels + at.channel, rstd);
    }
    const int64_t outputs = a.images * (a.pool ? (a.height / 2) * (a.width / 2) : a.height * a.width);
    for (int64_t i = at.begin; i < at.end; i += at.step) {
      const Window w = window(a, i);
      if (w.out < 0) continue;
      A best[V] = {};
      Pack<uint8_t, V> index = {};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (w.row[e] < 0) continue;
        A value[V];
        read<S, V>(a.x, at.task, w.row[e] * a.channels + at.channel, value);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A z = (value[v] - mean[v]) * scale[v] + shift[v];
          if (e == 0 || z > best[v] || z != z) best[v] = z, index.v[v] = uint8_t(e);
        }
      }
      if (a.relu) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          if (best[v] <= A(0)) best[v] = 0, index.v[v] = 4;
        }
      }
      const int64_t to = (at.task * outputs + w.out) * a.channels + at.channel;
      write<S, V>(a.y, to, best);
      if (a.index_out) store(static_cast<uint8_t*>(a.index_out) + to, index);
    }
  }
};

struct Backward {
  static constexpr int K = 2;
  using Merge = Sum;
  BatchNormArgs a;

  template <class S, int V> FM_DEVICE void gather(const Place& at, Acc<S> (&x)[V][2]) const {
    using A = Acc<S>;
    const Channels<S, V> c(a, at);
    for (int64_t i = at.begin; i < at.end; i += at.step) {
      const Window w = window(a, i);
      if (w.out < 0) continue;
      const Gradient<S, V> gradient(a, at, w.out);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (w.row[e] < 0) continue;
        A value[V];
        read<S, V>(a.x, at.task, w.row[e] * a.channels + at.channel, value);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A g = gradient.at(v, e);
          x[v][0] += g;
          x[v][1] += g * ((value[v] - c.mean[v]) * c.rstd[v]);
        }
      }
    }
  }

  template <class S, int V> FM_DEVICE void apply(const Place& at, const Acc<S> (&total)[V][2]) const {
    using A = Acc<S>;
    if (at.channel >= a.channels) return;
    if (at.first) {
      A gw[V], gb[V];
#pragma unroll
      for (int v = 0; v < V; ++v) gb[v] = total[v][0], gw[v] = total[v][1];
      const int64_t to = at.task * a.channels + at.channel;
      if (a.gw) write<S, V>(a.gw, to, gw);
      if (a.gb) write<S, V>(a.gb, to, gb);
    }
    if (!a.gx) return;
    const Channels<S, V> c(a, at);
    const int64_t elements = a.images * a.height * a.width;
    const A share = A(1) / A(elements);
    for (int64_t i = at.begin; i < at.end; i += at.step) {
      const Window w = window(a, i);
      const Gradient<S, V> gradient(a, at, w.out);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (w.row[e] < 0) continue;
        const int64_t from = w.row[e] * a.channels + at.channel;
        A value[V];
        read<S, V>(a.x, at.task, from, value);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A normal = (value[v] - c.mean[v]) * c.rstd[v];
          const A centred = gradient.at(v, e) - total[v][0] * share - normal * (total[v][1] * share);
          value[v] = c.w[v] * c.rstd[v] * centred;
        }
        write<S, V>(a.gx, at.task * elements * a.channels + from, value);
      }
    }
  }
};

struct Backward2 {
  static constexpr int K = 5;  // sums of G, G x^, hx, hx x^, G hx
  using Merge = Sum;
  BatchNormArgs a;

  template <class S, int V> FM_DEVICE void gather(const Place& at, Acc<S> (&x)[V][5]) const {
    using A = Acc<S>;
    const Channels<S, V> c(a, at);
    for (int64_t i = at.begin; i < at.end; i += at.step) {
      const Window w = window(a, i);
      const Gradient<S, V> gradient(a, at, w.out);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (w.row[e] < 0) continue;
        const int64_t from = w.row[e] * a.channels + at.channel;
        A value[V], h[V];
        read<S, V>(a.x, at.task, from, value);
        read<S, V>(a.hx, at.task, from, h);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A normal = (value[v] - c.mean[v]) * c.rstd[v], g = gradient.at(v, e);
          x[v][0] += g;
          x[v][1] += g * normal;
          x[v][2] += h[v];
          x[v][3] += h[v] * normal;
          x[v][4] += g * h[v];
        }
      }
    }
  }

  template <class S, int V> FM_DEVICE void apply(const Place& at, const Acc<S> (&total)[V][5]) const {
    using A = Acc<S>;
    if (at.channel >= a.channels) return;
    const Channels<S, V> c(a, at);
    const int64_t elements = a.images * a.height * a.width;
    const int64_t outputs = a.images * (a.pool ? (a.height / 2) * (a.width / 2) : a.height * a.width);
    const A share = A(1) / A(elements);
    A m1[V], m2[V], a1[V], a2[V], q[V], hw[V], hb[V];
    read<S, V>(a.hw, at.task, at.channel, hw);
    read<S, V>(a.hb, at.task, at.channel, hb);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      m1[v] = total[v][0] * share, m2[v] = total[v][1] * share;
      a1[v] = total[v][2] * share, a2[v] = total[v][3] * share;
      q[v] = total[v][4] - a1[v] * total[v][0] - a2[v] * total[v][1];  // the sum: mean times M
    }
    if (a.gw && at.first) {
      A gw[V];
#pragma unroll
      for (int v = 0; v < V; ++v) gw[v] = elements ? c.rstd[v] * q[v] : A(0);
      write<S, V>(a.gw, at.task * a.channels + at.channel, gw);
    }
    if (!a.gg && !a.gx) return;
    for (int64_t i = at.begin; i < at.end; i += at.step) {
      const Window w = window(a, i);
      const Gradient<S, V> gradient(a, at, w.out);
      A gg[V] = {};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (w.row[e] < 0) continue;
        const int64_t from = w.row[e] * a.channels + at.channel;
        A value[V], h[V];
        read<S, V>(a.x, at.task, from, value);
        read<S, V>(a.hx, at.task, from, h);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A r = c.rstd[v], normal = (value[v] - c.mean[v]) * r;
          const A centred_h = h[v] - a1[v] - normal * a2[v];
          const A centred_g = gradient.at(v, e) - m1[v] - normal * m2[v];
          if (gradient.index[v] == e) gg[v] = c.w[v] * r * centred_h + hw[v] * normal + hb[v];
          const A bend = a2[v] * centred_g + m2[v] * centred_h + normal * (q[v] * share);
          value[v] = hw[v] * r * centred_g - c.w[v] * r * r * bend;
        }
        if (a.gx) write<S, V>(a.gx, at.task * elements * a.channels + from, value);
      }
      if (a.gg && w.out >= 0) write<S, V>(a.gg, (at.task * outputs + w.out) * a.channels + at.channel, gg);
    }
  }
};

int64_t rows(const BatchNormArgs& a) {
  return a.images * (a.pool ? ceil_div(a.height, 2) * ceil_div(a.width, 2) : a.height * a.width);
}

template <class S> bool vectors(const BatchNormArgs& a) {
  constexpr int V = kVector<S>;
  if (a.channels % V != 0) return false;
  for (const Input& in : {a.x, a.w, a.b, a.g, a.hx, a.hw, a.hb}) {
    if (in.data && !aligned<S>(in, a.tasks)) return false;
  }
  for (const Input& in : {a.mean, a.rstd}) {  // read and written in up to V elements of 4 or 8 bytes
    if (in.data && (uintptr_t(in.data) % (V * sizeof(Acc<S>)) || in.stride % V)) return false;
  }
  return !a.index.data || (uintptr_t(a.index.data) % V == 0 && a.index.stride % V == 0);
}

template <class S, int V> void run(const BatchNormArgs& a, void* workspace, void* stream) {
  if (a.order == 0) columns<S, V>(Forward{a}, a.tasks, rows(a), a.channels, workspace, stream);
  else if (a.order == 1) columns<S, V>(Backward{a}, a.tasks, rows(a), a.channels, workspace, stream);
  else columns<S, V>(Backward2{a}, a.tasks, rows(a), a.channels, workspace, stream);
}

}  // namespace

int64_t batch_norm_workspace(const BatchNormArgs& a) {
  return columns_workspace(a.tasks, rows(a), a.channels, Backward2::K);
}

int launch_batch_norm(Dtype dtype, const BatchNormArgs& a, void* workspace, void* stream) {
  return by_dtype(dtype, [&](auto zero) {
    using S = decltype(zero);
    if (vectors<S>(a)) run<S, kVector<S>>(a, workspace, stream);
    else run<S, 1>(a, workspace, stream);
  });
}

}  // namespace fastmaml::cuda
