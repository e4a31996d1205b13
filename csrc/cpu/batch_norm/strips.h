// Batch norm with ReLU and 2x2 max pooling over channels-last images: the loops over memory.
//
// The images of a task are walked in strips: with pooling a row of windows (two rows of pixels, one
// where H is odd), otherwise a run of pixels. Every kernel takes a range of strips, in groups short
// enough for the first cache, and keeps what belongs to a vector of channels in registers throughout a
// group. Sums run in S over a group and in double over all of them.
#pragma once

#include <cstdint>

#include "../lanes.h"
#include "../simd.h"
#include "../work.h"

namespace fastmaml::batch_norm {

// What an output remembers of its window: the pixel it came from, or that no gradient goes back.
enum class Mode { plain, masked, pooled };  // no index, index 0 or kCut, index 0..3 or kCut
constexpr int kCut = 4;

// Elements of x in a group of strips: small enough for the first cache with what goes with them.
constexpr int64_t kGroup = 4096;

struct Geometry {
  int64_t N, H, W, C;
  bool pool;
  int64_t windows;  // at most, in a strip
  int64_t group;    // strips in a group

  Geometry(int64_t N, int64_t C, int64_t H, int64_t W, bool pool)
      : N(N), H(H), W(W), C(C), pool(pool), windows(pool ? W / 2 : run(C)), group(1) {
    if (pool) group = std::max<int64_t>(1, kGroup / std::max<int64_t>(1, 2 * W * C));
  }

  // Pixels in a strip without pooling.
  static int64_t run(int64_t C) { return std::clamp<int64_t>(kGroup / std::max<int64_t>(1, C), 8, 64); }
  int64_t pixels() const { return N * H * W; }
  int64_t rows() const { return divide_up(H, 2); }  // of windows, with an odd last row of pixels
  int64_t strips() const { return pool ? (W > 0 ? N * rows() : 0) : divide_up(pixels(), windows); }
  int64_t pixels_per_strip() const { return pool ? 2 * W : windows; }
};

// Where a strip lies: offsets in elements, windows of x and y side by side, pixels that no window has.
struct Strip {
  int64_t x, y, windows, x_step, below;  // below: from a window's upper pixels to its lower ones
  int64_t rest_x, rest, rest_step;       // loose pixels: an odd last column, or an odd last row
};

FM_INLINE Strip strip_at(const Geometry& q, int64_t s) {
  const int64_t C = q.C;
  if (!q.pool) {
    const int64_t from = s * q.windows;
    return {from * C, from * C, std::min(q.windows, q.pixels() - from), C, 0, 0, 0, 0};
  }
  const int64_t n = s / q.rows(), row = s % q.rows(), line = q.W * C;
  const int64_t x = (n * q.H + 2 * row) * line, y = (n * (q.H / 2) + row) * q.windows * C;
  if (2 * row + 1 == q.H) return {x, y, 0, 0, 0, x, q.W, C};
  return {x, y, q.windows, 2 * C, line, x + 2 * q.windows * C, 2 * (q.W % 2), line};
}

// body(lanes, channel, first strip, end) for every group of strips and vector of channels.
template <class S, class Body>
FM_INLINE void for_groups(const Geometry& q, int64_t begin, int64_t end, const Body& body) {
  for (int64_t s = begin; s < end; s += q.group) {
    const int64_t stop = std::min(end, s + q.group);
    for_lanes<S>(q.C, [&](auto lanes, int64_t c) FM_INLINE_LAMBDA { body(lanes, c, s, stop); });
  }
}

// Fetches the next group from memory, line by line, while this one is worked on: as many lines with
// every window as its vectors take up. Jumping from pixel to pixel, as a loop over vectors of channels
// does, is not followed by the hardware's own prefetching; outside the caches this is worth a factor of
// up to five.
class Ahead {
 public:
  template <class S>
  static FM_INLINE Ahead of_x(const Geometry& q, const S* x, int64_t strip, int64_t c) {
    return {x, strip_at(q, strip).x + q.group * q.windows * (q.pool ? 4 : 1) * c, sizeof(S)};
  }
  template <class S>
  static FM_INLINE Ahead of_y(const Geometry& q, const S* y, int64_t strip, int64_t c) {
    return {y, strip_at(q, strip).y + q.group * q.windows * c, sizeof(S)};
  }
  FM_INLINE void step(int lines) {
    for (int i = 0; i < lines; ++i) {
      __builtin_prefetch(reinterpret_cast<const void*>(at_ + 64 * i));
    }
    at_ += 64 * lines;
  }

 private:
  FM_INLINE Ahead(const void* data, int64_t elements, int64_t size)
      : at_(reinterpret_cast<uintptr_t>(data) + elements * size) {}

  uintptr_t at_;  // may point past the end: asking for it does no harm
};

// The offsets of a window's four pixels; without pooling there is one.
struct Window {
  int64_t a, b, d, e;
};

template <Mode M>
FM_INLINE Window window_at(const Strip& strip, int64_t i, int64_t C) {
  const int64_t a = strip.x + i * strip.x_step;
  if (M != Mode::pooled) return {a, a, a, a};
  return {a, a + C, a + strip.below, a + strip.below + C};
}

template <Mode M, class L>
FM_INLINE typename L::Index index_at(L, const uint8_t* index, int64_t offset) {
  if constexpr (M == Mode::plain) return typename L::Index{};
  else return L::load_index(index + offset);
}

template <Mode M>
constexpr int kPixels = M == Mode::pooled ? 4 : 1;  // of a window

// The pixel of a window that its output came from; any of them where it was cut.
template <Mode M, class L>
FM_INLINE typename L::Vector chosen(L, const typename L::Index& which, const typename L::Vector (&v)[4]) {
  if constexpr (M != Mode::pooled) {
    return v[0];
  } else {
    const auto low = which == 1 ? v[1] : v[0], high = which == 3 ? v[3] : v[2];
    return which >= 2 ? high : low;
  }
}

template <Mode M, class L, class S>
FM_INLINE void load_window(L, const S* x, const Window& w, typename L::Vector (&v)[4]) {
  v[0] = L::load(x + w.a);
  if constexpr (M == Mode::pooled) {
    v[1] = L::load(x + w.b);
    v[2] = L::load(x + w.d);
    v[3] = L::load(x + w.e);
  }
}

// ---- statistics ----

// Mean and sum of squared deviations of some pixels, in one pass over memory: each run is summed, and
// squared about its own mean while it is in the cache, relative to the first pixel (which takes out a
// mean far larger than the deviations); runs are merged in double.
template <class S>
FM_CLONES void moments(const S* x, int64_t pixels, int64_t C, double* mean, double* square) {
  std::fill_n(mean, C, 0.0);
  std::fill_n(square, C, 0.0);
  const int64_t most = Geometry::run(C);
  for (int64_t from = 0; from < pixels; from += most) {
    const int64_t n = std::min(most, pixels - from);
    const double share = double(n) / double(from + n), cross = share * double(from);
    for_lanes<S>(C, [&](auto lanes, int64_t c) FM_INLINE_LAMBDA {
      using L = decltype(lanes);
      using V = typename L::Vector;
      const S* run = x + from * C + c;
      const S* next = x + (from + most) * C + n * c;
      const V base = L::load(x + c);
      V s0{}, s1{}, s2{}, s3{};
      int64_t i = 0;
      for (; i + 4 <= n; i += 4) {
        for (int64_t k = i; k < i + 4; ++k) __builtin_prefetch(next + k * L::width);
        s0 += L::load(run + i * C) - base;
        s1 += L::load(run + (i + 1) * C) - base;
        s2 += L::load(run + (i + 2) * C) - base;
        s3 += L::load(run + (i + 3) * C) - base;
      }
      for (; i < n; ++i) s0 += L::load(run + i * C) - base;
      const V middle = ((s0 + s1) + (s2 + s3)) / S(n);
      V q0{}, q1{}, q2{}, q3{};
      for (i = 0; i + 4 <= n; i += 4) {
        const V d0 = L::load(run + i * C) - base - middle;
        const V d1 = L::load(run + (i + 1) * C) - base - middle;
        const V d2 = L::load(run + (i + 2) * C) - base - middle;
        const V d3 = L::load(run + (i + 3) * C) - base - middle;
        q0 += d0 * d0;
        q1 += d1 * d1;
        q2 += d2 * d2;
        q3 += d3 * d3;
      }
      for (; i < n; ++i) {
        const V d = L::load(run + i * C) - base - middle;
        q0 += d * d;
      }
      S middles[L::width], squares[L::width];
      L::store(middles, middle);
      L::store(squares, (q0 + q1) + (q2 + q3));
      for (int k = 0; k < L::width; ++k) {
        const double delta = double(middles[k]) - mean[c + k];
        mean[c + k] += delta * share;
        square[c + k] += double(squares[k]) + delta * delta * cross;
      }
    });
  }
  for (int64_t c = 0; c < C; ++c) mean[c] += double(x[c]);
}

// ---- forward ----

// y = (x - mean) scale + shift, through ReLU and pooling. coef holds mean, scale, shift.
// A NaN in a channel has made all of it NaN, through the statistics: no window has only some.
template <Mode M, bool kRelu, class S>
FM_CLONES void forward(Geometry q, int64_t begin, int64_t end, const S* x, const S* coef, S* y,
                       uint8_t* index) {
  const int64_t C = q.C;
  for_groups<S>(q, begin, end, [&](auto lanes, int64_t c, int64_t first, int64_t stop) FM_INLINE_LAMBDA {
    using L = decltype(lanes);
    using V = typename L::Vector;
    using I = typename L::Index;
    const V mean = L::load(coef + c), scale = L::load(coef + C + c), shift = L::load(coef + 2 * C + c);
    const I none = I{} + kCut;
    Ahead next_x = Ahead::of_x(q, x, stop, c);
    Ahead next_y = Ahead::of_y(q, y, stop, c);
    for (int64_t s = first; s < stop; ++s) {
      const Strip strip = strip_at(q, s);
      for (int64_t i = 0; i < strip.windows; ++i) {
        next_x.step(kPixels<M>);
        next_y.step(1);
        const int64_t at = strip.y + i * C + c;
        V v[4];
        load_window<M>(lanes, x + c, window_at<M>(strip, i, C), v);
        V best = (v[0] - mean) * scale + shift;
        I which{};
        if constexpr (M == Mode::pooled) {
          for (int k = 1; k < 4; ++k) {
            const V z = (v[k] - mean) * scale + shift;
            which = z > best ? I{} + k : which;
            best = z > best ? z : best;
          }
        }
        if constexpr (kRelu) {
          which = best <= V{} ? none : which;
          best = best <= V{} ? V{} : best;
        }
        L::store(y + at, best);
        if constexpr (M != Mode::plain) L::store_index(index + at, which);
      }
    }
  });
}

// ---- gradient ----

// sums += sum of g, sum of g (x - mean), over outputs that were not cut.
template <Mode M, class S>
FM_CLONES void backward_sums(Geometry q, int64_t begin, int64_t end, const S* g, const uint8_t* index,
                             const S* x, const S* means, double* sums) {
  const int64_t C = q.C;
  for_groups<S>(q, begin, end, [&](auto lanes, int64_t c, int64_t first, int64_t stop) FM_INLINE_LAMBDA {
    using L = decltype(lanes);
    using V = typename L::Vector;
    const V mean = L::load(means + c);
    V sum{}, product{};
    Ahead next_x = Ahead::of_x(q, x, stop, c);
    Ahead next_g = Ahead::of_y(q, g, stop, c);
    for (int64_t s = first; s < stop; ++s) {
      const Strip strip = strip_at(q, s);
      for (int64_t i = 0; i < strip.windows; ++i) {
        next_x.step(kPixels<M>);
        next_g.step(1);
        const int64_t at = strip.y + i * C + c;
        const auto which = index_at<M>(lanes, index, at);
        V v[4], gi = L::load(g + at);
        load_window<M>(lanes, x + c, window_at<M>(strip, i, C), v);
        if constexpr (M != Mode::plain) gi = which == kCut ? V{} : gi;
        sum += gi;
        product += gi * (chosen<M>(lanes, which, v) - mean);
      }
    }
    L::add(sums + c, sum);
    L::add(sums + C + c, product);
  });
}

// gx = A g + B (x - mean) + D, g being zero but at the chosen pixel. coef holds mean, A, B, D.
template <Mode M, class S>
FM_CLONES void backward(Geometry q, int64_t begin, int64_t end, const S* g, const uint8_t* index,
                        const S* x, const S* coef, S* gx) {
  const int64_t C = q.C;
  for_groups<S>(q, begin, end, [&](auto lanes, int64_t c, int64_t first, int64_t stop) FM_INLINE_LAMBDA {
    using L = decltype(lanes);
    using V = typename L::Vector;
    const V mean = L::load(coef + c), A = L::load(coef + C + c);
    const V B = L::load(coef + 2 * C + c), D = L::load(coef + 3 * C + c);
    Ahead next_x = Ahead::of_x(q, x, stop, c);
    Ahead next_g = Ahead::of_y(q, g, stop, c);
    Ahead next_gx = Ahead::of_x(q, gx, stop, c);
    for (int64_t s = first; s < stop; ++s) {
      const Strip strip = strip_at(q, s);
      for (int64_t i = 0; i < strip.windows; ++i) {
        next_x.step(kPixels<M>);
        next_g.step(1);
        next_gx.step(kPixels<M>);
        const int64_t at = strip.y + i * C + c;
        const auto which = index_at<M>(lanes, index, at);
        const V gi = A * L::load(g + at);
        const Window w = window_at<M>(strip, i, C);
        const int64_t pixel[4] = {w.a, w.b, w.d, w.e};
        for (int k = 0; k < kPixels<M>; ++k) {
          const V here = M == Mode::plain ? gi : which == k ? gi : V{};
          L::store(gx + pixel[k] + c, (L::load(x + pixel[k] + c) - mean) * B + D + here);
        }
      }
      for (int64_t i = 0; i < strip.rest; ++i) {
        const int64_t at = strip.rest_x + i * strip.rest_step + c;
        L::store(gx + at, (L::load(x + at) - mean) * B + D);
      }
    }
  });
}

}  // namespace fastmaml::batch_norm
