// Labels are not checked here: to look at them would make the host wait for the device.
#include "launch.h"

namespace fastmaml::cuda {
namespace {

CrossEntropyArgs prepare(Call& call, const Tensor& x, const Tensor& target, int64_t ignore, int order) {
  call.rank("x", x, 3);
  CrossEntropyArgs a;
  a.tasks = x.size(0), a.rows = x.size(1), a.classes = x.size(2), a.ignore = ignore, a.order = order;
  a.x = call.input("x", x, sizes_of(x), {1, 2});
  a.target = call.input("target", target, ScalarType::Long, {a.tasks, a.rows}, {1});
  return a;
}

void saved(Call& call, const Tensor& g, const Tensor& lse, CrossEntropyArgs& a) {
  a.g = call.input("g", g, {a.tasks}, {});
  a.lse = call.input("lse", lse, call.wide_type(), {a.tasks, a.rows}, {1});
}

void run(Call& call, const CrossEntropyArgs& a) {
  void* workspace = call.workspace(cross_entropy_workspace(a));
  call.done(launch_cross_entropy(call.dtype(), a, workspace, call.stream()));
}

std::tuple<Tensor, Tensor> task_cross_entropy(const Tensor& x, const Tensor& target, int64_t ignore) {
  Call call("task_cross_entropy", "x", x);
  CrossEntropyArgs a = prepare(call, x, target, ignore, 0);
  Tensor losses = call.empty({a.tasks}), lse = call.empty({a.tasks, a.rows}, {1}, call.wide_type());
  a.losses = pointer(losses), a.lse_out = pointer(lse);
  run(call, a);
  return {losses, lse};
}

Tensor task_cross_entropy_bwd(const Tensor& g, const Tensor& x, const Tensor& target, const Tensor& lse,
                              int64_t ignore) {
  Call call("task_cross_entropy_bwd", "x", x);
  CrossEntropyArgs a = prepare(call, x, target, ignore, 1);
  saved(call, g, lse, a);
  Tensor gx = call.empty(sizes_of(x));
  a.gx = pointer(gx);
  run(call, a);
  return gx;
}

std::tuple<Tensor, Tensor> task_cross_entropy_bwd2(const Tensor& h, const Tensor& g, const Tensor& x,
                                                   const Tensor& target, const Tensor& lse, int64_t ignore,
                                                   int64_t need) {
  Call call("task_cross_entropy_bwd2", "x", x);
  CrossEntropyArgs a = prepare(call, x, target, ignore, 2);
  saved(call, g, lse, a);
  a.h = call.input("h", h, sizes_of(x), {1, 2});
  Tensor gg = call.wanted(need & 1, {a.tasks}, {}), gx = call.wanted(need & 2, sizes_of(x), {1, 2});
  a.gg = pointer(gg), a.gx = pointer(gx);
  run(call, a);
  return {gg, gx};
}

}  // namespace
}  // namespace fastmaml::cuda

FM_CUDA_OPS(m) {
  m.impl("task_cross_entropy", TORCH_BOX(&fastmaml::cuda::task_cross_entropy));
  m.impl("task_cross_entropy_bwd", TORCH_BOX(&fastmaml::cuda::task_cross_entropy_bwd));
  m.impl("task_cross_entropy_bwd2", TORCH_BOX(&fastmaml::cuda::task_cross_entropy_bwd2));
}
