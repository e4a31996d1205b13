// Tiles of rows by keys, and the products of matrices that attention makes of them.
#pragma once

#include "../gemm/kernels.h"
#include "../scratch.h"
#include "../work.h"
#include "attention.h"

namespace fastmaml::attention {

// The tiles of one thread fit its second-level cache, all five of a second derivative.
constexpr int64_t kRows = 64, kKeys = 512;

// Rows or keys [begin, end).
struct Span {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

struct Tiling {
  int64_t length, tile, count;

  Tiling(int64_t length, int64_t tile) : length(length), tile(tile), count(divide_up(length, tile)) {}
  Span at(int64_t i) const { return {i * tile, std::min(length, (i + 1) * tile)}; }
  // The tiles of a part, and all that they cover.
  Span part(int64_t i, int64_t parts) const { return {i * count / parts, (i + 1) * count / parts}; }
};

// Each number is another buffer of the thread.
template <int Number>
struct Buffer;

template <int Number, class S>
S* buffer(int64_t count) {
  return scratch<Buffer<Number>, S>(count);
}

// A buffer of row offsets i * step; there are never more rows than keys of a tile.
template <int Number>
const int64_t* offsets(int64_t step, int64_t count) {
  int64_t* out = buffer<Number, int64_t>(std::max(kRows, kKeys));
  for (int64_t i = 0; i < count; ++i) out[i] = i * step;
  return out;
}

// C (+)= A B of one tile, B in panels. A may lie transposed: then row m of A begins at a[m].
template <class S>
struct Product {
  int64_t rows, columns, depth;
  bool transposed = false;
  bool accumulate = false;

  void operator()(Matrix<const S> a, const S* panels, Matrix<S> c) const {
    if (rows == 0 || columns == 0) return;
    const int64_t zero = 0;
    Gemm<S> g;
    g.a = a.data, g.b = panels, g.c = c.data;
    g.rows = rows, g.columns = columns;
    g.a_row = offsets<0>(transposed ? 1 : a.step, rows);
    g.c_row = offsets<1>(c.step, rows);
    g.segments = 1, g.length = depth, g.depth = depth;
    g.a_segment = &zero, g.b_segment = &zero;
    g.a_step = transposed ? a.step : 1;
    g.accumulate = accumulate;
    if (depth > 0) return kernels<S>().gemm(g);
    for (int64_t m = 0; m < rows && !accumulate; ++m) std::fill_n(c.row(m), columns, S(0));
  }
};

// A matrix of keys by width in panels, tile by tile: along the keys (as what rows are multiplied by to
// get scores), or along the width (as what is summed over keys).
template <class S>
class Panels {
 public:
  Panels() = default;

  static int64_t room(const Tiling& keys, int64_t width) {
    const int64_t lanes = kernels<S>().lanes;
    return (keys.length + lanes) * std::max(width, lanes);
  }

  static Panels along_keys(S* out, Matrix<const S> x, int64_t width, const Tiling& keys, Span tiles) {
    return filled(out, width, keys, tiles, [&](S* to, Span span) {
      kernels<S>().pack_transposed(to, x.row(span.begin), x.step, width, span.size());
    });
  }

  static Panels along_width(S* out, Matrix<const S> x, int64_t width, const Tiling& keys, Span tiles) {
    const int64_t each = std::max(width, kernels<S>().lanes);
    return filled(out, each, keys, tiles, [&](S* to, Span span) {
      kernels<S>().pack(to, x.row(span.begin), x.step, span.size(), width);
    });
  }

  const S* tile(Span span) const { return data_ + (span.begin - first_) * each_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  template <class F>
  static Panels filled(S* out, int64_t each, const Tiling& keys, Span tiles, const F& fill) {
    Panels p;
    p.data_ = out, p.each_ = each, p.first_ = keys.at(tiles.begin).begin;
    for (int64_t i = tiles.begin; i < tiles.end; ++i) {
      const Span span = keys.at(i);
      fill(out + (span.begin - p.first_) * each, span);
    }
    return p;
  }

  const S* data_ = nullptr;
  int64_t each_ = 0, first_ = 0;
};

// A tile's rows, an odd number of cache lines apart: columns of it do not fall into one cache set.
template <class S>
int64_t tile_step(const Tiling& keys) {
  constexpr int64_t kLine = 64 / sizeof(S);
  const int64_t lines = divide_up(std::min(keys.length, keys.tile), kLine);
  return (lines | 1) * kLine;
}

template <int Number, class S>
Matrix<S> tile(const Tiling& keys) {
  const int64_t step = tile_step<S>(keys);
  return {buffer<Number, S>(kRows * step), step};
}

template <class S>
Matrix<const S> read(Matrix<S> x) {
  return {x.data, x.step};
}

// Whether a tile has anything to see.
inline bool meets(const How& how, Span rows, Span keys) { return !how.causal || keys.begin < rows.end; }

}  // namespace fastmaml::attention
