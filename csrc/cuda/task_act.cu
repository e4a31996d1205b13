// Activations and their first two derivatives; formulas in ../math/activation.h.
#include "../math/activation.h"
#include "map.cuh"

namespace fastmaml::cuda {
namespace {

template <math::Act ACT> struct Activate {
  template <class A> FM_DEVICE void operator()(const A (&in)[1], A (&out)[1], int64_t) const {
    out[0] = math::activate<ACT>(in[0]);
  }
};

template <math::Act ACT> struct Slope {
  template <class A> FM_DEVICE void operator()(const A (&in)[2], A (&out)[1], int64_t) const {
    out[0] = in[0] * math::slope<ACT>(in[1]);
  }
};

template <math::Act ACT> struct Curvature {
  template <class A> FM_DEVICE void operator()(const A (&in)[3], A (&out)[2], int64_t) const {
    out[0] = in[0] * math::slope<ACT>(in[2]);
    out[1] = in[0] * in[1] * math::curvature<ACT>(in[2]);
  }
};

}  // namespace

int launch_act(Dtype dtype, const ActArgs& a, void* stream) {
  return by_dtype(dtype, [&](auto zero) {
    using S = decltype(zero);
    math::with_act(a.act, [&](auto tag) {
      constexpr math::Act ACT = decltype(tag)::value;
      if (a.order == 0) {
        map<S>(Map<1, 1>{{a.x}, {a.y}, a.tasks, a.size}, true, Activate<ACT>{}, stream);
      } else if (a.order == 1) {
        map<S>(Map<2, 1>{{a.g, a.x}, {a.y}, a.tasks, a.size}, true, Slope<ACT>{}, stream);
      } else {
        map<S>(Map<3, 2>{{a.h, a.g, a.x}, {a.y, a.gs}, a.tasks, a.size}, true, Curvature<ACT>{}, stream);
      }
    });
  });
}

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace fastmaml::cuda
