// The second derivative of batch norm (with ReLU and pooling): the loops over memory.
//
// With r = rstd, n = (x - mean) r, <.> the mean over a task's pixels, and G the output gradient put
// back where the outputs came from, along (hx, hw, hb):
//   P(a) = a - <a> - n <n a>,  dn = r P(hx),  dr = -r^2 <n hx>,  k = <G hx> - <G><hx> - <n G><n hx>
//   gg   = w dn + n hw + hb, read where the outputs came from
//   d gw = N r k
//   d gx = (r hw + dr w) P(G) - r^2 w (<n G> P(hx) + n k)
// Both outputs are linear in hx, G and x - mean, with coefficients of the channel.
#pragma once

#include "strips.h"

namespace fastmaml::batch_norm {

// sums += sums of G, G (x - mean), G h, h, h (x - mean).
template <Mode M, class S>
FM_CLONES void second_sums(Geometry q, int64_t begin, int64_t end, const S* h, const S* g,
                           const uint8_t* index, const S* x, const S* means, double* sums) {
  const int64_t C = q.C;
  for_groups<S>(q, begin, end, [&](auto lanes, int64_t c, int64_t first, int64_t stop) FM_INLINE_LAMBDA {
    using L = decltype(lanes);
    using V = typename L::Vector;
    const V mean = L::load(means + c);
    V G{}, Gx{}, Gh{}, H{}, Hx{};
    Ahead next_x = Ahead::of_x(q, x, stop, c);
    Ahead next_h = Ahead::of_x(q, h, stop, c);
    Ahead next_g = Ahead::of_y(q, g, stop, c);
    for (int64_t s = first; s < stop; ++s) {
      const Strip strip = strip_at(q, s);
      for (int64_t i = 0; i < strip.windows; ++i) {
        next_x.step(kPixels<M>);
        next_h.step(kPixels<M>);
        next_g.step(1);
        const int64_t at = strip.y + i * C + c;
        const auto which = index_at<M>(lanes, index, at);
        const Window w = window_at<M>(strip, i, C);
        V v[4], u[4], gi = L::load(g + at);
        load_window<M>(lanes, x + c, w, v);
        load_window<M>(lanes, h + c, w, u);
        if constexpr (M != Mode::plain) gi = which == kCut ? V{} : gi;
        G += gi;
        Gx += gi * (chosen<M>(lanes, which, v) - mean);
        Gh += gi * chosen<M>(lanes, which, u);
        if constexpr (M == Mode::pooled) {
          H += (u[0] + u[1]) + (u[2] + u[3]);
          Hx += (u[0] * (v[0] - mean) + u[1] * (v[1] - mean)) + (u[2] * (v[2] - mean) + u[3] * (v[3] - mean));
        } else {
          H += u[0];
          Hx += u[0] * (v[0] - mean);
        }
      }
      for (int64_t i = 0; i < strip.rest; ++i) {
        const int64_t at = strip.rest_x + i * strip.rest_step + c;
        const V u = L::load(h + at);
        H += u;
        Hx += u * (L::load(x + at) - mean);
      }
    }
    L::add(sums + c, G);
    L::add(sums + C + c, Gx);
    L::add(sums + 2 * C + c, Gh);
    L::add(sums + 3 * C + c, H);
    L::add(sums + 4 * C + c, Hx);
  });
}

// gg = E h + F (x - mean) + K where the outputs came from, zero where they were cut;
// gx = A G + B h + D (x - mean) + J. Either may be null. coef holds mean, E, F, K, A, B, D, J.
template <Mode M, class S>
FM_CLONES void second(Geometry q, int64_t begin, int64_t end, const S* h, const S* g,
                      const uint8_t* index, const S* x, const S* coef, S* gg, S* gx) {
  const int64_t C = q.C;
  for_groups<S>(q, begin, end, [&](auto lanes, int64_t c, int64_t first, int64_t stop) FM_INLINE_LAMBDA {
    using L = decltype(lanes);
    using V = typename L::Vector;
    const S* k = coef + c;
    const V mean = L::load(k), E = L::load(k + C), F = L::load(k + 2 * C), K = L::load(k + 3 * C);
    const V A = L::load(k + 4 * C), B = L::load(k + 5 * C), D = L::load(k + 6 * C), J = L::load(k + 7 * C);
    Ahead next_x = Ahead::of_x(q, x, stop, c);
    Ahead next_h = Ahead::of_x(q, h, stop, c);
    Ahead next_g = Ahead::of_y(q, g, stop, c);
    Ahead next_gg = Ahead::of_y(q, gg, stop, c);
    Ahead next_gx = Ahead::of_x(q, gx, stop, c);
    for (int64_t s = first; s < stop; ++s) {
      const Strip strip = strip_at(q, s);
      for (int64_t i = 0; i < strip.windows; ++i) {
        next_x.step(kPixels<M>);
        next_h.step(kPixels<M>);
        next_g.step(1);
        next_gg.step(1);
        next_gx.step(kPixels<M>);
        const int64_t at = strip.y + i * C + c;
        const auto which = index_at<M>(lanes, index, at);
        const Window w = window_at<M>(strip, i, C);
        V v[4], u[4];
        load_window<M>(lanes, x + c, w, v);
        load_window<M>(lanes, h + c, w, u);
        if (gg) {
          V out = E * chosen<M>(lanes, which, u) + F * (chosen<M>(lanes, which, v) - mean) + K;
          if constexpr (M != Mode::plain) out = which == kCut ? V{} : out;
          L::store(gg + at, out);
        }
        if (gx) {
          const V gi = A * L::load(g + at);
          const int64_t pixel[4] = {w.a, w.b, w.d, w.e};
          for (int p = 0; p < kPixels<M>; ++p) {
            const V here = M == Mode::plain ? gi : which == p ? gi : V{};
            L::store(gx + pixel[p] + c, B * u[p] + D * (v[p] - mean) + J + here);
          }
        }
      }
      for (int64_t i = 0; gx && i < strip.rest; ++i) {
        const int64_t at = strip.rest_x + i * strip.rest_step + c;
        L::store(gx + at, B * L::load(h + at) + D * (L::load(x + at) - mean) + J);
      }
    }
  });
}

}  // namespace fastmaml::batch_norm
