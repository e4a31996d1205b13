#include "launch.h"

namespace fastmaml::cuda {
namespace {

MseArgs prepare(const char* op, Call& call, const Tensor& x, const Tensor& target, const Sizes& order, int member) {
  STD_TORCH_CHECK(x.dim() >= 1, op, ": x has no tasks dimension");
  MseArgs a;
  a.tasks = x.size(0), a.size = elements_per_task(x), a.order = member;
  a.x = call.input("x", x, sizes_of(x), order);
  a.target = call.input("target", target, sizes_of(x), order);
  return a;
}

void run(Call& call, const MseArgs& a) {
  void* workspace = call.workspace(mse_workspace(a));
  call.done(launch_mse(call.dtype(), a, workspace, call.stream()));
}

Tensor task_mse(const Tensor& x, const Tensor& target) {
  Call call("task_mse", "x", x);
  MseArgs a = prepare("task_mse", call, x, target, dense_order(x), 0);
  Tensor losses = call.empty({a.tasks});
  a.losses = pointer(losses);
  run(call, a);
  return losses;
}

Tensor task_mse_bwd(const Tensor& g, const Tensor& x, const Tensor& target) {
  Call call("task_mse_bwd", "x", x);
  const Sizes order = dense_order(x);
  MseArgs a = prepare("task_mse_bwd", call, x, target, order, 1);
  a.g = call.input("g", g, {a.tasks}, {});
  Tensor gx = call.empty(sizes_of(x), order);
  a.gx = pointer(gx);
  run(call, a);
  return gx;
}

std::tuple<Tensor, Tensor> task_mse_bwd2(const Tensor& h, const Tensor& g, const Tensor& x, const Tensor& target,
                                         int64_t need) {
  Call call("task_mse_bwd2", "x", x);
  const Sizes order = dense_order(x);
  MseArgs a = prepare("task_mse_bwd2", call, x, target, order, 2);
  a.h = call.input("h", h, sizes_of(x), order);
  a.g = call.input("g", g, {a.tasks}, {});
  Tensor gg = call.wanted(need & 1, {a.tasks}, {}), gx = call.wanted(need & 2, sizes_of(x), order);
  a.gg = pointer(gg), a.gx = pointer(gx);
  run(call, a);
  return {gg, gx};
}

}  // namespace
}  // namespace fastmaml::cuda

FM_CUDA_OPS(m) {
  m.impl("task_mse", TORCH_BOX(&fastmaml::cuda::task_mse));
  m.impl("task_mse_bwd", TORCH_BOX(&fastmaml::cuda::task_mse_bwd));
  m.impl("task_mse_bwd2", TORCH_BOX(&fastmaml::cuda::task_mse_bwd2));
}
