// The launchers of csrc/cuda: what the bindings (C++ with torch) call in the kernels (CUDA without).
//
// Strides are from task to task, in elements; zero means that the tasks share one slice. Outputs
// are dense. Every launcher returns a cudaError_t as int; a null output is not computed.
#pragma once

#include <stdint.h>

namespace fastmaml::cuda {

enum Dtype : int { kFloat32, kFloat64, kBfloat16 };

struct Input {
  const void* data = nullptr;
  int64_t stride = 0;
};

// One parameter of all tasks. `rate` has `size` elements, or one where scalar_rate.
struct InnerTensor {
  Input p, g, v;
  const void* rate = nullptr;
  void *out = nullptr, *out_v = nullptr;
  int64_t tasks = 0, size = 0;
  int64_t end = 0;  // jobs of this and all earlier tensors of a launch; filled by the launcher
  bool scalar_rate = false, vectors = false;  // vectors: 16-byte access is allowed; by the launcher
};

struct InnerRule {
  double scale = 1, momentum = 0;
  bool moving = false, nesterov = false;  // moving: there is a velocity
};

int launch_inner_update(Dtype, InnerTensor* list, int64_t count, const InnerRule&, void* stream);

// The gradient of a rate: p holds the cotangents h, rate is unused. `partial` has
// inner_rate_partials() elements of the accumulating type for the scalar rates.
int64_t inner_rate_partials(const InnerTensor* list, int64_t count);
int launch_inner_rate_grad(Dtype, InnerTensor* list, int64_t count, double scale, void* partial, void* stream);

// order 0: y = a(x); 1: gx = g a'(s); 2: gg = h a'(s) and gs = h g a''(s).
struct ActArgs {
  Input x, g, h;
  void *y = nullptr, *gs = nullptr;
  int64_t tasks = 0, size = 0;
  int act = 0, order = 0;
};
int launch_act(Dtype, const ActArgs&, void* stream);

// In place on z [tasks, rows, channels]: s = z + b (left in z where y is another tensor), y = a(s).
struct EpilogueArgs {
  void *z = nullptr, *y = nullptr;
  Input b;
  int64_t tasks = 0, rows = 0, channels = 0;
  int act = 0;
};
int launch_epilogue(Dtype, const EpilogueArgs&, void* stream);

// All images are channels-last. A window is 2x2 elements under pooling and one element without.
struct BatchNormArgs {
  Input x, w, b, g, hx, hw, hb, mean, rstd, index;
  void *y = nullptr, *mean_out = nullptr, *rstd_out = nullptr, *index_out = nullptr;  // forward
  void *gx = nullptr, *gw = nullptr, *gb = nullptr, *gg = nullptr;                    // backward
  int64_t tasks = 0, images = 0, height = 0, width = 0, channels = 0;
  double eps = 0;
  int order = 0;
  bool relu = false, pool = false;
};
// Elements of the accumulating type that the workspace needs.
int64_t batch_norm_workspace(const BatchNormArgs&);
int launch_batch_norm(Dtype, const BatchNormArgs&, void* workspace, void* stream);

struct LayerNormArgs {
  Input x, w, b, g, hx, hw, hb, mean, rstd;
  void *y = nullptr, *mean_out = nullptr, *rstd_out = nullptr;
  void *gx = nullptr, *gw = nullptr, *gb = nullptr, *gg = nullptr;
  int64_t tasks = 0, rows = 0, channels = 0;
  double eps = 0;
  int order = 0;
};
int64_t layer_norm_workspace(const LayerNormArgs&);
int launch_layer_norm(Dtype, const LayerNormArgs&, void* workspace, void* stream);

struct CrossEntropyArgs {
  Input x, target, lse, g, h;
  void *losses = nullptr, *lse_out = nullptr, *gx = nullptr, *gg = nullptr;
  int64_t tasks = 0, rows = 0, classes = 0, ignore = 0;
  int order = 0;
};
int64_t cross_entropy_workspace(const CrossEntropyArgs&);
int launch_cross_entropy(Dtype, const CrossEntropyArgs&, void* workspace, void* stream);

struct MseArgs {
  Input x, target, g, h;
  void *losses = nullptr, *gx = nullptr, *gg = nullptr;
  int64_t tasks = 0, size = 0;
  int order = 0;
};
int64_t mse_workspace(const MseArgs&);
int launch_mse(Dtype, const MseArgs&, void* workspace, void* stream);

// Channels-last image x [tasks, images, height, width, channels] and its columns
// [tasks, images, out_height, out_width, kernel_height, kernel_width, channels].
struct ColumnsArgs {
  Input x, columns;
  void* out = nullptr;
  int64_t tasks = 0, images = 0, height = 0, width = 0, channels = 0;
  int64_t out_height = 0, out_width = 0;
  int64_t kernel[2] = {1, 1}, stride[2] = {1, 1}, padding[2] = {0, 0}, dilation[2] = {1, 1};
};
int launch_image_to_columns(Dtype, const ColumnsArgs&, void* stream);
int launch_columns_to_image(Dtype, const ColumnsArgs&, void* stream);

const char* error_text(int error);

}  // namespace fastmaml::cuda
