// p' = p + scale * rate * step for all parameters of all tasks: as close to a copy as it gets.
#include "inner_list.cuh"

namespace fastmaml::cuda {
namespace {

// Vectors of 16 bytes that a thread has in flight per tensor.
template <bool MOVING> constexpr int kInFlight = MOVING ? 2 : 4;
template <class S, bool MOVING> constexpr int kChunk = kThreads * kVector<S> * kInFlight<MOVING>;

template <class A> struct Rule {
  A scale, momentum;
  bool nesterov;
};

template <class A, bool MOVING>
FM_DEVICE void move(const Rule<A>& rule, A p, bool has_p, A g, A v, A rate, A& out, A& out_v) {
  A step = g;
  if (MOVING) {
    out_v = rule.momentum * v + g;
    step = rule.nesterov ? g + rule.momentum * out_v : out_v;
  }
  step *= rule.scale * rate;
  out = has_p ? p + step : step;
}

template <class S, bool MOVING>
FM_DEVICE void move_one(const InnerTensor& x, const Rule<Acc<S>>& rule, Acc<S> rate, int64_t task, int64_t i) {
  using A = Acc<S>;
  const A p = x.p.data ? widen(slice<S>(x.p, task)[i]) : A(0);
  const A v = MOVING ? widen(slice<S>(x.v, task)[i]) : A(0);
  if (x.rate && !x.scalar_rate) rate = widen(static_cast<const S*>(x.rate)[i]);
  A out, out_v;
  move<A, MOVING>(rule, p, x.p.data, widen(slice<S>(x.g, task)[i]), v, rate, out, out_v);
  static_cast<S*>(x.out)[task * x.size + i] = narrow<S>(out);
  if (MOVING) static_cast<S*>(x.out_v)[task * x.size + i] = narrow<S>(out_v);
}

// A whole aligned chunk: every load is issued before the first store, for the outputs could alias
// the inputs as far as the compiler knows.
template <class S, bool MOVING>
FM_DEVICE void move_chunk(const InnerTensor& x, const Rule<Acc<S>>& rule, Acc<S> scalar, int64_t task, int64_t start) {
  using A = Acc<S>;
  constexpr int V = kVector<S>, N = kInFlight<MOVING>;
  Pack<S, V> p[N], g[N], v[N], r[N];
  const bool rates = x.rate && !x.scalar_rate;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int64_t i = start + (n * kThreads + threadIdx.x) * V;
    g[n] = load<V>(slice<S>(x.g, task) + i);
    p[n] = x.p.data ? load<V>(slice<S>(x.p, task) + i) : g[n];
    r[n] = rates ? load<V>(static_cast<const S*>(x.rate) + i) : g[n];
    if (MOVING) v[n] = load<V>(slice<S>(x.v, task) + i);
  }
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int64_t i = task * x.size + start + (n * kThreads + threadIdx.x) * V;
    A out[V], out_v[V];
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const A rate = rates ? widen(r[n].v[k]) : scalar;
      const A velocity = MOVING ? widen(v[n].v[k]) : A(0);
      move<A, MOVING>(rule, widen(p[n].v[k]), x.p.data, widen(g[n].v[k]), velocity, rate, out[k], out_v[k]);
    }
    write<S, V>(x.out, i, out);
    if (MOVING) write<S, V>(x.out_v, i, out_v);
  }
}

template <class S, bool MOVING>
FM_KERNEL inner_update_kernel(const __grid_constant__ InnerList list, Rule<Acc<S>> rule, int64_t jobs) {
  using A = Acc<S>;
  constexpr int CHUNK = kChunk<S, MOVING>;
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const InnerJob at = find_job(list, job);
    const InnerTensor& x = list.tensors[at.tensor];
    const int64_t chunks = (x.size + CHUNK - 1) / CHUNK;
    const int64_t task = at.job / chunks, start = (at.job - task * chunks) * CHUNK;
    const A rate = x.rate && x.scalar_rate ? widen(*static_cast<const S*>(x.rate)) : A(1);
    if (x.vectors && start + CHUNK <= x.size) {
      move_chunk<S, MOVING>(x, rule, rate, task, start);
    } else {
      const int64_t end = start + CHUNK < x.size ? start + CHUNK : x.size;
      for (int64_t i = start + threadIdx.x; i < end; i += kThreads) move_one<S, MOVING>(x, rule, rate, task, i);
    }
  }
}

// Tasks without a rate of their own element by element are walked as one long task where dense.
template <class S> void prepare(InnerTensor& x, bool moving) {
  const auto dense = [&](const Input& in) { return !in.data || x.tasks <= 1 || in.stride == x.size; };
  if ((!x.rate || x.scalar_rate) && dense(x.p) && dense(x.g) && dense(x.v)) x.size *= x.tasks, x.tasks = 1;
  const auto fits = [&](const Input& in) { return !in.data || aligned<S>(in, x.tasks); };
  x.vectors = fits(x.p) && fits(x.g) && fits(x.v) && fits({x.out, x.size}) && (!moving || fits({x.out_v, x.size})) &&
              (x.scalar_rate || aligned(x.rate));
}

template <class S, bool MOVING> void launch(InnerTensor* tensors, int64_t count, const InnerRule& r, void* stream) {
  for (int64_t i = 0; i < count; ++i) prepare<S>(tensors[i], MOVING);
  const Rule<Acc<S>> rule{Acc<S>(r.scale), Acc<S>(r.momentum), r.nesterov};
  const auto jobs_of = [](const InnerTensor& x) { return x.tasks * ceil_div(x.size, kChunk<S, MOVING>); };
  for_pieces(tensors, count, jobs_of, [&](const InnerList& list, unsigned blocks, int64_t jobs) {
    FM_LAUNCH((inner_update_kernel<S, MOVING>), blocks, kThreads, stream, list, rule, jobs);
  });
}

}  // namespace

int launch_inner_update(Dtype dtype, InnerTensor* tensors, int64_t count, const InnerRule& rule, void* stream) {
  return by_dtype(dtype, [&](auto zero) {
    using S = decltype(zero);
    if (rule.moving) launch<S, true>(tensors, count, rule, stream);
    else launch<S, false>(tensors, count, rule, stream);
  });
}

}  // namespace fastmaml::cuda
