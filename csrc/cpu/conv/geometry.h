// Where a convolution's elements lie: sizes, and windows of zero-padded channels-last images.
#pragma once

#include "../gemm/kernels.h"
#include "../scratch.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace fastmaml {

struct Conv {
  int64_t tasks, images, channels, height, width;     // of x
  int64_t outputs, out_height, out_width;             // of y
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;

  // Rows and columns that one window spans, and columns that a row of windows spans.
  int64_t reach_h() const { return (kernel_h - 1) * dilation_h + 1; }
  int64_t reach_w() const { return (kernel_w - 1) * dilation_w + 1; }
  int64_t span_w() const { return (out_width - 1) * stride_w + reach_w(); }
  int64_t taps() const { return kernel_h * kernel_w; }
  int64_t x_size() const { return images * height * width * channels; }
  int64_t y_size() const { return images * out_height * out_width * outputs; }
  int64_t w_size() const { return taps() * channels * outputs; }
  double flops() const { return 2.0 * images * out_height * out_width * w_size(); }
};

inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

// The part of one image that a band of rows reads: where its pixel (0, 0) is, or would be.
struct Piece {
  int64_t image, begin, end;  // rows of the band, in the coordinates of the other side
  int64_t origin;
};

// A band of rows of all images of a task, read from the images themselves where no pixel outside
// them is wanted, else from a padded copy.
template <class S>
struct Band {
  const S* base;
  int64_t width;  // pixels per row of the source
  std::vector<Piece> pieces;
};

struct Padded;

// Rows [r0, r1), counted over the images of `rows` rows each, need of their image the rows from
// low(begin) to high(end) (exclusive) and the columns [x0, x1).
template <class S, class Low, class High>
void read_band(Band<S>& band, const S* x, int64_t height, int64_t width, int64_t channels, int64_t rows,
               int64_t r0, int64_t r1, int64_t x0, int64_t x1, const Low& low, const High& high) {
  band.pieces.clear();
  const bool inside = x0 >= 0 && x1 <= width && low(0) >= 0 && high(rows) <= height;
  int64_t size = 0;
  for (int64_t r = r0; r < r1;) {
    const int64_t image = r / rows, begin = r % rows, end = std::min(rows, begin + r1 - r);
    band.pieces.push_back({image, begin, end, image * height * width * channels});
    size += (high(end) - low(begin)) * (x1 - x0) * channels;
    r += end - begin;
  }
  band.base = x;
  band.width = width;
  if (inside) return;
  S* out = scratch<Padded, S>(size);
  band.base = out;
  band.width = x1 - x0;
  const int64_t line = (x1 - x0) * channels;
  const int64_t left = std::clamp<int64_t>(-x0, 0, x1 - x0);
  const int64_t right = std::clamp<int64_t>(x1 - width, 0, x1 - x0 - left);
  for (Piece& piece : band.pieces) {
    const int64_t first = low(piece.begin), past = high(piece.end);
    const S* image = x + piece.origin;
    piece.origin = (out - band.base) - first * line - x0 * channels;
    for (int64_t y = first; y < past; ++y, out += line) {
      if (y < 0 || y >= height) {
        std::fill_n(out, line, S(0));
        continue;
      }
      const int64_t middle = (x1 - x0 - left - right) * channels;
      std::fill_n(out, left * channels, S(0));
      if (middle > 0)
        std::memcpy(out + left * channels, image + (y * width + x0 + left) * channels, middle * sizeof(S));
      std::fill_n(out + line - right * channels, right * channels, S(0));
    }
  }
}

}  // namespace fastmaml
