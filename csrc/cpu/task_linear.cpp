// Linear layers with weights of their own per task, and their two gradients: three calls of gemm.
#include "kernel_table.h"
#include "../math/activation.h"
#include "gemm/kernels.h"
#include "scratch.h"
#include "simd.h"
#include "views.h"
#include "work.h"

namespace fastmaml {
namespace {

// Names of scratch buffers.
struct Packed;
struct Offsets;
struct Turned;

// C [rows, columns] of one task = A · B, where B [depth, columns] is packed unless it is used as is.
template <class S>
struct Product {
  int64_t rows, columns, depth;
  int64_t a_row, a_step;   // of A, in elements
  int64_t b_step;
  bool transposed;         // B lies as [columns, depth]
};

// Whether packing B pays: strided rows of a wide matrix share few cache sets and many pages.
template <class S>
bool packs(const Product<S>& p) {
  const int64_t lanes = kernels<S>().lanes;
  return p.transposed || p.columns < lanes || (p.columns > 8 * lanes && p.rows >= 64);
}

template <class S>
int64_t packed_size(const Product<S>& p) {
  return p.depth * std::max(p.columns, kernels<S>().lanes);
}

template <class S>
const S* pack(const Product<S>& p, const S* b, S* out) {
  const Kernels<S>& k = kernels<S>();
  if (p.transposed) k.pack_transposed(out, b, p.b_step, p.depth, p.columns);
  else k.pack(out, b, p.b_step, p.depth, p.columns);
  return out;
}

// A product of few columns would leave most lanes of gemm's vectors empty: a layer with one or a few
// outputs, and the weight gradient of a layer with one input, go along their other dimension.
template <class S>
bool dots_fit(const Product<S>& p) {
  return p.transposed && p.a_step == 1 && p.columns * 4 <= kernels<S>().lanes;
}

template <class S>
bool sums_fit(const Product<S>& p) {
  return !p.transposed && p.columns == 1 && p.a_row == 1;
}

template <class S>
FM_CLONES void dots(const Product<S>& p, const S* a, const S* b, S* c, const S* bias, bool relu,
                    int64_t begin, int64_t end) {
  for (int64_t m = begin; m < end; ++m) {
    const S* row = a + m * p.a_row;
    for (int64_t n = 0; n < p.columns; ++n) {
      const S* column = b + n * p.b_step;
      S sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t k = 0; k < p.depth; ++k) sum += row[k] * column[k];
      if (bias) sum += bias[n];
      c[m * p.columns + n] = relu && sum < 0 ? S(0) : sum;
    }
  }
}

template <class S>
FM_CLONES void sums(const Product<S>& p, const S* a, const S* b, S* c, int64_t begin, int64_t end) {
#pragma omp simd
  for (int64_t m = begin; m < end; ++m) c[m] = 0;
  for (int64_t k = 0; k < p.depth; ++k) {
    const S* row = a + k * p.a_step;
    const S weight = b[k * p.b_step];
#pragma omp simd
    for (int64_t m = begin; m < end; ++m) c[m] += row[m] * weight;
  }
}

// A long sum goes in pieces whose rows of A and B stay in the caches; where A lies across, in parts of
// its rows as well, each turned around first: its columns may be a power of two apart.
constexpr int64_t kDepth = 256, kTurned = 192;

// Rows [begin, end) of one task's product, of terms [from, from + length) of every sum.
template <class S>
void multiply_piece(const Product<S>& p, const S* a, int64_t a_row, int64_t a_step, const S* b, bool packed, S* c,
                    const S* bias, bool relu, int64_t begin, int64_t end, int64_t from, int64_t length) {
  int64_t* rows = scratch<Offsets, int64_t>(2 * (end - begin));
  int64_t* c_row = rows + (end - begin);
  for (int64_t m = begin; m < end; ++m) {
    rows[m - begin] = (m - begin) * a_row;
    c_row[m - begin] = m * p.columns;
  }
  const int64_t a_segment = 0;
  Gemm<S> g;
  g.a = a, g.b = b, g.c = c, g.bias = bias;
  g.rows = end - begin, g.columns = p.columns;
  g.a_row = rows, g.c_row = c_row;
  g.segments = 1, g.length = length, g.a_segment = &a_segment, g.b_segment = &from;
  g.a_step = a_step, g.b_step = p.b_step;
  if (packed) g.depth = p.depth;
  g.accumulate = from > 0;
  g.relu = relu && from + length == p.depth;
  kernels<S>().gemm(g);
}

// Rows [begin, end) of one task's product.
template <class S>
void multiply(const Product<S>& p, const S* a, const S* b, bool packed, S* c, const S* bias, bool relu,
              int64_t begin, int64_t end) {
  const int64_t lanes = kernels<S>().lanes;
  const bool turns = p.a_row == 1 && p.a_step > 1 && p.depth >= lanes && end - begin >= lanes;
  if (!turns && p.a_step == 1)
    return multiply_piece(p, a + begin * p.a_row, p.a_row, 1, b, packed, c, bias, relu, begin, end, 0, p.depth);
  for (int64_t from = 0; from == 0 || from < p.depth; from += kDepth) {
    const int64_t length = std::min(kDepth, p.depth - from);
    const S* terms = a + from * p.a_step;
    if (!turns) {
      multiply_piece(p, terms + begin * p.a_row, p.a_row, p.a_step, b, packed, c, bias, relu, begin, end, from,
                     length);
      continue;
    }
    const int64_t row = length + lanes;  // not a power of two, and room for what transpose fills up
    for (int64_t m = begin; m < end; m += kTurned) {
      const int64_t past = std::min(end, m + kTurned);
      S* turned = scratch<Turned, S>(row * kTurned);
      kernels<S>().transpose(turned, row, terms + m, p.a_step, length, past - m);
      multiply_piece(p, turned, row, 1, b, packed, c, bias, relu, m, past, from, length);
    }
  }
}

// y = a(s), after the product: gemm itself knows only relu.
template <math::Act A, class S>
FM_CLONES void activate(S* y, const S* s, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) y[i] = math::activate<A>(s[i]);
}

// All tasks' products; `after` sees the part [begin, end) of c that is done.
template <class S, class After>
void for_all_tasks(int64_t tasks, const Product<S>& p, const Input<S>& a, const Input<S>& b, S* c,
                   const Input<S>* bias, bool relu, const After& after) {
  if (tasks == 0 || p.rows == 0 || p.columns == 0) return;
  const double flops = 2.0 * p.rows * p.columns * p.depth;
  const int64_t parts = parts_per_task(tasks, (p.rows + 23) / 24, flops);
  const bool direct = dots_fit(p) || sums_fit(p);
  const bool packed = !direct && packs(p);
  // Packed weights that several units share are packed once, before; else where they are used.
  const bool ahead = packed && (parts > 1 || (b.stride == 0 && tasks > 1));
  const int64_t sets = b.stride == 0 ? 1 : tasks, size = packed_size(p);
  const Tensor workspace = empty_dense({ahead ? sets * size : 0}, shim_dtype(b.tensor));
  S* shared = output<S>(workspace);
  if (ahead)
    for_each_unit(sets, 8.0 * size, [&](int64_t t) { pack(p, b.task(t), shared + t * size); });
  for_each_unit(tasks * parts, flops / parts, [&](int64_t unit) {
    const int64_t t = unit / parts, part = unit % parts;
    const S* weights = b.task(t);
    if (ahead) weights = shared + (b.stride == 0 ? 0 : t * size);
    else if (packed) weights = pack(p, weights, scratch<Packed, S>(size));
    const int64_t begin = part * p.rows / parts, end = (part + 1) * p.rows / parts;
    const int64_t done = t * p.rows * p.columns;
    const S* start = bias ? bias->task(t) : nullptr;
    if (dots_fit(p)) dots(p, a.task(t), weights, c + done, start, relu, begin, end);
    else if (direct) sums(p, a.task(t), weights, c + done, begin, end);
    else multiply(p, a.task(t), weights, packed, c + done, start, relu, begin, end);
    after(done + begin * p.columns, done + end * p.columns);
  });
}

void nothing_after(int64_t, int64_t) {}

std::tuple<Tensor, Tensor> task_linear(const Tensor& x, const Tensor& w, const OptionalTensor& b,
                                       int64_t act) {
  const char* op = "task_linear";
  check_rank(op, "x", x, 3);
  check_rank(op, "w", w, 3);
  check_floating(op, "x", x);
  const int64_t tasks = x.size(0), rows = x.size(1), inputs = x.size(2), outputs = w.size(1);
  check_tensor(op, "w", w, x.scalar_type(), {tasks, outputs, inputs});
  check_optional(op, "b", b, x.scalar_type(), {tasks, outputs});
  check_act(op, act);
  const int32_t dtype = shim_dtype(x);
  Tensor y = empty_dense({tasks, rows, outputs}, dtype), s = nothing(dtype);
  with_scalar(x, [&](auto scalar) {
    using S = decltype(scalar);
    const Input<S> from(x, row_major(3)), weights(w, row_major(3)), bias(b, row_major(2));
    const Product<S> p{rows, outputs, inputs, inputs, 1, inputs, true};
    math::with_act(act, [&](auto tag) {
      constexpr math::Act A = decltype(tag)::value;
      if (math::at_input<A>) s = empty_dense({tasks, rows, outputs}, dtype);
      S* out = output<S>(y);
      S* pre = math::at_input<A> ? output<S>(s) : out;
      constexpr bool relu = A == math::Act::relu, other = !relu && A != math::Act::none;
      const auto finish = [&](int64_t begin, int64_t end) {
        if (other) activate<A>(out + begin, pre + begin, end - begin);
      };
      for_all_tasks(tasks, p, from, weights, pre, &bias, relu, finish);
    });
  });
  return {y, s};
}

Tensor task_linear_dgrad(const Tensor& g, const Tensor& w) {
  const char* op = "task_linear_dgrad";
  check_rank(op, "g", g, 3);
  check_rank(op, "w", w, 3);
  check_floating(op, "g", g);
  const int64_t tasks = g.size(0), rows = g.size(1), inputs = w.size(2), outputs = g.size(2);
  check_tensor(op, "w", w, g.scalar_type(), {tasks, outputs, inputs});
  Tensor gx = empty_dense({tasks, rows, inputs}, shim_dtype(g));
  with_scalar(g, [&](auto scalar) {
    using S = decltype(scalar);
    const Input<S> from(g, row_major(3)), weights(w, row_major(3));
    const Product<S> p{rows, inputs, outputs, outputs, 1, inputs, false};
    for_all_tasks<S>(tasks, p, from, weights, output<S>(gx), nullptr, false, nothing_after);
  });
  return gx;
}

std::tuple<Tensor, Tensor> task_linear_wgrad(const Tensor& g, const Tensor& x, bool bias) {
  const char* op = "task_linear_wgrad";
  check_rank(op, "g", g, 3);
  check_rank(op, "x", x, 3);
  check_floating(op, "g", g);
  const int64_t tasks = g.size(0), rows = g.size(1), inputs = x.size(2), outputs = g.size(2);
  check_tensor(op, "x", x, g.scalar_type(), {tasks, rows, inputs});
  const int32_t dtype = shim_dtype(g);
  Tensor gw = empty_dense({tasks, outputs, inputs}, dtype);
  Tensor gb = bias ? empty_dense({tasks, outputs}, dtype) : nothing(dtype);
  with_scalar(g, [&](auto scalar) {
    using S = decltype(scalar);
    const Input<S> from(g, row_major(3)), features(x, row_major(3));
    const Product<S> p{outputs, inputs, rows, 1, outputs, inputs, false};
    for_all_tasks<S>(tasks, p, from, features, output<S>(gw), nullptr, false, nothing_after);
    if (bias)
      for_each_unit(tasks, rows * outputs, [&](int64_t t) {
        kernels<S>().sum_rows(output<S>(gb) + t * outputs, from.task(t), outputs, rows, outputs);
      });
  });
  return {gw, gb};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastmaml, CPU, m) {
  FM_CPU_KERNEL(m, task_linear);
  FM_CPU_KERNEL(m, task_linear_dgrad);
  FM_CPU_KERNEL(m, task_linear_wgrad);
}

}  // namespace fastmaml
