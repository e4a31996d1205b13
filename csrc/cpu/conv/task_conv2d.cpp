// 2-D convolutions with weights of their own per task, and their two gradients.
#include "../kernel_table.h"
#include "../views.h"
#include "../work.h"
#include "conv.h"

namespace fastmaml {
namespace {

struct Weights;

const Sizes kImage = {1, 3, 4, 2};    // channels-last within a task: N, H, W, C
const Sizes kWeights = {3, 4, 2, 1};  // kernel_h, kernel_w, C, O

void check_image(const char* op, const char* name, const Tensor& x) {
  check_floating(op, name, x);
  STD_TORCH_CHECK(x.dim() == 5, op, ": ", name, " has shape ", shape_text(sizes_of(x)),
                  "; it needs 5 dimensions: tasks, images, channels, height, width");
}

void check_weights(const char* op, const Tensor& w) {
  STD_TORCH_CHECK(w.dim() == 5, op, ": w has shape ", shape_text(sizes_of(w)),
                  "; it needs 5 dimensions: tasks, outputs, channels, kernel height, kernel width");
}

Conv geometry(const char* op, const Sizes& stride, const Sizes& padding, const Sizes& dilation) {
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, op,
                  ": stride, padding and dilation are pairs");
  STD_TORCH_CHECK(stride[0] > 0 && stride[1] > 0, op, ": stride must be positive");
  STD_TORCH_CHECK(padding[0] >= 0 && padding[1] >= 0, op, ": padding must not be negative");
  STD_TORCH_CHECK(dilation[0] > 0 && dilation[1] > 0, op, ": dilation must be positive");
  Conv v{};
  v.stride_h = stride[0], v.stride_w = stride[1];
  v.pad_h = padding[0], v.pad_w = padding[1];
  v.dilation_h = dilation[0], v.dilation_w = dilation[1];
  return v;
}

void set_x(Conv& v, const Tensor& x) {
  v.tasks = x.size(0), v.images = x.size(1), v.channels = x.size(2);
  v.height = x.size(3), v.width = x.size(4);
}

void set_output(const char* op, Conv& v) {
  const int64_t high = v.height + 2 * v.pad_h - v.dilation_h * (v.kernel_h - 1) - 1;
  const int64_t wide = v.width + 2 * v.pad_w - v.dilation_w * (v.kernel_w - 1) - 1;
  STD_TORCH_CHECK(v.kernel_h > 0 && v.kernel_w > 0, op, ": the kernel is empty");
  STD_TORCH_CHECK(high >= 0 && wide >= 0, op, ": the kernel of ", v.kernel_h, " x ", v.kernel_w,
                  " is larger than the padded image of ", v.height, " x ", v.width);
  v.out_height = high / v.stride_h + 1, v.out_width = wide / v.stride_w + 1;
}

// Runs f(task, weights, begin, end) over the rows of all tasks, with the weights that `pack` makes
// of a task's own (when `packs`).
template <class S, class Pack, class F>
void for_all_tasks(const Conv& v, const Input<S>& w, int64_t rows, bool packs, int64_t packed_size,
                   const Pack& pack, const F& f) {
  const int64_t parts = parts_per_task(v.tasks, rows, v.flops());
  // Packed weights that several units share are packed once, before; else where they are used.
  const bool ahead = packs && (parts > 1 || (w.stride == 0 && v.tasks > 1));
  const int64_t sets = w.stride == 0 ? 1 : v.tasks;
  const Tensor workspace = empty_dense({ahead ? sets * packed_size : 0}, shim_dtype(w.tensor));
  S* shared = output<S>(workspace);
  if (ahead)
    for_each_unit(sets, 8.0 * packed_size, [&](int64_t t) { pack(shared + t * packed_size, w.task(t)); });
  for_each_unit(v.tasks * parts, v.flops() / parts, [&](int64_t unit) {
    const int64_t t = unit / parts, part = unit % parts;
    const S* weights = w.task(t);
    if (ahead) {
      weights = shared + (w.stride == 0 ? 0 : t * packed_size);
    } else if (packs) {
      S* own = scratch<Weights, S>(packed_size);
      pack(own, weights);
      weights = own;
    }
    f(t, weights, part * rows / parts, (part + 1) * rows / parts);
  });
}

Tensor task_conv2d(const Tensor& x, const Tensor& w, const OptionalTensor& b, const Sizes& stride,
                   const Sizes& padding, const Sizes& dilation) {
  const char* op = "task_conv2d";
  check_image(op, "x", x);
  check_weights(op, w);
  Conv v = geometry(op, stride, padding, dilation);
  set_x(v, x);
  v.outputs = w.size(1), v.kernel_h = w.size(3), v.kernel_w = w.size(4);
  check_tensor(op, "w", w, x.scalar_type(), {v.tasks, v.outputs, v.channels, v.kernel_h, v.kernel_w});
  check_optional(op, "b", b, x.scalar_type(), {v.tasks, v.outputs});
  set_output(op, v);
  Tensor y = empty_in_order({v.tasks, v.images, v.outputs, v.out_height, v.out_width}, kImage, shim_dtype(x));
  if (y.numel() == 0) return y;
  with_scalar(x, [&](auto scalar) {
    using S = decltype(scalar);
    const Input<S> from(x, kImage), weights(w, kWeights), bias(b, row_major(2));
    const int64_t lanes = kernels<S>().lanes, depth = v.taps() * v.channels;
    const bool narrow = v.outputs < lanes;
    const auto widen = [&](S* packed, const S* task) {
      kernels<S>().pack(packed, task, v.outputs, depth, v.outputs);
    };
    for_all_tasks<S>(v, weights, v.images * v.out_height, narrow, depth * lanes, widen,
                     [&](int64_t t, const S* task, int64_t begin, int64_t end) {
                       conv_forward(v, from.task(t), task, narrow ? lanes : v.outputs, bias.task(t),
                                    output<S>(y) + t * v.y_size(), begin, end);
                     });
  });
  return y;
}

Tensor task_conv2d_dgrad(const Tensor& g, const Tensor& w, const Sizes& stride, const Sizes& padding,
                         const Sizes& dilation, const Sizes& size) {
  const char* op = "task_conv2d_dgrad";
  check_image(op, "g", g);
  check_weights(op, w);
  STD_TORCH_CHECK(size.size() == 2 && size[0] >= 0 && size[1] >= 0, op,
                  ": size is the height and width of x");
  Conv v = geometry(op, stride, padding, dilation);
  v.tasks = g.size(0), v.images = g.size(1), v.channels = w.size(2), v.height = size[0], v.width = size[1];
  v.outputs = g.size(2), v.kernel_h = w.size(3), v.kernel_w = w.size(4);
  check_tensor(op, "w", w, g.scalar_type(), {v.tasks, v.outputs, v.channels, v.kernel_h, v.kernel_w});
  set_output(op, v);
  check_tensor(op, "g", g, g.scalar_type(), {v.tasks, v.images, v.outputs, v.out_height, v.out_width});
  Tensor gx = empty_in_order({v.tasks, v.images, v.channels, v.height, v.width}, kImage, shim_dtype(g));
  if (gx.numel() == 0) return gx;
  with_scalar(g, [&](auto scalar) {
    using S = decltype(scalar);
    const Input<S> from(g, kImage), weights(w, kWeights);
    const int64_t O = v.outputs, C = v.channels, wide = std::max(C, kernels<S>().lanes);
    const auto turn = [&](S* packed, const S* task) {  // [taps, C, O] to [taps, O, C]
      for (int64_t k = 0; k < v.taps(); ++k)
        kernels<S>().transpose(packed + k * O * wide, wide, task + k * C * O, O, C, O);
    };
    for_all_tasks<S>(v, weights, v.images * v.height, true, v.taps() * O * wide, turn,
                     [&](int64_t t, const S* task, int64_t begin, int64_t end) {
                       conv_dgrad(v, from.task(t), task, wide, output<S>(gx) + t * v.x_size(), begin, end);
                     });
  });
  return gx;
}

std::tuple<Tensor, Tensor> task_conv2d_wgrad(const Tensor& g, const Tensor& x, const Sizes& stride,
                                             const Sizes& padding, const Sizes& dilation,
                                             const Sizes& kernel, bool bias) {
  const char* op = "task_conv2d_wgrad";
  check_image(op, "g", g);
  check_image(op, "x", x);
  STD_TORCH_CHECK(kernel.size() == 2, op, ": kernel is the height and width of w");
  Conv v = geometry(op, stride, padding, dilation);
  set_x(v, x);
  v.outputs = g.size(2), v.kernel_h = kernel[0], v.kernel_w = kernel[1];
  set_output(op, v);
  check_tensor(op, "g", g, x.scalar_type(), {v.tasks, v.images, v.outputs, v.out_height, v.out_width});
  const int32_t dtype = shim_dtype(g);
  Tensor gw = empty_in_order({v.tasks, v.outputs, v.channels, v.kernel_h, v.kernel_w}, kWeights, dtype);
  Tensor gb = bias ? empty_dense({v.tasks, v.outputs}, dtype) : nothing(dtype);
  if (v.tasks == 0 || v.outputs == 0) return {gw, gb};
  with_scalar(g, [&](auto scalar) {
    using S = decltype(scalar);
    const Input<S> from(g, kImage), inputs(x, kImage);
    const int64_t rows = v.taps() * v.channels, pixels = v.images * v.out_height * v.out_width;
    const int64_t parts = parts_per_task(v.tasks, std::max<int64_t>(1, rows / 48), v.flops());
    for_each_unit(v.tasks * parts, v.flops() / parts, [&](int64_t unit) {
      const int64_t t = unit / parts, part = unit % parts;
      const int64_t begin = part * rows / parts, end = (part + 1) * rows / parts;
      S* out = output<S>(gw) + t * v.w_size();
      if (begin < end) conv_wgrad(v, from.task(t), inputs.task(t), out, begin, end);
      if (bias && part == 0)
        kernels<S>().sum_rows(output<S>(gb) + t * v.outputs, from.task(t), v.outputs, pixels, v.outputs);
    });
  });
  return {gw, gb};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastmaml, CPU, m) {
  FM_CPU_KERNEL(m, task_conv2d);
  FM_CPU_KERNEL(m, task_conv2d_dgrad);
  FM_CPU_KERNEL(m, task_conv2d_wgrad);
}

}  // namespace fastmaml
