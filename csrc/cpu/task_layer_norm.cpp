// Layer norm with a weight and bias of each task's own, and its first two derivatives.
#include "kernel_table.h"
#include "layer_norm_rows.h"

#include "views.h"
#include "work.h"

namespace fastmaml {
namespace {

// Rows of a task are worked off in blocks of about this many elements.
constexpr int64_t kBlock = 16384;

struct Shape {
  int64_t tasks, rows, width, block, blocks;

  explicit Shape(const Tensor& x)
      : tasks(x.size(0)),
        rows(x.size(1)),
        width(x.size(2)),
        block(std::max<int64_t>(1, kBlock / std::max<int64_t>(1, width))),
        blocks(divide_up(rows, block)) {}
};

void check_input(const char* op, const Tensor& x, const OptionalTensor& w) {
  check_floating(op, "x", x);
  STD_TORCH_CHECK(x.dim() == 3, op, ": x has shape ", shape_text(sizes_of(x)), ", not [tasks, rows, width]");
  check_optional(op, "w", w, x.scalar_type(), {x.size(0), x.size(2)});
}

void check_saved(const char* op, const Tensor& g, const Tensor& x, const Tensor& mean, const Tensor& rstd) {
  check_tensor(op, "g", g, x.scalar_type(), sizes_of(x));
  check_tensor(op, "mean", mean, x.scalar_type(), {x.size(0), x.size(1)});
  check_tensor(op, "rstd", rstd, x.scalar_type(), {x.size(0), x.size(1)});
}

// A [T, D] parameter of which a missing one is a constant row.
template <class S>
struct Parameter {
  std::vector<S> constant;
  Input<S> input;

  Parameter(const OptionalTensor& x, S value, int64_t width)
      : constant(x ? 0 : width, value), input(x, {1}) {}
  const S* task(int64_t t) const { return input.data ? input.task(t) : constant.data(); }
};

// f(task, first row, number of rows, block) over all blocks of rows.
template <class F>
void for_row_blocks(const Shape& shape, const F& f) {
  parallel(shape.tasks * shape.blocks, shape.block * shape.width, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = i % shape.blocks * shape.block;
      f(i / shape.blocks, from, std::min(shape.block, shape.rows - from), i);
    }
  });
}

// Writes the sum over a task's blocks of `part` (kinds x width numbers a block) to [T, D].
template <class S>
void sum_blocks(const Shape& shape, const std::vector<double>& part, int64_t kinds, int64_t kind, S* out) {
  const int64_t D = shape.width;
  std::vector<double> sum(D);
  for (int64_t t = 0; t < shape.tasks; ++t) {
    std::fill(sum.begin(), sum.end(), 0.0);
    for (int64_t b = 0; b < shape.blocks; ++b) {
      const double* from = part.data() + ((t * shape.blocks + b) * kinds + kind) * D;
      for (int64_t i = 0; i < D; ++i) sum[i] += from[i];
    }
    for (int64_t i = 0; i < D; ++i) out[t * D + i] = static_cast<S>(sum[i]);
  }
}

std::tuple<Tensor, Tensor, Tensor> task_layer_norm(const Tensor& x, const OptionalTensor& w,
                                                   const OptionalTensor& b, double eps) {
  const char* op = "task_layer_norm";
  check_input(op, x, w);
  check_optional(op, "b", b, x.scalar_type(), {x.size(0), x.size(2)});
  const Shape shape(x);
  const int32_t dtype = shim_dtype(x);
  Tensor y = empty_dense(sizes_of(x), dtype);
  Tensor mean = empty_dense({shape.tasks, shape.rows}, dtype);
  Tensor rstd = empty_dense({shape.tasks, shape.rows}, dtype);
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    const Input<S> xs(x, {1, 2});
    const Parameter<S> ws(w, S(1), shape.width), bs(b, S(0), shape.width);
    S *ys = output<S>(y), *means = output<S>(mean), *rstds = output<S>(rstd);
    for_row_blocks(shape, [&](int64_t t, int64_t from, int64_t rows, int64_t) {
      const int64_t row = t * shape.rows + from;
      layer_norm::forward<S>(xs.task(t) + from * shape.width, ws.task(t), bs.task(t), static_cast<S>(eps),
                             ys + row * shape.width, means + row, rstds + row, rows, shape.width);
    });
  });
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> task_layer_norm_bwd(const Tensor& g, const Tensor& x,
                                                       const OptionalTensor& w, const Tensor& mean,
                                                       const Tensor& rstd, int64_t need) {
  const char* op = "task_layer_norm_bwd";
  check_input(op, x, w);
  check_saved(op, g, x, mean, rstd);
  const Shape shape(x);
  const int64_t D = shape.width;
  const int32_t dtype = shim_dtype(x);
  Tensor gx = need & 1 ? empty_dense(sizes_of(x), dtype) : nothing(dtype);
  Tensor gw = need & 2 ? empty_dense({shape.tasks, D}, dtype) : nothing(dtype);
  Tensor gb = need & 4 ? empty_dense({shape.tasks, D}, dtype) : nothing(dtype);
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    const Input<S> gs(g, {1, 2}), xs(x, {1, 2}), means(mean, {1}), rstds(rstd, {1});
    const Parameter<S> ws(w, S(1), D);
    S* out = need & 1 ? output<S>(gx) : nullptr;
    std::vector<double> part(shape.tasks * shape.blocks * 2 * D);
    for_row_blocks(shape, [&](int64_t t, int64_t from, int64_t rows, int64_t block) {
      std::vector<S> sums(2 * D);
      for (int64_t i = from; i < from + rows; i += layer_norm::kChunk) {
        layer_norm::backward<S>(gs.task(t) + i * D, xs.task(t) + i * D, ws.task(t), means.task(t) + i,
                                rstds.task(t) + i, out ? out + (t * shape.rows + i) * D : nullptr,
                                sums.data(), sums.data() + D,
                                std::min(layer_norm::kChunk, from + rows - i), D);
        layer_norm::flush(sums.data(), part.data() + block * 2 * D, 2 * D);
      }
    });
    if (need & 2) sum_blocks(shape, part, 2, 0, output<S>(gw));
    if (need & 4) sum_blocks(shape, part, 2, 1, output<S>(gb));
  });
  return {gx, gw, gb};
}

std::tuple<Tensor, Tensor, Tensor> task_layer_norm_bwd2(
    const OptionalTensor& hx, const OptionalTensor& hw, const OptionalTensor& hb, const Tensor& g,
    const Tensor& x, const OptionalTensor& w, const Tensor& mean, const Tensor& rstd, int64_t need) {
  const char* op = "task_layer_norm_bwd2";
  check_input(op, x, w);
  check_saved(op, g, x, mean, rstd);
  const Shape shape(x);
  const int64_t D = shape.width;
  check_optional(op, "hx", hx, x.scalar_type(), sizes_of(x));
  check_optional(op, "hw", hw, x.scalar_type(), {shape.tasks, D});
  check_optional(op, "hb", hb, x.scalar_type(), {shape.tasks, D});
  const int32_t dtype = shim_dtype(x);
  Tensor gg = need & 1 ? empty_dense(sizes_of(x), dtype) : nothing(dtype);
  Tensor gx = need & 2 ? empty_dense(sizes_of(x), dtype) : nothing(dtype);
  Tensor gw = need & 4 ? empty_dense({shape.tasks, D}, dtype) : nothing(dtype);
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    const Input<S> hs(hx, {1, 2}), gs(g, {1, 2}), xs(x, {1, 2}), means(mean, {1}), rstds(rstd, {1});
    const Parameter<S> ws(w, S(1), D), hws(hw, S(0), D), hbs(hb, S(0), D);
    const std::vector<S> zeros(hx ? 0 : D);
    S* ggs = need & 1 ? output<S>(gg) : nullptr;
    S* gxs = need & 2 ? output<S>(gx) : nullptr;
    std::vector<double> part(shape.tasks * shape.blocks * D);
    for_row_blocks(shape, [&](int64_t t, int64_t from, int64_t rows, int64_t block) {
      std::vector<S> sums(D);
      for (int64_t i = from; i < from + rows; i += layer_norm::kChunk) {
        const int64_t out = (t * shape.rows + i) * D;
        const layer_norm::Second<S> io{hx ? hs.task(t) + i * D : zeros.data(), hws.task(t), hbs.task(t),
                                       gs.task(t) + i * D, xs.task(t) + i * D, ws.task(t),
                                       means.task(t) + i, rstds.task(t) + i, hx ? D : 0,
                                       ggs ? ggs + out : nullptr, gxs ? gxs + out : nullptr, sums.data()};
        layer_norm::second(io, std::min(layer_norm::kChunk, from + rows - i), D);
        layer_norm::flush(sums.data(), part.data() + block * D, D);
      }
    });
    if (need & 4) sum_blocks(shape, part, 1, 0, output<S>(gw));
  });
  return {gg, gx, gw};
}

}  // namespace
}  // namespace fastmaml

STABLE_TORCH_LIBRARY_IMPL(fastmaml, CPU, m) {
  FM_CPU_KERNEL(m, task_layer_norm);
  FM_CPU_KERNEL(m, task_layer_norm_bwd);
  FM_CPU_KERNEL(m, task_layer_norm_bwd2);
}
