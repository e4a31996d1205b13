// Layer norm over one block of rows: forward, gradient, and second derivative.
//
// With r = 1/sqrt(var + eps), n = (x - mean) r, <.> the mean over a row and
//   P(a) = a - <a> - n <a n>,
// the Jacobian of n is a -> r P(a), which is symmetric. So for y = n w + b, u = g w:
//   gx = r P(u),  gw = sum over rows of g n,  gb = sum over rows of g,
// and along (hx, hw, hb), where dn = r P(hx) and dr = -r^2 <n hx>:
//   gg = w dn + n hw + hb,   d gw = sum over rows of g dn,
//   d gx = r P(g hw) + dr P(u) - r (dn <u n> + n <dn u>).
#pragma once

#include <cmath>
#include <cstdint>

#include "simd.h"

namespace fastmaml::layer_norm {

// Rows summed in S before they are added to the sums in double.
constexpr int64_t kChunk = 32;

template <class S>
FM_CLONES void forward(const S* x, const S* w, const S* b, S eps, S* y, S* means, S* rstds, int64_t rows,
                       int64_t D) {
  for (int64_t row = 0; row < rows; ++row, x += D, y += D) {
    S sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < D; ++i) sum += x[i];
    S mean = sum / S(D), rest = 0, squares = 0;
#pragma omp simd reduction(+ : rest, squares)
    for (int64_t i = 0; i < D; ++i) {
      const S d = x[i] - mean;
      rest += d;
      squares += d * d;
    }
    rest /= S(D);  // what rounding left out of the mean
    mean += rest;
    const S rstd = S(1) / std::sqrt(squares / S(D) - rest * rest + eps);
#pragma omp simd
    for (int64_t i = 0; i < D; ++i) y[i] = (x[i] - mean) * rstd * w[i] + b[i];
    means[row] = mean;
    rstds[row] = rstd;
  }
}

// sum += part, part = 0
template <class S>
FM_CLONES void flush(S* part, double* sum, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    sum[i] += static_cast<double>(part[i]);
    part[i] = 0;
  }
}

// gx may be null; gw and gb [D] are added to.
template <class S>
FM_CLONES void backward(const S* g, const S* x, const S* w, const S* means, const S* rstds, S* gx, S* gw,
                        S* gb, int64_t rows, int64_t D) {
  for (int64_t row = 0; row < rows; ++row, x += D, g += D) {
    const S mean = means[row], r = rstds[row];
    S u = 0, un = 0;
#pragma omp simd reduction(+ : u, un)
    for (int64_t i = 0; i < D; ++i) {
      const S n = (x[i] - mean) * r;
      gw[i] += g[i] * n;
      gb[i] += g[i];
      u += g[i] * w[i];
      un += g[i] * w[i] * n;
    }
    if (!gx) continue;
    u /= S(D);
    un /= S(D);
#pragma omp simd
    for (int64_t i = 0; i < D; ++i) gx[i] = r * (g[i] * w[i] - u - (x[i] - mean) * r * un);
    gx += D;
  }
}

// What one block of rows reads and writes. h has a row stride, zero where one row of zeros stands for
// a missing hx. gg and gx may be null; gw [D] is added to.
template <class S>
struct Second {
  const S *h, *hw, *hb, *g, *x, *w, *means, *rstds;
  int64_t h_stride;
  S *gg, *gx, *gw;
};

template <class S>
FM_CLONES void second(const Second<S>& io, int64_t rows, int64_t D) {
  const S *w = io.w, *hw = io.hw, *hb = io.hb;
  S* gw = io.gw;
  for (int64_t row = 0; row < rows; ++row) {
    const S *x = io.x + row * D, *g = io.g + row * D, *h = io.h + row * io.h_stride;
    const S mean = io.means[row], r = io.rstds[row], per = S(1) / S(D);
    // Means over the row: u = g w, v = g hw.
    S u = 0, un = 0, v = 0, vn = 0, m = 0, mn = 0, uh = 0;
#pragma omp simd reduction(+ : u, un, v, vn, m, mn, uh)
    for (int64_t i = 0; i < D; ++i) {
      const S n = (x[i] - mean) * r, ui = g[i] * w[i], vi = g[i] * hw[i];
      u += ui;
      un += ui * n;
      v += vi;
      vn += vi * n;
      m += h[i];
      mn += h[i] * n;
      uh += ui * h[i];
    }
    u *= per, un *= per, v *= per, vn *= per, m *= per, mn *= per, uh *= per;
    const S dn_u = uh - u * m - un * mn;  // <dn u> / r
    if (io.gg) {
      S* gg = io.gg + row * D;
#pragma omp simd
      for (int64_t i = 0; i < D; ++i) {
        const S n = (x[i] - mean) * r;
        gg[i] = w[i] * r * (h[i] - m - n * mn) + n * hw[i] + hb[i];
      }
    }
    if (io.gx) {
      S* gx = io.gx + row * D;
      const S shrink = r * mn;  // -dr / r
      const S e = v - shrink * u, en = vn - shrink * un;
#pragma omp simd
      for (int64_t i = 0; i < D; ++i) {
        const S n = (x[i] - mean) * r;
        const S first = g[i] * (hw[i] - shrink * w[i]) - e - n * en;
        gx[i] = r * (first - r * (un * (h[i] - m - n * mn) + n * dn_u));
      }
    }
#pragma omp simd
    for (int64_t i = 0; i < D; ++i) gw[i] += g[i] * r * (h[i] - m - (x[i] - mean) * r * mn);
  }
}

}  // namespace fastmaml::layer_norm
