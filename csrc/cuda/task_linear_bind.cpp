// Linear layers with a weight per task: cuBLAS, and one pass of our own for bias and activation.
#include "aten.h"

namespace fastmaml::cuda {
namespace {

std::tuple<Tensor, Tensor> task_linear(const Tensor& x, const Tensor& w, const OptionalTensor& b, int64_t act) {
  Call call("task_linear", "x", x);
  call.rank("x", x, 3);
  call.rank("w", w, 3);
  check_act("task_linear", act);
  EpilogueArgs a;
  a.tasks = x.size(0), a.rows = x.size(1), a.channels = w.size(1), a.act = int(act);
  call.check("w", w, call.type(), {a.tasks, a.channels, x.size(2)});
  a.b = call.input("b", b, {a.tasks, a.channels}, {1});
  const Sizes sizes = {a.tasks, a.rows, a.channels};
  Tensor z = call.empty(sizes);
  product(x, transpose(w, 1, 2), z);
  const bool two = math::saves_input(math::Act(act));
  Tensor y = two ? call.empty(sizes) : z;
  a.z = pointer(z), a.y = pointer(y);
  if (b || act) call.done(launch_epilogue(call.dtype(), a, call.stream()));
  return {y, two ? z : call.empty({0})};
}

Tensor task_linear_dgrad(const Tensor& g, const Tensor& w) {
  Call call("task_linear_dgrad", "g", g);
  call.rank("g", g, 3);
  call.rank("w", w, 3);
  call.check("w", w, call.type(), {g.size(0), g.size(2), w.size(2)});
  Tensor gx = call.empty({g.size(0), g.size(1), w.size(2)});
  product(g, w, gx);
  return gx;
}

std::tuple<Tensor, Tensor> task_linear_wgrad(const Tensor& g, const Tensor& x, bool bias) {
  Call call("task_linear_wgrad", "g", g);
  call.rank("g", g, 3);
  call.rank("x", x, 3);
  call.check("x", x, call.type(), {g.size(0), g.size(1), x.size(2)});
  Tensor gw = call.empty({g.size(0), g.size(2), x.size(2)});
  product(transpose(g, 1, 2), x, gw);
  const std::array<int64_t, 1> rows = {1};
  return {gw, bias ? stable::sum(g, rows) : call.empty({0})};
}

}  // namespace
}  // namespace fastmaml::cuda

FM_CUDA_OPS(m) {
  m.impl("task_linear", TORCH_BOX(&fastmaml::cuda::task_linear));
  m.impl("task_linear_dgrad", TORCH_BOX(&fastmaml::cuda::task_linear_dgrad));
  m.impl("task_linear_wgrad", TORCH_BOX(&fastmaml::cuda::task_linear_wgrad));
}
