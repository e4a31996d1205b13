// The schemas of every op, and nothing else: kernels register themselves for CPU and CUDA.
// What each op computes is said in fastmaml/ops, beside its PyTorch reference.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastmaml, m) {
  m.def("task_linear(Tensor x, Tensor w, Tensor? b, int act) -> (Tensor y, Tensor s)");
  m.def("task_linear_dgrad(Tensor g, Tensor w) -> Tensor");
  m.def("task_linear_wgrad(Tensor g, Tensor x, bool bias) -> (Tensor gw, Tensor gb)");

  m.def("task_conv2d(Tensor x, Tensor w, Tensor? b, int[] stride, int[] padding, int[] dilation) -> Tensor");
  m.def("task_conv2d_dgrad(Tensor g, Tensor w, int[] stride, int[] padding, int[] dilation, int[] size) -> Tensor");
  m.def("task_conv2d_wgrad(Tensor g, Tensor x, int[] stride, int[] padding, int[] dilation, int[] kernel, bool bias) -> (Tensor gw, Tensor gb)");

  m.def("task_act(Tensor x, int act) -> Tensor");
  m.def("task_act_bwd(Tensor g, Tensor s, int act) -> Tensor");
  m.def("task_act_bwd2(Tensor h, Tensor g, Tensor s, int act, int need) -> (Tensor gg, Tensor gs)");

  m.def("task_batch_norm(Tensor x, Tensor? w, Tensor? b, float eps, bool relu, bool pool) -> (Tensor y, Tensor mean, Tensor rstd, Tensor index)");
  m.def("task_batch_norm_bwd(Tensor g, Tensor x, Tensor? w, Tensor mean, Tensor rstd, Tensor index, bool relu, bool pool, int need) -> (Tensor gx, Tensor gw, Tensor gb)");
  m.def("task_batch_norm_bwd2(Tensor? hx, Tensor? hw, Tensor? hb, Tensor g, Tensor x, Tensor? w, Tensor mean, Tensor rstd, Tensor index, bool relu, bool pool, int need) -> (Tensor gg, Tensor gx, Tensor gw)");

  m.def("task_layer_norm(Tensor x, Tensor? w, Tensor? b, float eps) -> (Tensor y, Tensor mean, Tensor rstd)");
  m.def("task_layer_norm_bwd(Tensor g, Tensor x, Tensor? w, Tensor mean, Tensor rstd, int need) -> (Tensor gx, Tensor gw, Tensor gb)");
  m.def("task_layer_norm_bwd2(Tensor? hx, Tensor? hw, Tensor? hb, Tensor g, Tensor x, Tensor? w, Tensor mean, Tensor rstd, int need) -> (Tensor gg, Tensor gx, Tensor gw)");

  m.def("task_cross_entropy(Tensor x, Tensor target, int ignore) -> (Tensor losses, Tensor lse)");
  m.def("task_cross_entropy_bwd(Tensor g, Tensor x, Tensor target, Tensor lse, int ignore) -> Tensor");
  m.def("task_cross_entropy_bwd2(Tensor h, Tensor g, Tensor x, Tensor target, Tensor lse, int ignore, int need) -> (Tensor gg, Tensor gx)");

  m.def("task_mse(Tensor x, Tensor target) -> Tensor");
  m.def("task_mse_bwd(Tensor g, Tensor x, Tensor target) -> Tensor");
  m.def("task_mse_bwd2(Tensor h, Tensor g, Tensor x, Tensor target, int need) -> (Tensor gg, Tensor gx)");

  m.def("task_attention(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? key, bool causal, float scale, float dropout) -> (Tensor o, Tensor lse)");
  m.def("task_attention_bwd(Tensor g, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? key, Tensor o, Tensor lse, bool causal, float scale, float dropout) -> (Tensor gq, Tensor gk, Tensor gv)");
  m.def("task_attention_bwd2(Tensor? hq, Tensor? hk, Tensor? hv, Tensor g, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? key, Tensor o, Tensor lse, bool causal, float scale, float dropout, int need) -> (Tensor gg, Tensor gq, Tensor gk, Tensor gv)");

  m.def("task_embedding(Tensor w, Tensor ids) -> Tensor");
  m.def("task_embedding_grad(Tensor g, Tensor ids, int rows) -> Tensor");

  m.def("dropout_mask(Tensor key, int size, float p, ScalarType dtype) -> Tensor");

  m.def("inner_update(Tensor[] p, Tensor[] g, Tensor[] rate, float scale) -> Tensor[]");
  m.def("inner_scale(Tensor[] g, Tensor[] rate, float scale) -> Tensor[]");
  m.def("inner_rate_grad(Tensor[] h, Tensor[] g, bool[] scalar, float scale) -> Tensor[]");
  m.def("inner_momentum(Tensor[] p, Tensor[] g, Tensor[] v, Tensor[] rate, float scale, float momentum, bool nesterov) -> (Tensor[] p, Tensor[] v)");
}
