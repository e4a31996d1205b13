#include "launch.h"

namespace fastmaml::cuda {
namespace {

struct Shape {
  Sizes x, weight, row;  // of x, of w, of mean
};

Shape prepare(const Call& call, const Tensor& x, int order, LayerNormArgs& a) {
  call.rank("x", x, 3);
  a.tasks = x.size(0), a.rows = x.size(1), a.channels = x.size(2), a.order = order;
  return {sizes_of(x), {a.tasks, a.channels}, {a.tasks, a.rows}};
}

void saved(Call& call, const Shape& shape, const Tensor& g, const Tensor& x, const OptionalTensor& w, const Tensor& mean,
           const Tensor& rstd, LayerNormArgs& a) {
  a.g = call.input("g", g, shape.x, {1, 2});
  a.x = call.input("x", x, shape.x, {1, 2});
  a.w = call.input("w", w, shape.weight, {1});
  a.mean = call.input("mean", mean, call.wide_type(), shape.row, {1});
  a.rstd = call.input("rstd", rstd, call.wide_type(), shape.row, {1});
}

void run(Call& call, const LayerNormArgs& a) {
  void* workspace = call.workspace(layer_norm_workspace(a));
  call.done(launch_layer_norm(call.dtype(), a, workspace, call.stream()));
}

std::tuple<Tensor, Tensor, Tensor> task_layer_norm(const Tensor& x, const OptionalTensor& w, const OptionalTensor& b, double eps) {
  Call call("task_layer_norm", "x", x);
  LayerNormArgs a;
  const Shape shape = prepare(call, x, 0, a);
  a.eps = eps;
  a.x = call.input("x", x, shape.x, {1, 2});
  a.w = call.input("w", w, shape.weight, {1});
  a.b = call.input("b", b, shape.weight, {1});
  Tensor y = call.empty(shape.x);
  Tensor mean = call.empty(shape.row, {1}, call.wide_type()), rstd = call.empty(shape.row, {1}, call.wide_type());
  a.y = pointer(y), a.mean_out = pointer(mean), a.rstd_out = pointer(rstd);
  run(call, a);
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> task_layer_norm_bwd(const Tensor& g, const Tensor& x, const OptionalTensor& w,
                                                       const Tensor& mean, const Tensor& rstd, int64_t need) {
  Call call("task_layer_norm_bwd", "x", x);
  LayerNormArgs a;
  const Shape shape = prepare(call, x, 1, a);
  saved(call, shape, g, x, w, mean, rstd, a);
  Tensor gx = call.wanted(need & 1, shape.x, {1, 2});
  Tensor gw = call.wanted(need & 2, shape.weight, {1});
  Tensor gb = call.wanted(need & 4, shape.weight, {1});
  a.gx = pointer(gx), a.gw = pointer(gw), a.gb = pointer(gb);
  run(call, a);
  return {gx, gw, gb};
}

std::tuple<Tensor, Tensor, Tensor> task_layer_norm_bwd2(const OptionalTensor& hx, const OptionalTensor& hw, const OptionalTensor& hb,
                                                        const Tensor& g, const Tensor& x, const OptionalTensor& w,
                                                        const Tensor& mean, const Tensor& rstd, int64_t need) {
  Call call("task_layer_norm_bwd2", "x", x);
  LayerNormArgs a;
  const Shape shape = prepare(call, x, 2, a);
  saved(call, shape, g, x, w, mean, rstd, a);
  a.hx = call.input("hx", hx, shape.x, {1, 2});
  a.hw = call.input("hw", hw, shape.weight, {1});
  a.hb = call.input("hb", hb, shape.weight, {1});
  Tensor gg = call.wanted(need & 1, shape.x, {1, 2});
  Tensor gx = call.wanted(need & 2, shape.x, {1, 2});
  Tensor gw = call.wanted(need & 4, shape.weight, {1});
  a.gg = pointer(gg), a.gx = pointer(gx), a.gw = pointer(gw);
  run(call, a);
  return {gg, gx, gw};
}

}  // namespace
}  // namespace fastmaml::cuda

FM_CUDA_OPS(m) {
  m.impl("task_layer_norm", TORCH_BOX(&fastmaml::cuda::task_layer_norm));
  m.impl("task_layer_norm_bwd", TORCH_BOX(&fastmaml::cuda::task_layer_norm_bwd));
  m.impl("task_layer_norm_bwd2", TORCH_BOX(&fastmaml::cuda::task_layer_norm_bwd2));
}
