// What attention does to a row of a tile, between the products of matrices.
//
// x holds products q k on entry; `bias` is added to the scores, and `drop` multiplies probabilities;
// both may be null. Of n keys the first `seen` count, the others have probability 0.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "../../math/elementary.h"
#include "../simd.h"

namespace fastmaml::attention {

// x = scale x + bias; returns the largest, or `top`.
template <class S>
FM_INLINE S score(S* x, const S* bias, S scale, S top, int64_t seen) {
  if (bias) {
#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < seen; ++i) {
      x[i] = x[i] * scale + bias[i];
      top = x[i] > top ? x[i] : top;
    }
  } else {
#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < seen; ++i) {
      x[i] *= scale;
      top = x[i] > top ? x[i] : top;
    }
  }
  return top;
}

// exp(x - shift), of which it returns the sum
template <class S>
FM_INLINE S exponentials(S* x, S shift, int64_t seen, int64_t n) {
  S sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < seen; ++i) {
    x[i] = math::vexp(x[i] - shift);
    sum += x[i];
  }
  for (int64_t i = seen; i < n; ++i) x[i] = 0;
  return sum;
}

// What is known of a row when some of its keys have been seen: sum = Σ exp(score - top).
template <class S>
struct Softmax {
  S top = -std::numeric_limits<S>::infinity();
  S sum = 0;
};

// x becomes exp(score - top) drop, with a new top; what was summed by the old is to be multiplied by
// the result.
template <class S>
FM_CLONES S forward(S* x, const S* bias, const S* drop, S scale, Softmax<S>* row, int64_t seen, int64_t n) {
  const S top = score(x, bias, scale, row->top, seen);
  const S shift = top == -std::numeric_limits<S>::infinity() ? S(0) : top;
  const S sum = exponentials(x, shift, seen, n), shrink = math::vexp(row->top - shift);
  if (drop) {
#pragma omp simd
    for (int64_t i = 0; i < seen; ++i) x[i] *= drop[i];
  }
  row->top = top;
  row->sum = row->sum * shrink + sum;
  return shrink;
}

template <class S>
FM_CLONES void multiply(S* x, S factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

// out[r] = the product of row r of a and of b
template <class S>
FM_CLONES void dots(const S* a, int64_t a_step, const S* b, int64_t b_step, S* out, int64_t rows, int64_t n) {
  for (int64_t r = 0; r < rows; ++r, a += a_step, b += b_step) {
    S sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
    out[r] = sum;
  }
}

// x becomes exp(score - lse); returns the sum. Divided by the sum over all keys these are the
// probabilities, without what rounding did to lse.
template <class S>
FM_CLONES S weights(S* x, const S* bias, S scale, S lse, int64_t seen, int64_t n) {
  if (lse == -std::numeric_limits<S>::infinity()) seen = 0;
  score(x, bias, scale, lse, seen);
  return exponentials(x, lse, seen, n);
}

template <class S>
FM_INLINE S at(const S* drop, int64_t i) {
  return drop ? drop[i] : S(1);
}

// p, weights, and dp = g v become p drop and the gradient of the products q k.
template <class S>
FM_INLINE void gradient(S* p, S* dp, const S* drop, S norm, S delta, S scale, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const S each = p[i] * norm, m = at(drop, i);
    p[i] = each * m;
    dp[i] = scale * each * (dp[i] * m - delta);
  }
}

template <class S>
FM_CLONES void backward(S* p, S* dp, const S* drop, S norm, S delta, S scale, int64_t n) {
  if (drop) gradient(p, dp, drop, norm, delta, scale, n);
  else gradient(p, dp, static_cast<const S*>(nullptr), norm, delta, scale, n);
}

// How a row moves: its sum of weights, and with probabilities p = weights / sum
//   mean = Σ p t,  slope = Σ p (t (m dp - delta) + m td).
template <class S>
struct Moves {
  S sum = 0, mean = 0, slope = 0;

  FM_INLINE S norm() const { return sum == 0 ? S(0) : S(1) / sum; }  // 0: the row saw no key
};

// A row of a tile: weights p, products t of the tangents of q and k; and only where gradients of q and k
// are wanted dp = g v and td = g hv.
template <class S>
struct SecondRow {
  S *p, *t, *dp, *td;
  const S* drop;
  S scale, delta;
  int64_t n;
};

// What a row's tile adds to mean and slope, before they are divided by the sum of weights.
template <bool Gradients, class S>
FM_INLINE void add_moves(const SecondRow<S>& x, const S* drop, Moves<S>* moves) {
  S mean = 0, slope = 0;
#pragma omp simd reduction(+ : mean, slope)
  for (int64_t i = 0; i < x.n; ++i) {
    const S moved = x.p[i] * x.t[i] * x.scale;
    mean += moved;
    if (Gradients) {
      const S m = at(drop, i);
      slope += moved * (m * x.dp[i] - x.delta) + x.p[i] * m * x.td[i];
    }
  }
  moves->mean += mean;
  moves->slope += slope;
}

// In place: p -> p m, t -> tp m, dp -> ds, td -> the derivative of ds.
template <bool Gradients, class S>
FM_INLINE void second(const SecondRow<S>& x, const S* drop, const Moves<S>& moves) {
  const S norm = moves.norm(), mean = moves.mean * norm, slope = moves.slope * norm;
#pragma omp simd
  for (int64_t i = 0; i < x.n; ++i) {
    const S m = at(drop, i), p = x.p[i] * norm, tp = p * (x.t[i] * x.scale - mean);
    x.p[i] = p * m;
    x.t[i] = tp * m;
    if (Gradients) {
      const S d = x.dp[i] * m - x.delta;
      x.dp[i] = x.scale * p * d;
      x.td[i] = x.scale * (tp * d + p * (x.td[i] * m - slope));
    }
  }
}

template <bool Gradients, class S>
FM_CLONES void add_moves(const SecondRow<S>& x, Moves<S>* moves) {
  if (x.drop) add_moves<Gradients>(x, x.drop, moves);
  else add_moves<Gradients>(x, static_cast<const S*>(nullptr), moves);
}

template <bool Gradients, class S>
FM_CLONES void second(const SecondRow<S>& x, const Moves<S>& moves) {
  if (x.drop) second<Gradients>(x, x.drop, moves);
  else second<Gradients>(x, static_cast<const S*>(nullptr), moves);
}

}  // namespace fastmaml::attention
