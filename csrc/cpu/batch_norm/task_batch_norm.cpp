// Batch norm of each task by the statistics of its own images, fused with ReLU and 2x2 max pooling,
// and its first two derivatives: checks, layouts, and the arithmetic of one channel.
#include "../kernel_table.h"
#include "../views.h"
#include "second.h"

namespace fastmaml {
namespace {

using batch_norm::Geometry;
using batch_norm::Mode;

// [T, N, C, H, W] in memory order N, H, W, C.
const Sizes kChannelsLast{1, 3, 4, 2};

struct Shape {
  int64_t tasks;
  Geometry q;
  int64_t blocks, strips_per_block;  // of the loops over strips; blocks >= 1
  Sizes x, y, channels;

  Shape(const Tensor& t, bool pool)
      : tasks(t.size(0)), q(t.size(1), t.size(2), t.size(3), t.size(4), pool), x(sizes_of(t)) {
    constexpr int64_t kBlock = 65536;  // elements: a few blocks a task, so that threads can share one
    const int64_t per_group = std::max<int64_t>(1, q.group * q.pixels_per_strip() * q.C);
    strips_per_block = std::max<int64_t>(1, kBlock / per_group) * q.group;
    blocks = std::max<int64_t>(1, divide_up(q.strips(), strips_per_block));
    y = x;
    if (pool) y[3] /= 2, y[4] /= 2;
    channels = {tasks, q.C};
  }

  int64_t x_elements() const { return q.pixels() * q.C; }
  int64_t y_elements() const { return tasks ? y[1] * y[2] * y[3] * y[4] : 0; }
  int64_t block_elements() const { return divide_up(x_elements(), blocks); }
  int64_t first(int64_t block) const { return block * strips_per_block; }
  int64_t last(int64_t block) const { return std::min(q.strips(), first(block) + strips_per_block); }
};

void check_input(const char* op, const Tensor& x, const OptionalTensor& w) {
  check_floating(op, "x", x);
  STD_TORCH_CHECK(x.dim() == 5, op, ": x has shape ", shape_text(sizes_of(x)),
                  ", not [tasks, N, channels, H, W]");
  check_optional(op, "w", w, x.scalar_type(), {x.size(0), x.size(2)});
}

void check_saved(const char* op, const Shape& shape, const Tensor& g, const Tensor& x, const Tensor& mean,
                 const Tensor& rstd, const Tensor& index, bool relu) {
  check_tensor(op, "g", g, x.scalar_type(), shape.y);
  check_tensor(op, "mean", mean, x.scalar_type(), shape.channels);
  check_tensor(op, "rstd", rstd, x.scalar_type(), shape.channels);
  if (relu || shape.q.pool) check_tensor(op, "index", index, ScalarType::Byte, shape.y);
}

// Calls f with the mode as a compile-time constant.
template <class F>
void with_mode(bool relu, bool pool, F&& f) {
  if (pool) return f(std::integral_constant<Mode, Mode::pooled>{});
  if (relu) return f(std::integral_constant<Mode, Mode::masked>{});
  f(std::integral_constant<Mode, Mode::plain>{});
}

// A coefficient of one task's channel that may be missing.
template <class S>
double value(const Input<S>& x, int64_t t, int64_t c, double missing) {
  return x.data ? static_cast<double>(x.task(t)[c]) : missing;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> task_batch_norm(const Tensor& x, const OptionalTensor& w,
                                                           const OptionalTensor& b, double eps, bool relu,
                                                           bool pool) {
  const char* op = "task_batch_norm";
  check_input(op, x, w);
  check_optional(op, "b", b, x.scalar_type(), {x.size(0), x.size(2)});
  const Shape shape(x, pool);
  const Geometry& q = shape.q;
  const int64_t C = q.C, block_pixels = divide_up(q.pixels(), shape.blocks);
  const int32_t dtype = shim_dtype(x);
  Tensor y = empty_in_order(shape.y, kChannelsLast, dtype);
  Tensor mean = empty_dense(shape.channels, dtype), rstd = empty_dense(shape.channels, dtype);
  Tensor index = relu || pool ? empty_in_order(shape.y, kChannelsLast, aoti_torch_dtype_uint8())
                              : nothing(aoti_torch_dtype_uint8());
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    const Input<S> xs(x, kChannelsLast), ws(w, {1}), bs(b, {1});
    S *ys = output<S>(y), *means = output<S>(mean), *rstds = output<S>(rstd);
    uint8_t* indices = output<uint8_t>(index);
    std::vector<double> moments(shape.tasks * shape.blocks * 2 * C);
    std::vector<S> coefs(shape.tasks * 3 * C);
    const auto pixels_of = [&](int64_t block) {
      return std::clamp<int64_t>(q.pixels() - block * block_pixels, 0, block_pixels);
    };
    const auto part = [&](int64_t t, int64_t block) {
      double* sums = moments.data() + (t * shape.blocks + block) * 2 * C;
      if (!pixels_of(block)) return;
      batch_norm::moments<S>(xs.task(t) + block * block_pixels * C, pixels_of(block), C, sums, sums + C);
    };
    const auto combine = [&](int64_t t) {
      S* coef = coefs.data() + t * 3 * C;
      for (int64_t c = 0; c < C; ++c) {
        double count = 0, average = 0, square = 0;
        for (int64_t block = 0; block < shape.blocks; ++block) {
          const double* sums = moments.data() + (t * shape.blocks + block) * 2 * C;
          const double n = static_cast<double>(pixels_of(block));
          if (n == 0) continue;
          const double delta = sums[c] - average;
          average += delta * n / (count + n);
          square += sums[C + c] + delta * delta * n * count / (count + n);
          count += n;
        }
        const double r = 1 / std::sqrt(square / count + eps);
        means[t * C + c] = coef[c] = static_cast<S>(count > 0 ? average : std::nan(""));
        rstds[t * C + c] = static_cast<S>(r);
        coef[C + c] = static_cast<S>(r * value(ws, t, c, 1.0));
        coef[2 * C + c] = static_cast<S>(value(bs, t, c, 0.0));
      }
    };
    with_mode(relu, pool, [&](auto mode) {
      constexpr Mode M = decltype(mode)::value;
      const auto apply = [&](int64_t t, int64_t block) {
        const auto run = relu ? &batch_norm::forward<M, true, S> : &batch_norm::forward<M, false, S>;
        run(q, shape.first(block), shape.last(block), xs.task(t), coefs.data() + t * 3 * C,
            ys + t * shape.y_elements(), M == Mode::plain ? nullptr : indices + t * shape.y_elements());
      };
      parallel_phases(shape.tasks, shape.blocks, shape.block_elements(), part, combine, apply);
    });
  });
  return {y, mean, rstd, index};
}

std::tuple<Tensor, Tensor, Tensor> task_batch_norm_bwd(const Tensor& g, const Tensor& x,
                                                       const OptionalTensor& w, const Tensor& mean,
                                                       const Tensor& rstd, const Tensor& index, bool relu,
                                                       bool pool, int64_t need) {
  const char* op = "task_batch_norm_bwd";
  check_input(op, x, w);
  const Shape shape(x, pool);
  const Geometry& q = shape.q;
  check_saved(op, shape, g, x, mean, rstd, index, relu);
  const int64_t C = q.C, count = q.pixels();
  const int32_t dtype = shim_dtype(x);
  Tensor gx = need & 1 ? empty_in_order(shape.x, kChannelsLast, dtype) : nothing(dtype);
  Tensor gw = empty_dense(shape.channels, dtype), gb = empty_dense(shape.channels, dtype);
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    const Input<S> gs(g, kChannelsLast), xs(x, kChannelsLast), ws(w, {1}), means(mean, {1}), rstds(rstd, {1});
    const Input<uint8_t> from(relu || pool ? OptionalTensor(index) : std::nullopt, kChannelsLast);
    S *gxs = need & 1 ? output<S>(gx) : nullptr, *gws = output<S>(gw), *gbs = output<S>(gb);
    std::vector<double> parts(shape.tasks * shape.blocks * 2 * C);
    std::vector<S> coefs(shape.tasks * 4 * C);
    const auto combine = [&](int64_t t) {
      S* coef = coefs.data() + t * 4 * C;
      for (int64_t c = 0; c < C; ++c) {
        double sum = 0, product = 0;
        for (int64_t block = 0; block < shape.blocks; ++block) {
          const double* sums = parts.data() + (t * shape.blocks + block) * 2 * C;
          sum += sums[c];
          product += sums[C + c];
        }
        const double r = rstds.task(t)[c], A = r * value(ws, t, c, 1.0);
        gbs[t * C + c] = static_cast<S>(sum);
        gws[t * C + c] = static_cast<S>(count ? r * product : 0.0);  // no images: rstd is NaN
        coef[c] = means.task(t)[c];
        coef[C + c] = static_cast<S>(A);
        coef[2 * C + c] = static_cast<S>(-A * r * r * product / count);
        coef[3 * C + c] = static_cast<S>(-A * sum / count);
      }
    };
    with_mode(relu, pool, [&](auto mode) {
      constexpr Mode M = decltype(mode)::value;
      const auto part = [&](int64_t t, int64_t block) {
        batch_norm::backward_sums<M, S>(q, shape.first(block), shape.last(block), gs.task(t), from.task(t),
                                        xs.task(t), means.task(t),
                                        parts.data() + (t * shape.blocks + block) * 2 * C);
      };
      const auto apply = [&](int64_t t, int64_t block) {
        if (!gxs) return;
        batch_norm::backward<M, S>(q, shape.first(block), shape.last(block), gs.task(t), from.task(t),
                                   xs.task(t), coefs.data() + t * 4 * C, gxs + t * shape.x_elements());
      };
      parallel_phases(shape.tasks, shape.blocks, shape.block_elements(), part, combine, apply);
    });
  });
  return {gx, need & 2 ? gw : nothing(dtype), need & 4 ? gb : nothing(dtype)};
}

std::tuple<Tensor, Tensor, Tensor> task_batch_norm_bwd2(
    const OptionalTensor& hx, const OptionalTensor& hw, const OptionalTensor& hb, const Tensor& g,
    const Tensor& x, const OptionalTensor& w, const Tensor& mean, const Tensor& rstd, const Tensor& index,
    bool relu, bool pool, int64_t need) {
  const char* op = "task_batch_norm_bwd2";
  check_input(op, x, w);
  const Shape shape(x, pool);
  const Geometry& q = shape.q;
  check_saved(op, shape, g, x, mean, rstd, index, relu);
  check_optional(op, "hx", hx, x.scalar_type(), shape.x);
  check_optional(op, "hw", hw, x.scalar_type(), shape.channels);
  check_optional(op, "hb", hb, x.scalar_type(), shape.channels);
  const int64_t C = q.C;
  const double count = static_cast<double>(q.pixels());
  const int32_t dtype = shim_dtype(x);
  Tensor gg = need & 1 ? empty_in_order(shape.y, kChannelsLast, dtype) : nothing(dtype);
  Tensor gx = need & 2 ? empty_in_order(shape.x, kChannelsLast, dtype) : nothing(dtype);
  Tensor gw = empty_dense(shape.channels, dtype);
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    const Input<S> gs(g, kChannelsLast), xs(x, kChannelsLast), ws(w, {1}), means(mean, {1}), rstds(rstd, {1});
    const Input<S> hws(hw, {1}), hbs(hb, {1});
    // A missing hx is read as x, with coefficients of zero.
    const Input<S> hs(hx ? *hx : xs.tensor, kChannelsLast);
    const Input<uint8_t> from(relu || pool ? OptionalTensor(index) : std::nullopt, kChannelsLast);
    S *ggs = need & 1 ? output<S>(gg) : nullptr, *gxs = need & 2 ? output<S>(gx) : nullptr;
    S* gws = output<S>(gw);
    std::vector<double> parts(shape.tasks * shape.blocks * 5 * C);
    std::vector<S> coefs(shape.tasks * 8 * C);
    const auto combine = [&](int64_t t) {
      S* coef = coefs.data() + t * 8 * C;
      for (int64_t c = 0; c < C; ++c) {
        double sums[5] = {};
        for (int64_t block = 0; block < shape.blocks; ++block) {
          for (int k = 0; k < 5; ++k) sums[k] += parts[((t * shape.blocks + block) * 5 + k) * C + c];
        }
        const double r = rstds.task(t)[c], wc = value(ws, t, c, 1.0), hwc = value(hws, t, c, 0.0);
        const double G = sums[0] / count, nG = r * sums[1] / count, given = hx ? 1.0 : 0.0;
        const double Gh = given * sums[2] / count, h = given * sums[3] / count;
        const double nh = given * r * sums[4] / count, k = Gh - G * h - nG * nh;
        gws[t * C + c] = static_cast<S>(count > 0 ? count * r * k : 0.0);
        const double A = r * (hwc - r * wc * nh), B = given * -r * r * wc * nG;
        const double of_channel[8] = {means.task(t)[c],
                                      given * wc * r,
                                      r * (hwc - wc * r * nh),
                                      value(hbs, t, c, 0.0) - wc * r * h,
                                      A,
                                      B,
                                      r * (-A * nG - B * nh - r * r * wc * k),
                                      -A * G - B * h};
        for (int i = 0; i < 8; ++i) coef[i * C + c] = static_cast<S>(of_channel[i]);
      }
    };
    with_mode(relu, pool, [&](auto mode) {
      constexpr Mode M = decltype(mode)::value;
      const auto part = [&](int64_t t, int64_t block) {
        batch_norm::second_sums<M, S>(q, shape.first(block), shape.last(block), hs.task(t), gs.task(t),
                                      from.task(t), xs.task(t), means.task(t),
                                      parts.data() + (t * shape.blocks + block) * 5 * C);
      };
      const auto apply = [&](int64_t t, int64_t block) {
        batch_norm::second<M, S>(q, shape.first(block), shape.last(block), hs.task(t), gs.task(t),
                                 from.task(t), xs.task(t), coefs.data() + t * 8 * C,
                                 ggs ? ggs + t * shape.y_elements() : nullptr,
                                 gxs ? gxs + t * shape.x_elements() : nullptr);
      };
      parallel_phases(shape.tasks, shape.blocks, shape.block_elements(), part, combine, apply);
    });
  });
  return {gg, gx, need & 4 ? gw : nothing(dtype)};
}

}  // namespace
}  // namespace fastmaml

STABLE_TORCH_LIBRARY_IMPL(fastmaml, CPU, m) {
  FM_CPU_KERNEL(m, task_batch_norm);
  FM_CPU_KERNEL(m, task_batch_norm_bwd);
  FM_CPU_KERNEL(m, task_batch_norm_bwd2);
}
