// What both derivatives of attention share: probabilities from the saved log-sum-exp, how the work is
// swept, and matrices of a head's rows as the right sides of products.
#pragma once

#include "rows.h"
#include "tiles.h"

namespace fastmaml::attention {

// What one sweep finds out about every row for the other: `kinds` numbers.
template <class S>
struct RowNumbers {
  Tensor tensor;
  int64_t kinds, rows;

  RowNumbers(const Shape& shape, int64_t kinds, int32_t dtype)
      : tensor(empty_dense({shape.all_heads(), kinds, shape.rows}, dtype)),
        kinds(kinds),
        rows(shape.rows) {}
  S* at(const Head& head, int64_t kind) const {
    return output<S>(tensor) + (head.index * kinds + kind) * rows;
  }
};

// What a sweep over a head writes. Where there are fewer heads than threads, results by row and by key
// come from two sweeps, and each result is summed in the same order as in one.
struct Sweep {
  bool by_row, by_key;
};

// f(head, row tiles, key tiles, sweep) over all heads. The sweep by row comes first: it also finds what
// rows with more than a tile of keys are like.
template <class F>
void for_all_heads(const Shape& shape, const Tiling& rows, const Tiling& keys, double flops, Sweep wanted,
                   const F& f) {
  const int64_t heads = shape.all_heads();
  const Span all_rows{0, rows.count}, all_keys{0, keys.count};
  if (heads >= static_cast<int64_t>(torch::stable::get_num_threads())) {
    const Sweep both{true, true};
    return for_each_unit(heads, flops, [&](int64_t i) { f(Head(shape, i), all_rows, all_keys, both); });
  }
  const int64_t by_row = parts_per_task(heads, rows.count, flops);
  const int64_t by_key = parts_per_task(heads, keys.count, flops);
  if (wanted.by_row || keys.count > 1)
    for_each_unit(heads * by_row, flops / by_row, [&](int64_t i) {
      f(Head(shape, i / by_row), rows.part(i % by_row, by_row), all_keys, Sweep{true, false});
    });
  if (wanted.by_key)
    for_each_unit(heads * by_key, flops / by_key, [&](int64_t i) {
      f(Head(shape, i / by_key), all_rows, keys.part(i % by_key, by_key), Sweep{false, true});
    });
}

// A tile of rows of x in panels, to be multiplied by the transpose of a tile.
template <int Number, class S>
const S* packed_rows(Matrix<const S> x, Span rows, int64_t width) {
  S* out = buffer<Number, S>(kRows * std::max(width, kernels<S>().lanes));
  if (x) kernels<S>().pack(out, x.row(rows.begin), x.step, rows.size(), width);
  return out;
}

template <class S>
void clear(Matrix<S> x, Span rows, int64_t width) {
  for (int64_t i = rows.begin; x && i < rows.end; ++i) std::fill_n(x.row(i), width, S(0));
}

template <class S>
S inverse(S sum) {
  return sum == 0 ? S(0) : S(1) / sum;  // a row that saw no key
}

// p of a tile = exp(scores - lse), and sums[r] += its sum over row r.
template <class S>
void weigh(const Call<S>& call, const Head& head, Span rows, Span keys, const Panels<S>& k, const S* lse,
           Matrix<S> p, S* sums) {
  const int64_t n = keys.size();
  S bias[kKeys];
  Product<S>{rows.size(), n, call.shape.size}(call.q.at(head).from(rows.begin), k.tile(keys), p);
  for (int64_t r = 0; r < rows.size(); ++r) {
    const int64_t row = rows.begin + r;
    sums[r] += weights(p.row(r), call.bias(head, row, keys.begin, n, bias), static_cast<S>(call.how.scale),
                       lse[row], call.seen(row, keys.begin, n), n);
  }
}

}  // namespace fastmaml::attention
