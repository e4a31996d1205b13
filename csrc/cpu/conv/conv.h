// A convolution of one task and its two gradients, each a series of gemm calls on bands of rows.
//
// Nothing is unfolded: gemm finds a pixel's window by offsets into the (padded) channels-last image.
#pragma once

#include "geometry.h"

namespace fastmaml {

// Names of scratch buffers.
struct Rows;
struct Taps;
struct Lines;
struct Wide;
struct Planes;

// Bands of nearly equal height with at most `pixels` pixels and a source of at most `bytes` each.
inline int64_t count_bands(int64_t rows, int64_t width, int64_t line_bytes, int64_t pixels, int64_t bytes) {
  const int64_t by_pixels = pixels / std::max<int64_t>(1, width);
  const int64_t by_bytes = bytes / std::max<int64_t>(1, line_bytes);
  const int64_t most = std::max<int64_t>(1, std::min(by_pixels, by_bytes));
  return (rows + most - 1) / most;
}

// The bytes of a band's source: the more, the more weights pass for each.
inline int64_t source_bytes(int64_t weights_bytes) {
  constexpr int64_t kLeast = 160 << 10, kMost = 640 << 10;
  return std::clamp(weights_bytes / 16, kLeast, kMost);
}

// The source of output rows [r0, r1) (counted over all images) in the padded x.
template <class S>
void read_inputs(const Conv& v, const S* x, int64_t r0, int64_t r1, Band<S>& band) {
  const auto low = [&](int64_t oh) { return oh * v.stride_h - v.pad_h; };
  const auto high = [&](int64_t oh) { return low(oh - 1) + v.reach_h(); };
  const int64_t x0 = -v.pad_w, x1 = x0 + v.span_w();
  read_band(band, x, v.height, v.width, v.channels, v.out_height, r0, r1, x0, x1, low, high);
}

// The source of a band, channel by channel: of each a plane of so many numbers as are returned.
template <class S>
int64_t to_planes(const Conv& v, Band<S>& band) {
  const int64_t C = v.channels;
  const auto lines_of = [&](const Piece& p) { return (p.end - p.begin - 1) * v.stride_h + v.reach_h(); };
  int64_t lines = 0, line = 0;
  for (const Piece& piece : band.pieces) lines += lines_of(piece);
  const int64_t plane = lines * band.width + kernels<S>().lanes;  // transpose may store zeros beyond a piece
  S* planes = scratch<Planes, S>(C * plane);
  for (Piece& piece : band.pieces) {
    const int64_t first = piece.begin * v.stride_h - v.pad_h, count = lines_of(piece);
    const S* from = band.base + piece.origin + (first * band.width - v.pad_w) * C;
    kernels<S>().transpose(planes + line * band.width, plane, from, C, count * band.width, C);
    piece.origin = (line - first) * band.width + v.pad_w;
    line += count;
  }
  band.base = planes;
  return plane;
}

// Rows [begin, end) of y, counted over the images. w lies as [kernel_h, kernel_w, channels, w_step].
template <class S>
void conv_forward(const Conv& v, const S* x, const S* w, int64_t w_step, const S* bias, S* y, int64_t begin,
                  int64_t end) {
  const int64_t C = v.channels, O = v.outputs;
  const int64_t line_bytes = v.span_w() * v.stride_h * C * sizeof(S);
  const int64_t source = source_bytes(v.w_size() * sizeof(S));
  const int64_t bands = count_bands(end - begin, v.out_width, line_bytes, 2048, source);
  // Taps side by side in a row of the image are one longer segment.
  const bool joined = v.dilation_w == 1;
  const int64_t across = joined ? 1 : v.kernel_w;
  int64_t* a_segment = scratch<Taps, int64_t>(2 * v.taps());
  int64_t* b_segment = a_segment + v.taps();
  Band<S> band;
  for (int64_t i = 0; i < bands; ++i) {
    const int64_t r0 = begin + i * (end - begin) / bands, r1 = begin + (i + 1) * (end - begin) / bands;
    read_inputs(v, x, r0, r1, band);
    const int64_t pixels = (r1 - r0) * v.out_width;
    int64_t* a_row = scratch<Rows, int64_t>(2 * pixels);
    int64_t* c_row = a_row + pixels;
    int64_t m = 0;
    for (const Piece& piece : band.pieces)
      for (int64_t oh = piece.begin; oh < piece.end; ++oh)
        for (int64_t ow = 0; ow < v.out_width; ++ow, ++m) {
          const int64_t h = oh * v.stride_h - v.pad_h, w = ow * v.stride_w - v.pad_w;
          a_row[m] = piece.origin + (h * band.width + w) * C;
          c_row[m] = m * O;
        }
    for (int64_t kh = 0; kh < v.kernel_h; ++kh)
      for (int64_t kw = 0; kw < across; ++kw) {
        a_segment[kh * across + kw] = (kh * v.dilation_h * band.width + kw * v.dilation_w) * C;
        b_segment[kh * across + kw] = (kh * v.kernel_w + kw) * C;
      }
    Gemm<S> g;
    g.a = band.base, g.b = w, g.c = y + r0 * v.out_width * O, g.bias = bias;
    g.rows = pixels, g.columns = O;
    g.a_row = a_row, g.c_row = c_row;
    g.segments = v.kernel_h * across, g.length = joined ? v.kernel_w * C : C;
    g.a_segment = a_segment, g.b_segment = b_segment;
    g.b_step = w_step;
    kernels<S>().gemm(g);
  }
}

// Rows [begin, end) of x's gradient, counted over the images. w lies as [kernel_h, kernel_w, outputs,
// w_step]. Pixels of x that differ by strides see the same taps: each such phase is one gemm.
template <class S>
void conv_dgrad(const Conv& v, const S* g_, const S* w, int64_t w_step, S* gx, int64_t begin, int64_t end) {
  const int64_t C = v.channels, O = v.outputs;
  const auto low = [&](int64_t h) { return floor_div(h + v.pad_h - v.reach_h() + 1, v.stride_h); };
  const auto high = [&](int64_t h) { return floor_div(h - 1 + v.pad_h, v.stride_h) + 1; };
  const int64_t x0 = floor_div(v.pad_w - v.reach_w() + 1, v.stride_w);
  const int64_t x1 = floor_div(v.width - 1 + v.pad_w, v.stride_w) + 1;
  const int64_t line_bytes = (x1 - x0) * O * sizeof(S) / v.stride_h;
  const int64_t bands = count_bands(end - begin, v.width, line_bytes, 2048, source_bytes(v.w_size() * sizeof(S)));
  int64_t* a_segment = scratch<Taps, int64_t>(2 * v.taps());
  int64_t* b_segment = a_segment + v.taps();
  Band<S> band;
  for (int64_t i = 0; i < bands; ++i) {
    const int64_t r0 = begin + i * (end - begin) / bands, r1 = begin + (i + 1) * (end - begin) / bands;
    read_band(band, g_, v.out_height, v.out_width, O, v.height, r0, r1, x0, x1, low, high);
    int64_t* a_row = scratch<Rows, int64_t>(2 * (r1 - r0) * v.width);
    int64_t* c_row = a_row + (r1 - r0) * v.width;
    for (int64_t fh = 0; fh < v.stride_h; ++fh)
      for (int64_t fw = 0; fw < v.stride_w; ++fw) {
        // The taps of this phase, as offsets from where its first tap reads.
        int64_t taps = 0;
        int64_t top = 0, leftmost = 0;
        for (int64_t kh = 0; kh < v.kernel_h; ++kh)
          for (int64_t kw = 0; kw < v.kernel_w; ++kw) {
            if ((fh + v.pad_h - kh * v.dilation_h) % v.stride_h) continue;
            if ((fw + v.pad_w - kw * v.dilation_w) % v.stride_w) continue;
            if (taps == 0) top = kh, leftmost = kw;
            const int64_t up = (kh - top) * v.dilation_h / v.stride_h;
            const int64_t back = (kw - leftmost) * v.dilation_w / v.stride_w;
            a_segment[taps] = -(up * band.width + back) * O;
            b_segment[taps++] = (kh * v.kernel_w + kw) * O;
          }
        int64_t pixels = 0;
        for (const Piece& piece : band.pieces)
          for (int64_t h = piece.begin; h < piece.end; ++h) {
            if (h % v.stride_h != fh) continue;
            const int64_t y = (h + v.pad_h - top * v.dilation_h) / v.stride_h;
            const int64_t first = (fw + v.pad_w - leftmost * v.dilation_w) / v.stride_w;
            int64_t from = piece.origin + (y * band.width + first) * O;
            int64_t to = ((piece.image * v.height + h) * v.width + fw) * C;
            for (int64_t x = fw; x < v.width; x += v.stride_w, from += O, to += v.stride_w * C) {
              a_row[pixels] = from;
              c_row[pixels++] = to;
            }
          }
        Gemm<S> g;
        g.a = band.base, g.b = w, g.c = gx;
        g.rows = pixels, g.columns = C;
        g.a_row = a_row, g.c_row = c_row;
        g.segments = taps, g.length = O;
        g.a_segment = a_segment, g.b_segment = b_segment;
        g.b_step = w_step;
        kernels<S>().gemm(g);
      }
  }
}

// Rows [begin, end) of the weights' gradient [kernel_h * kernel_w * channels, outputs].
template <class S>
void conv_wgrad(const Conv& v, const S* g_, const S* x, S* gw, int64_t begin, int64_t end) {
  const int64_t C = v.channels, O = v.outputs, count = end - begin, lanes = kernels<S>().lanes;
  const int64_t total = v.images * v.out_height;
  const int64_t line_bytes = v.span_w() * v.stride_h * C * sizeof(S);
  // Sums run over pixels: where there is much of each channel, it is laid out channel by channel.
  const bool planar = C >= lanes && v.stride_w == 1;
  // Few enough pixels that their rows of g stay in a near cache while all rows of gw pass.
  const int64_t bands = count_bands(total, v.out_width, planar ? 0 : line_bytes, planar ? 512 : 256, source_bytes(0));
  int64_t* a_row = scratch<Rows, int64_t>(2 * count);
  int64_t* c_row = a_row + count;
  Band<S> band;
  Gemm<S> g;
  g.c = gw, g.a_row = a_row, g.c_row = c_row, g.rows = count, g.columns = O;
  for (int64_t i = 0; i < bands || i == 0; ++i) {
    const int64_t r0 = bands ? i * total / bands : 0, r1 = bands ? (i + 1) * total / bands : 0;
    read_inputs(v, x, r0, r1, band);
    const int64_t plane = planar ? to_planes(v, band) : 1, pixel = planar ? 1 : C;
    for (int64_t m = begin; m < end; ++m) {
      const int64_t kh = m / C / v.kernel_w, kw = m / C % v.kernel_w;
      a_row[m - begin] = (kh * v.dilation_h * band.width + kw * v.dilation_w) * pixel + m % C * plane;
      c_row[m - begin] = m * O;
    }
    int64_t* a_segment = scratch<Lines, int64_t>(2 * (r1 - r0));
    int64_t* b_segment = a_segment + (r1 - r0);
    int64_t line = 0;
    for (const Piece& piece : band.pieces)
      for (int64_t oh = piece.begin; oh < piece.end; ++oh, ++line) {
        a_segment[line] = piece.origin + ((oh * v.stride_h - v.pad_h) * band.width - v.pad_w) * pixel;
        b_segment[line] = line * v.out_width;
      }
    g.a = band.base, g.a_step = v.stride_w * pixel;
    g.b = g_ + r0 * v.out_width * O, g.b_step = O;
    if (planar || O < lanes) {
      const int64_t pixels = line * v.out_width;
      S* panels = scratch<Wide, S>(pixels * std::max(O, lanes));
      kernels<S>().pack(panels, g.b, O, pixels, O);
      g.b = panels, g.depth = pixels;
    }
    g.segments = line, g.length = v.out_width;
    g.a_segment = a_segment, g.b_segment = b_segment;
    kernels<S>().gemm(g);
    g.accumulate = true;
  }
}

}  // namespace fastmaml
