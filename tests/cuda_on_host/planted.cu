// Errors planted on purpose: each PLANT must be caught, else the emulation checks nothing.
#include "device.cuh"

namespace fastmaml::cuda {

// Reverses each block's part of x through shared memory.
FM_KERNEL reverse_kernel(const float* x, float* y, int64_t size) {
#if PLANT == 1
  __shared__ float part[kThreads / 2];  // too small
#else
  __shared__ float part[kThreads];
#endif
  const int64_t start = int64_t(blockIdx.x) * kThreads;
  const int64_t count = size - start < kThreads ? size - start : kThreads;
#if PLANT == 2
  if (threadIdx.x <= count) part[threadIdx.x] = x[start + threadIdx.x];  // one too many
#else
  if (threadIdx.x < count) part[threadIdx.x] = x[start + threadIdx.x];
#endif
#if PLANT == 3
  if (threadIdx.x < 32) __syncthreads();  // not all threads of the warp's block meet twice
  if (threadIdx.x < 64) __shfl_xor_sync(kWholeWarp, 1, threadIdx.x < 40 ? 1 : 2);
  if (threadIdx.x < 40) __syncthreads();
  if (threadIdx.x >= 40) __shfl_xor_sync(kWholeWarp, 1, 1);
#elif PLANT != 4  // 4: no barrier
  __syncthreads();
#endif
  if (threadIdx.x < count) y[start + threadIdx.x] = part[count - 1 - threadIdx.x];
}

#if PLANT == 5
FM_KERNEL misaligned_kernel(const float* x, float* y) { store(y, load<4>(x + 1)); }
#endif

}  // namespace fastmaml::cuda

int main() {
  const int64_t size = 300;
  float *x = new float[size], *y = new float[size];
  for (int i = 0; i < size; ++i) x[i] = float(i);
  FM_LAUNCH(fastmaml::cuda::reverse_kernel, 2, fastmaml::cuda::kThreads, nullptr, x, y, size);
#if PLANT == 5
  FM_LAUNCH(fastmaml::cuda::misaligned_kernel, 1, 1, nullptr, x, y);
#endif
  const bool right = y[0] == 255 && y[255] == 0 && y[256] == 299 && y[299] == 256;
  std::printf(right ? "right\n" : "wrong\n");
  delete[] x;
  delete[] y;
  return right ? 0 : 1;
}
