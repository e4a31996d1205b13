#include <limits>

#include "launch.h"

namespace fastmaml::cuda {
namespace {

struct Shape {
  Sizes image, output, channel;  // of x, of y, of w
};

// Checks x and fills in what all three members share.
Shape prepare(const char* op, const Call& call, const Tensor& x, bool relu, bool pool, int order, BatchNormArgs& a) {
  call.rank("x", x, 5);
  a.tasks = x.size(0), a.images = x.size(1), a.channels = x.size(2), a.height = x.size(3), a.width = x.size(4);
  a.relu = relu, a.pool = pool, a.order = order;
  STD_TORCH_CHECK(a.images * a.height * a.width < std::numeric_limits<int32_t>::max(), op,
                  ": x has shape ", shape_text(sizes_of(x)), "; images x height x width of a task must be below 2^31");
  const int64_t factor = pool ? 2 : 1;
  return {sizes_of(x), {a.tasks, a.images, a.channels, a.height / factor, a.width / factor}, {a.tasks, a.channels}};
}

// What both derivatives read.
void saved(Call& call, const Shape& shape, const Tensor& g, const Tensor& x, const OptionalTensor& w, const Tensor& mean,
           const Tensor& rstd, const Tensor& index, BatchNormArgs& a) {
  a.g = call.input("g", g, shape.output, kImageOrder);
  a.x = call.input("x", x, shape.image, kImageOrder);
  a.w = call.input("w", w, shape.channel, {1});
  a.mean = call.input("mean", mean, call.wide_type(), shape.channel, {1});
  a.rstd = call.input("rstd", rstd, call.wide_type(), shape.channel, {1});
  if (a.relu || a.pool) a.index = call.input("index", index, ScalarType::Byte, shape.output, kImageOrder);
}

void run(Call& call, const BatchNormArgs& a) {
  void* workspace = call.workspace(batch_norm_workspace(a));
  call.done(launch_batch_norm(call.dtype(), a, workspace, call.stream()));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> task_batch_norm(const Tensor& x, const OptionalTensor& w, const OptionalTensor& b,
                                                           double eps, bool relu, bool pool) {
  Call call("task_batch_norm", "x", x);
  BatchNormArgs a;
  const Shape shape = prepare("task_batch_norm", call, x, relu, pool, 0, a);
  a.eps = eps;
  a.x = call.input("x", x, shape.image, kImageOrder);
  a.w = call.input("w", w, shape.channel, {1});
  a.b = call.input("b", b, shape.channel, {1});
  Tensor y = call.empty(shape.output, kImageOrder);
  Tensor mean = call.empty(shape.channel, {1}, call.wide_type());
  Tensor rstd = call.empty(shape.channel, {1}, call.wide_type());
  Tensor index = relu || pool ? call.empty(shape.output, kImageOrder, ScalarType::Byte)
                              : call.empty({0}, {}, ScalarType::Byte);
  a.y = pointer(y), a.mean_out = pointer(mean), a.rstd_out = pointer(rstd), a.index_out = pointer(index);
  run(call, a);
  return {y, mean, rstd, index};
}

std::tuple<Tensor, Tensor, Tensor> task_batch_norm_bwd(const Tensor& g, const Tensor& x, const OptionalTensor& w,
                                                       const Tensor& mean, const Tensor& rstd, const Tensor& index,
                                                       bool relu, bool pool, int64_t need) {
  Call call("task_batch_norm_bwd", "x", x);
  BatchNormArgs a;
  const Shape shape = prepare("task_batch_norm_bwd", call, x, relu, pool, 1, a);
  saved(call, shape, g, x, w, mean, rstd, index, a);
  Tensor gx = call.wanted(need & 1, shape.image, kImageOrder);
  Tensor gw = call.wanted(need & 2, shape.channel, {1});
  Tensor gb = call.wanted(need & 4, shape.channel, {1});
  a.gx = pointer(gx), a.gw = pointer(gw), a.gb = pointer(gb);
  run(call, a);
  return {gx, gw, gb};
}

std::tuple<Tensor, Tensor, Tensor> task_batch_norm_bwd2(const OptionalTensor& hx, const OptionalTensor& hw, const OptionalTensor& hb,
                                                        const Tensor& g, const Tensor& x, const OptionalTensor& w,
                                                        const Tensor& mean, const Tensor& rstd, const Tensor& index,
                                                        bool relu, bool pool, int64_t need) {
  Call call("task_batch_norm_bwd2", "x", x);
  BatchNormArgs a;
  const Shape shape = prepare("task_batch_norm_bwd2", call, x, relu, pool, 2, a);
  saved(call, shape, g, x, w, mean, rstd, index, a);
  a.hx = call.input("hx", hx, shape.image, kImageOrder);
  a.hw = call.input("hw", hw, shape.channel, {1});
  a.hb = call.input("hb", hb, shape.channel, {1});
  Tensor gg = call.wanted(need & 1, shape.output, kImageOrder);
  Tensor gx = call.wanted(need & 2, shape.image, kImageOrder);
  Tensor gw = call.wanted(need & 4, shape.channel, {1});
  a.gg = pointer(gg), a.gx = pointer(gx), a.gw = pointer(gw);
  run(call, a);
  return {gg, gx, gw};
}

}  // namespace
}  // namespace fastmaml::cuda

FM_CUDA_OPS(m) {
  m.impl("task_batch_norm", TORCH_BOX(&fastmaml::cuda::task_batch_norm));
  m.impl("task_batch_norm_bwd", TORCH_BOX(&fastmaml::cuda::task_batch_norm_bwd));
  m.impl("task_batch_norm_bwd2", TORCH_BOX(&fastmaml::cuda::task_batch_norm_bwd2));
}
