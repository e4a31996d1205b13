// The body of every instruction set's kernels. The file that includes it defines ISA (a namespace),
// VECTOR_BYTES and MAX_VECTORS, and sets the compiler's target; nothing of the standard library is
// included, so that no inline function compiled for a newer processor can leak to older ones.
#include "kernels.h"

namespace fastmaml::ISA {
namespace {

template <class S>
constexpr int64_t kLanes = VECTOR_BYTES / sizeof(S);

template <class S>
struct VectorOf {
  typedef S type __attribute__((vector_size(VECTOR_BYTES)));
  typedef S unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(S)), may_alias));
};
template <class S>
using Vec = typename VectorOf<S>::type;

template <class S>
inline __attribute__((always_inline)) Vec<S> load(const S* p) {
  return *reinterpret_cast<const typename VectorOf<S>::unaligned*>(p);
}
template <class S>
inline __attribute__((always_inline)) void store(S* p, Vec<S> v) {
  *reinterpret_cast<typename VectorOf<S>::unaligned*>(p) = v;
}

// Rows that are narrower than a vector, element by element.
template <class S>
void store_narrow(const Gemm<S>& g, int64_t row, int rows, const Vec<S>* sum) {
  for (int r = 0; r < rows; ++r) {
    S* c = g.c + g.c_row[row + r];
    for (int64_t n = 0; n < g.columns; ++n) {
      const S value = sum[r][n] + (g.accumulate ? c[n] : g.bias ? g.bias[n] : 0);
      c[n] = g.relu && value <= 0 ? 0 : value;
    }
  }
}

// One block of R rows by V vectors of C, held in registers over the whole sum.
// `last` is where the last vector begins: it overlaps its neighbour where columns are not a multiple
// of the lanes, and both compute the same values there.
template <class S, int R, int V>
void block(const Gemm<S>& g, int64_t row, int64_t column, int64_t last, const S* panel, int64_t b_step) {
  constexpr int64_t L = kLanes<S>;
  const bool whole = V > 1 || g.columns >= L;
  int64_t offset[R];
  Vec<S> sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    offset[r] = g.a_row[row + r];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sum[r][v] = Vec<S>{};
  }
  if (whole && (g.accumulate || g.bias)) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const S* start = (g.accumulate ? g.c + g.c_row[row + r] : g.bias) + column;
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[r][v] = load(start + (v == V - 1 ? last : v * L));
    }
  }
  const int64_t a_step = g.a_step, length = g.length, segments = g.segments;
  for (int64_t s = 0; s < segments; ++s) {
    const S* a = g.a + g.a_segment[s];
    const S* b = panel + g.b_segment[s] * b_step;
    for (int64_t k = 0; k < length; ++k, a += a_step, b += b_step) {
      Vec<S> x[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) x[v] = load(b + (v == V - 1 ? last : v * L));
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const S y = a[offset[r]];
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sum[r][v] += x[v] * y;
      }
    }
  }
  if (!whole) {
    store_narrow(g, row, R, &sum[0][0]);
    return;
  }
  if (g.relu) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[r][v] = sum[r][v] <= 0 ? Vec<S>{} : sum[r][v];  // NaN stays
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    S* c = g.c + g.c_row[row + r] + column;
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store(c + (v == V - 1 ? last : v * L), sum[r][v]);
  }
}

// As many rows as leave registers for the vectors of b and one element of a.
constexpr int most_rows(int vectors) {
#if MAX_VECTORS == 4
  constexpr int rows[] = {12, 12, 8, 6};
#else
  constexpr int rows[] = {8, 6};
#endif
  return rows[vectors - 1];
}

template <class S>
using Block = void (*)(const Gemm<S>&, int64_t, int64_t, int64_t, const S*, int64_t);

// block<S, 1, V> to block<S, most_rows(V), V> in a table.
template <class S, int V, int... R>
const Block<S>* blocks_of() {
  if constexpr (sizeof...(R) < most_rows(V)) {
    return blocks_of<S, V, R..., sizeof...(R) + 1>();
  } else {
    static constexpr Block<S> table[] = {block<S, R, V>...};
    return table;
  }
}
template <class S, int V = MAX_VECTORS>
const Block<S>* blocks_of(int64_t vectors) {
  if constexpr (V == 1) return blocks_of<S, 1>();
  else return vectors == V ? blocks_of<S, V>() : blocks_of<S, V - 1>(vectors);
}

// Column panels of nearly equal width, at most MAX_VECTORS vectors each.
struct Panels {
  int64_t count, vectors, lanes, columns;
  Panels(int64_t columns, int64_t lanes) : lanes(lanes), columns(columns) {
    vectors = (columns + lanes - 1) / lanes;
    count = (vectors + MAX_VECTORS - 1) / MAX_VECTORS;
  }
  int64_t begin(int64_t p) const { return p == count ? columns : p * vectors / count * lanes; }
  int64_t vectors_of(int64_t p) const { return (p + 1) * vectors / count - p * vectors / count; }
  // Where the last vector of panel p begins within it, and how wide its rows are.
  int64_t width(int64_t p) const { return columns < lanes ? lanes : begin(p + 1) - begin(p); }
  int64_t last(int64_t p) const { return width(p) - lanes; }
};

template <class S>
void product(const Gemm<S>& g) {
  const Panels panels(g.columns, kLanes<S>);
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t column = panels.begin(p), vectors = panels.vectors_of(p);
    const int64_t b_step = g.depth ? panels.width(p) : g.b_step;
    const S* panel = g.b + (g.depth ? column * g.depth : column);
    const Block<S>* table = blocks_of<S>(vectors);
    // Blocks of nearly equal height: the first `more` of them have a row more.
    const int64_t blocks = (g.rows + most_rows(vectors) - 1) / most_rows(vectors);
    const int64_t least = blocks ? g.rows / blocks : 0, more = g.rows - blocks * least;
    int64_t row = 0;
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t rows = least + (i < more);
      table[rows - 1](g, row, column, panels.last(p), panel, b_step);
      row += rows;
    }
  }
}

// Long sums in pieces whose part of a panel stays in the second-level cache while all rows pass; the
// additions and their order are the same.
template <class S>
void gemm(const Gemm<S>& g) {
  constexpr int64_t kPanel = 256 << 10, most = kPanel / (MAX_VECTORS * VECTOR_BYTES);
  if (g.segments * g.length <= most || g.rows <= most_rows(MAX_VECTORS)) return product(g);
  // Pieces of some segments each, or of a part of one.
  const int64_t cuts = (g.length + most - 1) / most;
  const int64_t pieces = cuts > 1 ? g.segments * cuts : (g.segments * g.length + most - 1) / most;
  Gemm<S> part = g;
  for (int64_t i = 0; i < pieces; ++i) {
    int64_t a_segment, b_segment;
    if (cuts > 1) {
      const int64_t s = i / cuts, begin = i % cuts * g.length / cuts, end = (i % cuts + 1) * g.length / cuts;
      a_segment = g.a_segment[s] + begin * g.a_step, b_segment = g.b_segment[s] + begin;
      part.a_segment = &a_segment, part.b_segment = &b_segment;
      part.segments = 1, part.length = end - begin;
    } else {
      const int64_t begin = i * g.segments / pieces, end = (i + 1) * g.segments / pieces;
      part.a_segment = g.a_segment + begin, part.b_segment = g.b_segment + begin;
      part.segments = end - begin;
    }
    part.relu = g.relu && i == pieces - 1;
    product(part);
    part.accumulate = true, part.bias = nullptr;
  }
}

// a0 b0 a1 b1 ... of the lower (H = 0) or upper (H = 1) halves of a and b.
template <int H, class S, int... I>
inline __attribute__((always_inline)) Vec<S> interleave(Vec<S> a, Vec<S> b) {
  if constexpr (sizeof...(I) < kLanes<S>) {
    constexpr int next = sizeof...(I);
    return interleave<H, S, I..., next / 2 + H * kLanes<S> / 2 + next % 2 * kLanes<S>>(a, b);
  } else {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, I...);
#else
    typedef decltype(a < b) Indices;
    return __builtin_shuffle(a, b, Indices{I...});
#endif
  }
}

// A square of vectors, transposed in log2(lanes) rounds of interleaving the halves.
template <class S>
inline __attribute__((always_inline)) void transpose_square(Vec<S>* x) {
  constexpr int L = kLanes<S>;
  Vec<S> y[L];
#pragma GCC unroll 4
  for (int round = 1; round < L; round *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < L / 2; ++i) {
      y[2 * i] = interleave<0, S>(x[i], x[i + L / 2]);
      y[2 * i + 1] = interleave<1, S>(x[i], x[i + L / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) x[i] = y[i];
  }
}

// Squares that would reach over an edge are moved back from it, and write some elements twice. With
// fewer rows than lanes whole vectors are written where out has room for them.
template <class S>
void transpose(S* out, int64_t out_step, const S* in, int64_t in_step, int64_t rows, int64_t columns) {
  constexpr int64_t L = kLanes<S>;
  if (columns < L || (rows < L && out_step < L)) {
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t r = 0; r < rows; ++r) out[c * out_step + r] = in[r * in_step + c];
      for (int64_t r = rows; r < L && L <= out_step; ++r) out[c * out_step + r] = 0;
    }
    return;
  }
  for (int64_t r = 0; r < rows; r += L) {
    const int64_t row = rows < L ? 0 : (r + L > rows ? rows - L : r);
    for (int64_t c = 0; c < columns; c += L) {
      const int64_t column = c + L > columns ? columns - L : c;
      const S* from = in + row * in_step + column;
      S* to = out + column * out_step + row;
      Vec<S> x[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) x[i] = i < rows ? load(from + i * in_step) : Vec<S>{};
      transpose_square<S>(x);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) store(to + i * out_step, x[i]);
    }
  }
}

template <class S>
void pack(S* out, const S* in, int64_t in_step, int64_t depth, int64_t columns) {
  const Panels panels(columns, kLanes<S>);
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t begin = panels.begin(p), end = panels.begin(p + 1), width = panels.width(p);
    for (int64_t k = 0; k < depth; ++k) {
      S* row = out + begin * depth + k * width;
      __builtin_memcpy(row, in + k * in_step + begin, (end - begin) * sizeof(S));
      for (int64_t n = end - begin; n < width; ++n) row[n] = 0;
    }
  }
}

template <class S>
void pack_transposed(S* out, const S* in, int64_t in_step, int64_t depth, int64_t columns) {
  const Panels panels(columns, kLanes<S>);
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t begin = panels.begin(p), end = panels.begin(p + 1);
    transpose(out + begin * depth, panels.width(p), in + begin * in_step, in_step, end - begin, depth);
  }
}

// In pieces of 128 rows, so that a float32 sum over many thousands stays accurate.
template <class S>
void sum_rows(S* out, const S* in, int64_t in_step, int64_t rows, int64_t columns) {
  constexpr int64_t kPiece = 128;
  for (int64_t n = 0; n < columns; ++n) out[n] = 0;
  for (int64_t m = 0; m < rows; m += kPiece) {
    const int64_t end = m + kPiece < rows ? m + kPiece : rows;
    int64_t n = 0;
    for (; n + kLanes<S> <= columns; n += kLanes<S>) {
      Vec<S> sum{};
      for (int64_t r = m; r < end; ++r) sum += load(in + r * in_step + n);
      store(out + n, load(out + n) + sum);
    }
    for (; n < columns; ++n) {
      S sum = 0;
      for (int64_t r = m; r < end; ++r) sum += in[r * in_step + n];
      out[n] += sum;
    }
  }
}

template <class S>
constexpr Kernels<S> table(const char* name) {
  return {name, kLanes<S>, gemm<S>, transpose<S>, pack<S>, pack_transposed<S>, sum_rows<S>};
}

}  // namespace

extern const Kernels<float> kFloat;
extern const Kernels<double> kDouble;
#define FASTMAML_TEXT_(x) #x
#define FASTMAML_TEXT(x) FASTMAML_TEXT_(x)
const Kernels<float> kFloat = table<float>(FASTMAML_TEXT(ISA));
const Kernels<double> kDouble = table<double>(FASTMAML_TEXT(ISA));

}  // namespace fastmaml::ISA
