// Convolutions with a weight per task, as batched matrix products over gathered columns.
//
// With channels-last images and weights in memory as [tasks, kernel, kernel, channels, outputs],
// all three members are one product per task each, and none transposes its result.
#include "aten.h"

namespace fastmaml::cuda {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t(256) << 20;  // for columns: as many tasks at once as fit
const Sizes kWeightOrder = {3, 4, 2, 1};

struct Problem {
  ColumnsArgs a;
  int64_t outputs, pixels, depth;  // pixels of y and columns' length, of one task
  bool direct;                     // 1x1: the image itself is the columns
};

void pair(const char* op, const char* name, const Sizes& values, int64_t least, int64_t (&to)[2]) {
  STD_TORCH_CHECK(values.size() == 2 && values[0] >= least && values[1] >= least, op, ": ", name, " is ",
                  shape_text(values), "; it must be two numbers of at least ", least);
  to[0] = values[0], to[1] = values[1];
}

Problem problem(const char* op, const Sizes& image, int64_t outputs, const Sizes& kernel, const Sizes& stride,
                const Sizes& padding, const Sizes& dilation) {
  Problem p;
  ColumnsArgs& a = p.a;
  a.tasks = image[0], a.images = image[1], a.channels = image[2], a.height = image[3], a.width = image[4];
  pair(op, "kernel", kernel, 1, a.kernel);
  pair(op, "stride", stride, 1, a.stride);
  pair(op, "padding", padding, 0, a.padding);
  pair(op, "dilation", dilation, 1, a.dilation);
  const int64_t room[2] = {a.height + 2 * a.padding[0] - a.dilation[0] * (a.kernel[0] - 1) - 1,
                           a.width + 2 * a.padding[1] - a.dilation[1] * (a.kernel[1] - 1) - 1};
  STD_TORCH_CHECK(room[0] >= 0 && room[1] >= 0, op, ": a kernel of ", shape_text(kernel), " with dilation ",
                  shape_text(dilation), " does not fit x, ", shape_text(image), ", padded by ", shape_text(padding));
  a.out_height = room[0] / a.stride[0] + 1, a.out_width = room[1] / a.stride[1] + 1;
  p.outputs = outputs;
  p.pixels = a.images * a.out_height * a.out_width;
  p.depth = a.kernel[0] * a.kernel[1] * a.channels;
  STD_TORCH_CHECK(p.depth < (int64_t(1) << 31) && a.height < (int64_t(1) << 31) && a.width < (int64_t(1) << 31), op,
                  ": x, ", shape_text(image), ", is too large");
  p.direct = p.depth == a.channels && a.stride[0] == 1 && a.stride[1] == 1 && a.padding[0] == 0 && a.padding[1] == 0;
  return p;
}

// [tasks, images, height, width, channels] of a tensor that is channels-last in memory already.
Tensor pixels_first(const Tensor& x) { return transpose(transpose(x, 2, 3), 3, 4); }
Tensor channels_first(const Tensor& x) { return transpose(transpose(x, 3, 4), 2, 3); }

// The matrix [tasks, rows, columns] of a tensor whose slices are dense in that order; copies it only
// where they are not, and then one slice only where all tasks share it.
Tensor image_matrix(const Call& call, const Tensor& x) {
  const Tensor dense = pixels_first(call.in_order(x, kImageOrder));
  const Tensor matrix = stable::view(dense, {dense.size(0), x.size(1) * x.size(3) * x.size(4), x.size(2)});
  return expand(matrix, {x.size(0), matrix.size(1), matrix.size(2)});
}

Tensor weight_matrix(const Call& call, const Tensor& w) {
  const Tensor dense = call.in_order(w, kWeightOrder);
  const Tensor taps = transpose(transpose(transpose(dense, 1, 4), 1, 3), 2, 3);  // [tasks, kh, kw, channels, outputs]
  const Tensor matrix = stable::view(taps, {dense.size(0), w.size(2) * w.size(3) * w.size(4), w.size(1)});
  return expand(matrix, {w.size(0), matrix.size(1), matrix.size(2)});
}

Tensor some(const Tensor& x, int64_t first, int64_t count) {
  Tensor all = x;
  return stable::narrow(all, 0, first, count);
}

// f(first task, tasks, columns): in pieces whose columns fit the workspace; it is given the room.
template <class F> void by_pieces(Call& call, const Problem& p, F f) {
  const int64_t element = call.dtype() == kFloat64 ? 8 : call.dtype() == kFloat32 ? 4 : 2;
  const int64_t bytes = std::max<int64_t>(p.pixels * p.depth * element, 1);
  const int64_t most = std::clamp<int64_t>(kWorkspaceBytes / bytes, 1, std::max<int64_t>(p.a.tasks, 1));
  const Tensor room = call.empty({std::min(most, p.a.tasks), p.pixels, p.depth});
  for (int64_t first = 0; first < p.a.tasks; first += most) {
    const int64_t count = std::min(most, p.a.tasks - first);
    f(first, count, some(room, 0, count));
  }
}

// The columns of some tasks of an image whose slices are channels-last.
void gather(const Call& call, const Problem& p, const Input& x, int64_t first, int64_t count, const Tensor& columns) {
  ColumnsArgs a = p.a;
  const int64_t element = call.dtype() == kFloat64 ? 8 : call.dtype() == kFloat32 ? 4 : 2;
  a.tasks = count;
  a.x = {static_cast<const char*>(x.data) + first * x.stride * element, x.stride};
  a.out = pointer(columns);
  call.done(launch_image_to_columns(call.dtype(), a, call.stream()));
}

Tensor task_conv2d(const Tensor& x, const Tensor& w, const OptionalTensor& b, Sizes stride, Sizes padding, Sizes dilation) {
  const char* op = "task_conv2d";
  Call call(op, "x", x);
  call.rank("x", x, 5);
  call.rank("w", w, 5);
  call.check("w", w, call.type(), {x.size(0), w.size(1), x.size(2), w.size(3), w.size(4)});
  const Problem p = problem(op, sizes_of(x), w.size(1), {w.size(3), w.size(4)}, stride, padding, dilation);
  Tensor y = call.empty({p.a.tasks, p.pixels, p.outputs});
  const Tensor weights = weight_matrix(call, w);
  if (p.direct) {
    product(image_matrix(call, x), weights, y);
  } else {
    const Input image = call.input("x", x, sizes_of(x), kImageOrder);
    by_pieces(call, p, [&](int64_t first, int64_t count, const Tensor& columns) {
      gather(call, p, image, first, count, columns);
      product(columns, some(weights, first, count), some(y, first, count));
    });
  }
  if (b) {
    EpilogueArgs e;
    e.tasks = p.a.tasks, e.rows = p.pixels, e.channels = p.outputs;
    e.b = call.input("b", b, {p.a.tasks, p.outputs}, {1});
    e.z = e.y = pointer(y);
    call.done(launch_epilogue(call.dtype(), e, call.stream()));
  }
  return channels_first(stable::view(y, {p.a.tasks, p.a.images, p.a.out_height, p.a.out_width, p.outputs}));
}

Tensor task_conv2d_dgrad(const Tensor& g, const Tensor& w, Sizes stride, Sizes padding, Sizes dilation, Sizes size) {
  const char* op = "task_conv2d_dgrad";
  Call call(op, "g", g);
  call.rank("g", g, 5);
  call.rank("w", w, 5);
  call.check("w", w, call.type(), {g.size(0), g.size(2), w.size(2), w.size(3), w.size(4)});
  STD_TORCH_CHECK(size.size() == 2, op, ": size is ", shape_text(size), "; it must be the height and width of x");
  const Sizes image = {g.size(0), g.size(1), w.size(2), size[0], size[1]};
  const Problem p = problem(op, image, w.size(1), {w.size(3), w.size(4)}, stride, padding, dilation);
  call.check("g", g, call.type(), {p.a.tasks, p.a.images, p.outputs, p.a.out_height, p.a.out_width});
  const Tensor gradients = image_matrix(call, g), weights = transpose(weight_matrix(call, w), 1, 2);
  Tensor gx = call.empty({image[0], image[1], image[3], image[4], image[2]});
  if (p.direct) {
    product(gradients, weights, stable::view(gx, {p.a.tasks, p.pixels, p.a.channels}));
  } else {
    by_pieces(call, p, [&](int64_t first, int64_t count, const Tensor& columns) {
      product(some(gradients, first, count), some(weights, first, count), columns);
      ColumnsArgs a = p.a;
      a.tasks = count;
      a.columns = {columns.numel() ? columns.const_data_ptr() : nullptr, p.pixels * p.depth};
      a.out = pointer(some(gx, first, count));
      call.done(launch_columns_to_image(call.dtype(), a, call.stream()));
    });
  }
  return channels_first(gx);
}

std::tuple<Tensor, Tensor> task_conv2d_wgrad(const Tensor& g, const Tensor& x, Sizes stride, Sizes padding,
                                             Sizes dilation, Sizes kernel, bool bias) {
  const char* op = "task_conv2d_wgrad";
  Call call(op, "g", g);
  call.rank("g", g, 5);
  call.rank("x", x, 5);
  const Problem p = problem(op, sizes_of(x), g.size(2), kernel, stride, padding, dilation);
  call.check("g", g, call.type(), {p.a.tasks, p.a.images, p.outputs, p.a.out_height, p.a.out_width});
  const Tensor gradients = image_matrix(call, g);
  Tensor gw = call.empty({p.a.tasks, p.depth, p.outputs});
  if (p.direct) {
    call.check("x", x, call.type(), sizes_of(x));
    product(transpose(image_matrix(call, x), 1, 2), gradients, gw);
  } else {
    const Input image = call.input("x", x, sizes_of(x), kImageOrder);
    by_pieces(call, p, [&](int64_t first, int64_t count, const Tensor& columns) {
      gather(call, p, image, first, count, columns);
      product(transpose(columns, 1, 2), some(gradients, first, count), some(gw, first, count));
    });
  }
  const Tensor taps = stable::view(gw, {p.a.tasks, kernel[0], kernel[1], p.a.channels, p.outputs});
  const Tensor logical = transpose(transpose(transpose(taps, 2, 3), 1, 3), 1, 4);
  const std::array<int64_t, 1> rows = {1};
  return {logical, bias ? stable::sum(gradients, rows) : call.empty({0})};
}

}  // namespace
}  // namespace fastmaml::cuda

FM_CUDA_OPS(m) {
  m.impl("task_conv2d", TORCH_BOX(&fastmaml::cuda::task_conv2d));
  m.impl("task_conv2d_dgrad", TORCH_BOX(&fastmaml::cuda::task_conv2d_dgrad));
  m.impl("task_conv2d_wgrad", TORCH_BOX(&fastmaml::cuda::task_conv2d_wgrad));
}
