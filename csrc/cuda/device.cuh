// What every kernel stands on: number types, 16-byte accesses, warp sums, launches. No torch.
//
// CUDA_ON_HOST: the same source compiled by a C++ compiler, one fibre a thread, for the tests.
#pragma once

#ifndef CUDA_ON_HOST
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#define FM_LAUNCH(kernel, blocks, threads, stream, ...) \
  kernel<<<dim3(blocks), dim3(threads), 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#endif

#include <math.h>
#include <stdint.h>

#include "kernels.h"

#define FM_DEVICE __device__ __forceinline__
// One block a multiprocessor is enough: the compiler need not spill registers to fit more.
#define FM_KERNEL __global__ void __launch_bounds__(fastmaml::cuda::kThreads, 1)

namespace fastmaml::cuda {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

struct bf16 {
  uint16_t bits;
};

template <class S> struct Accumulator { using type = float; };
template <> struct Accumulator<double> { using type = double; };
template <class S> using Acc = typename Accumulator<S>::type;

FM_DEVICE float widen(float x) { return x; }
FM_DEVICE double widen(double x) { return x; }
FM_DEVICE float widen(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }

template <class S> FM_DEVICE S narrow(Acc<S> x) {
  return x;
}
template <> FM_DEVICE bf16 narrow<bf16>(float x) {
#ifdef CUDA_ON_HOST
  const uint32_t bits = __float_as_uint(x);  // round to nearest, ties to even
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#else
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#endif
}

// V elements that are read and written at once: 16 bytes where V = kVector<S>.
template <class S> constexpr int kVector = 16 / int(sizeof(S));

template <class S, int V> struct alignas(sizeof(S) * V) Pack {
  S v[V];
};

template <int V, class S> FM_DEVICE Pack<S, V> load(const S* p) {
  return *reinterpret_cast<const Pack<S, V>*>(p);
}

template <class S, int V> FM_DEVICE void store(S* p, const Pack<S, V>& pack) {
  *reinterpret_cast<Pack<S, V>*>(p) = pack;
}

template <class S> FM_DEVICE const S* slice(const Input& in, int64_t task) {
  return static_cast<const S*>(in.data) + task * in.stride;
}

// V elements at offset i, widened; `otherwise` where there is no tensor.
template <class S, int V>
FM_DEVICE void read(const Input& in, int64_t task, int64_t i, Acc<S> (&x)[V], Acc<S> otherwise = 0) {
  if (in.data == nullptr) {
#pragma unroll
    for (int k = 0; k < V; ++k) x[k] = otherwise;
    return;
  }
  const Pack<S, V> pack = load<V>(slice<S>(in, task) + i);
#pragma unroll
  for (int k = 0; k < V; ++k) x[k] = widen(pack.v[k]);
}

template <class S, int V> FM_DEVICE void write(void* out, int64_t i, const Acc<S> (&x)[V]) {
  Pack<S, V> pack;
#pragma unroll
  for (int k = 0; k < V; ++k) pack.v[k] = narrow<S>(x[k]);
  store(static_cast<S*>(out) + i, pack);
}

// The sum over a warp, known to all its lanes.
template <class A> FM_DEVICE A warp_sum(A x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(kWholeWarp, x, offset);
  return x;
}

// The sum over a block of kThreads, known to thread 0. Ends with the shared memory free again.
template <class A> FM_DEVICE A block_sum(A x) {
  __shared__ A warps[kWarps];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  A sum = 0;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kWarps; ++i) sum += warps[i];
  }
  __syncthreads();
  return sum;
}

// Host side.

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Kernels loop over their jobs with the grid's stride, so a bounded grid serves any number.
inline unsigned grid(int64_t jobs) { return static_cast<unsigned>(jobs < (1 << 30) ? jobs : (1 << 30)); }

inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

template <class S> bool aligned(const Input& in, int64_t tasks) {
  return aligned(in.data) && (tasks <= 1 || in.stride % kVector<S> == 0);
}

// Calls f with a zero of the storage type.
template <class F> int by_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case kFloat32: f(float{}); break;
#ifndef CUDA_ON_HOST_FLOAT32  // one is enough to find races in
    case kFloat64: f(double{}); break;
    case kBfloat16: f(bf16{}); break;
#endif
    default: return static_cast<int>(cudaErrorNotSupported);
  }
  return static_cast<int>(cudaGetLastError());
}

}  // namespace fastmaml::cuda
