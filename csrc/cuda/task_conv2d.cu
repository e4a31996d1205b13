// Convolution as a matrix product: images to columns, and columns summed back into images.
//
// A warp owns a pixel. Each element of an image gathers its columns in a fixed order, so that no
// atomics are needed and sums are always the same.
#include "device.cuh"

namespace fastmaml::cuda {
namespace {

struct Pixel {
  int64_t task, image;
  int32_t y, x;
};

// f(pixel, its number over all tasks): a warp each, of tasks x images x height x width.
template <class F> FM_DEVICE void for_pixels(int64_t tasks, int64_t images, int64_t height, int64_t width, F f) {
  const int64_t step = int64_t(gridDim.x) * kWarps, all = tasks * images * height * width;
  for (int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; i < all; i += step) {
    const int64_t line = i / width, picture = line / height, task = picture / images;
    f(Pixel{task, picture - task * images, int32_t(line - picture * height), int32_t(i - line * width)}, i);
  }
}

template <class S, int V> FM_KERNEL image_to_columns_kernel(const __grid_constant__ ColumnsArgs a) {
  const uint32_t vectors = uint32_t(a.channels / V), taps = uint32_t(a.kernel[0] * a.kernel[1]);
  for_pixels(a.tasks, a.images, a.out_height, a.out_width, [&](Pixel p, int64_t number) {
    const S* image = slice<S>(a.x, p.task) + p.image * a.height * a.width * a.channels;
    S* column = static_cast<S*>(a.out) + number * taps * a.channels;
    for (uint32_t j = threadIdx.x % 32; j < taps * vectors; j += 32) {
      const uint32_t tap = j / vectors, c = (j - tap * vectors) * V;
      const uint32_t ky = tap / uint32_t(a.kernel[1]), kx = tap - ky * uint32_t(a.kernel[1]);
      const int64_t y = p.y * a.stride[0] - a.padding[0] + ky * a.dilation[0];
      const int64_t x = p.x * a.stride[1] - a.padding[1] + kx * a.dilation[1];
      Pack<S, V> pack = {};
      if (y >= 0 && y < a.height && x >= 0 && x < a.width) pack = load<V>(image + (y * a.width + x) * a.channels + c);
      store(column + int64_t(j) * V, pack);
    }
  });
}

template <class S, int V> FM_KERNEL columns_to_image_kernel(const __grid_constant__ ColumnsArgs a) {
  using A = Acc<S>;
  const int64_t depth = a.kernel[0] * a.kernel[1] * a.channels;
  for_pixels(a.tasks, a.images, a.height, a.width, [&](Pixel p, int64_t number) {
    const S* columns = slice<S>(a.columns, p.task) + p.image * a.out_height * a.out_width * depth;
    for (int64_t c = int64_t(threadIdx.x % 32) * V; c < a.channels; c += 32 * V) {
      A sum[V] = {};
      for (int64_t ky = 0; ky < a.kernel[0]; ++ky) {
        const int64_t y = p.y + a.padding[0] - ky * a.dilation[0], out_y = y / a.stride[0];
        if (y < 0 || y != out_y * a.stride[0] || out_y >= a.out_height) continue;
        for (int64_t kx = 0; kx < a.kernel[1]; ++kx) {
          const int64_t x = p.x + a.padding[1] - kx * a.dilation[1], out_x = x / a.stride[1];
          if (x < 0 || x != out_x * a.stride[1] || out_x >= a.out_width) continue;
          A value[V];
          const int64_t tap = (out_y * a.out_width + out_x) * depth + (ky * a.kernel[1] + kx) * a.channels;
          read<S, V>(Input{columns, 0}, 0, tap + c, value);
#pragma unroll
          for (int v = 0; v < V; ++v) sum[v] += value[v];
        }
      }
      write<S, V>(a.out, number * a.channels + c, sum);
    }
  });
}

}  // namespace

int launch_image_to_columns(Dtype dtype, const ColumnsArgs& a, void* stream) {
  return by_dtype(dtype, [&](auto zero) {
    using S = decltype(zero);
    const unsigned blocks = grid(ceil_div(a.tasks * a.images * a.out_height * a.out_width, kWarps));
    const bool vectors = a.channels % kVector<S> == 0 && aligned<S>(a.x, a.tasks) && aligned(a.out);
    if (blocks == 0 || a.channels == 0) return;
    if (vectors) FM_LAUNCH((image_to_columns_kernel<S, kVector<S>>), blocks, kThreads, stream, a);
    else FM_LAUNCH((image_to_columns_kernel<S, 1>), blocks, kThreads, stream, a);
  });
}

int launch_columns_to_image(Dtype dtype, const ColumnsArgs& a, void* stream) {
  return by_dtype(dtype, [&](auto zero) {
    using S = decltype(zero);
    const unsigned blocks = grid(ceil_div(a.tasks * a.images * a.height * a.width, kWarps));
    const bool vectors = a.channels % kVector<S> == 0 && aligned<S>(a.columns, a.tasks) && aligned(a.out);
    if (blocks == 0 || a.channels == 0) return;
    if (vectors) FM_LAUNCH((columns_to_image_kernel<S, kVector<S>>), blocks, kThreads, stream, a);
    else FM_LAUNCH((columns_to_image_kernel<S, 1>), blocks, kThreads, stream, a);
  });
}

}  // namespace fastmaml::cuda
