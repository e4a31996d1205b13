#include "launch.h"

namespace fastmaml::cuda {
namespace {

// The elements of one task, and the checks that all three members share.
ActArgs prepared(const char* op, const Tensor& x, int64_t act, int order) {
  STD_TORCH_CHECK(x.dim() >= 1, op, ": a tensor has no tasks dimension");
  check_act(op, act);
  ActArgs a;
  a.tasks = x.size(0);
  a.size = elements_per_task(x);
  a.act = int(act);
  a.order = order;
  return a;
}

Tensor task_act(const Tensor& x, int64_t act) {
  Call call("task_act", "x", x);
  ActArgs a = prepared("task_act", x, act, 0);
  const Sizes sizes = sizes_of(x), order = dense_order(x);
  Tensor y = call.empty(sizes, order);
  a.x = call.input("x", x, sizes, order);
  a.y = pointer(y);
  call.done(launch_act(call.dtype(), a, call.stream()));
  return y;
}

Tensor task_act_bwd(const Tensor& g, const Tensor& s, int64_t act) {
  Call call("task_act_bwd", "s", s);
  ActArgs a = prepared("task_act_bwd", s, act, 1);
  const Sizes sizes = sizes_of(s), order = dense_order(s);
  Tensor gx = call.empty(sizes, order);
  a.g = call.input("g", g, sizes, order);
  a.x = call.input("s", s, sizes, order);
  a.y = pointer(gx);
  call.done(launch_act(call.dtype(), a, call.stream()));
  return gx;
}

std::tuple<Tensor, Tensor> task_act_bwd2(const Tensor& h, const Tensor& g, const Tensor& s, int64_t act,
                                         int64_t need) {
  Call call("task_act_bwd2", "s", s);
  ActArgs a = prepared("task_act_bwd2", s, act, 2);
  const Sizes sizes = sizes_of(s), order = dense_order(s);
  Tensor gg = call.wanted(need & 1, sizes, order), gs = call.wanted(need & 2, sizes, order);
  a.h = call.input("h", h, sizes, order);
  a.g = call.input("g", g, sizes, order);
  a.x = call.input("s", s, sizes, order);
  a.y = pointer(gg);
  a.gs = pointer(gs);
  call.done(launch_act(call.dtype(), a, call.stream()));
  return {gg, gs};
}

}  // namespace
}  // namespace fastmaml::cuda

FM_CUDA_OPS(m) {
  m.impl("task_act", TORCH_BOX(&fastmaml::cuda::task_act));
  m.impl("task_act_bwd", TORCH_BOX(&fastmaml::cuda::task_act_bwd));
  m.impl("task_act_bwd2", TORCH_BOX(&fastmaml::cuda::task_act_bwd2));
}
