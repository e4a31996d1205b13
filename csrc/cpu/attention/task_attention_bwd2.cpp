// The second derivative of attention. As (q, k, v) move along (hq, hk, hv), the scores move by
// t = scale (hq k^T + q hk^T), and with m, p, d, ds as in the gradients, all rows on their own,
//   tp = p (t - mean),  mean = Σ p t,     gg = (tp m) v + (p m) hv,
//   td = slope = Σ g gg,                  tds = scale (tp (m g v^T - d) + p (m g hv^T - slope)),
//   gq = tds k + ds hk,  gk = tds^T q + ds^T hq,  gv = (tp m)^T g.
// Since Σ p (m g v^T - d) = 0 the slope is Σ p (t (m g v^T - d) + m g hv^T): one pass over the keys gives
// both sums of a row, and where its keys are more than a tile a second pass the results.
#include "../kernel_table.h"
#include "derivatives.h"

namespace fastmaml {
namespace {

using namespace attention;

template <class S>
struct SecondInputs {
  Heads<S> hq, hk, hv, g, o;
  Input<S> lse;
};

template <class S>
struct SecondOutputs {
  Results<S> gg, gq, gk, gv;
  bool gradients() const { return gq.data || gk.data; }  // of q or k, which ask for more
};

// One head: its matrices and, in panels, the keys'.
template <class S>
struct SecondHead {
  Head head;
  Matrix<const S> q, hq, g, o;
  Panels<S> k, hk, v, hv;              // along the keys, for scores
  Panels<S> k_sum, hk_sum, v_sum, hv_sum;  // along the width, for sums over keys
  Matrix<S> gg, gq, gk, gv;
  const S* lse;
};

template <class S>
struct Sums {
  S row[kRows] = {};
};

template <class S>
class Second {
 public:
  Second(const Call<S>& call, const SecondInputs<S>& in, const SecondOutputs<S>& out,
         const RowNumbers<S>& numbers)
      : call_(call),
        shape_(call.shape),
        keys_(shape_.keys, kKeys),
        rows_(shape_.rows, kRows),
        in_(in),
        out_(out),
        numbers_(numbers) {}

  const Tiling& keys() const { return keys_; }
  const Tiling& rows() const { return rows_; }

  void operator()(const Head& head, Span row_tiles, Span key_tiles, Sweep sweep) const {
    const SecondHead<S> x = prepared(head, key_tiles, sweep);
    if (key_tiles.size() > 0) {
      const Span some{keys_.at(key_tiles.begin).begin, keys_.at(key_tiles.end - 1).end};
      clear(x.gk, some, shape_.size);
      clear(x.gv, some, shape_.outputs);
    }
    for (int64_t i = row_tiles.begin; i < row_tiles.end; ++i) {
      if (out_.gradients()) one<true>(x, rows_.at(i), key_tiles, sweep);
      else one<false>(x, rows_.at(i), key_tiles, sweep);
    }
  }

 private:
  // What this sweep reads, and only the results that it writes.
  SecondHead<S> prepared(const Head& head, Span tiles, Sweep sweep) const {
    SecondHead<S> x{head, call_.q.at(head), in_.hq.at(head), in_.g.at(head), in_.o.at(head)};
    const int64_t D = shape_.size, E = shape_.outputs;
    const int64_t by_size = Panels<S>::room(keys_, D), by_output = Panels<S>::room(keys_, E);
    const Matrix<const S> k = call_.k.at(head), v = call_.v.at(head);
    const Matrix<const S> hk = in_.hk.at(head), hv = in_.hv.at(head);
    if (sweep.by_row) x.gg = out_.gg.at(head), x.gq = out_.gq.at(head);
    if (sweep.by_key) x.gk = out_.gk.at(head), x.gv = out_.gv.at(head);
    x.k = Panels<S>::along_keys(buffer<2, S>(by_size), k, D, keys_, tiles);
    if (hk) x.hk = Panels<S>::along_keys(buffer<3, S>(by_size), hk, D, keys_, tiles);
    if (out_.gradients()) x.v = Panels<S>::along_keys(buffer<4, S>(by_output), v, E, keys_, tiles);
    if (out_.gradients() && hv) x.hv = Panels<S>::along_keys(buffer<5, S>(by_output), hv, E, keys_, tiles);
    if (x.gq) x.k_sum = Panels<S>::along_width(buffer<6, S>(by_size), k, D, keys_, tiles);
    if (x.gq && hk) x.hk_sum = Panels<S>::along_width(buffer<7, S>(by_size), hk, D, keys_, tiles);
    if (x.gg) x.v_sum = Panels<S>::along_width(buffer<8, S>(by_output), v, E, keys_, tiles);
    if (x.gg && hv) x.hv_sum = Panels<S>::along_width(buffer<9, S>(by_output), hv, E, keys_, tiles);
    x.lse = in_.lse.task(head.task) + (head.batch * shape_.heads + head.head) * shape_.rows;
    return x;
  }

  // The tiles of a thread.
  struct Tiles {
    Matrix<S> p, t, dp, td;
    explicit Tiles(const Tiling& keys)
        : p(tile<10, S>(keys)), t(tile<11, S>(keys)), dp(tile<12, S>(keys)), td(tile<13, S>(keys)) {}
  };

  template <bool Gradients>
  void one(const SecondHead<S>& x, Span rows, Span key_tiles, Sweep sweep) const {
    const Tiles tiles(keys_);
    const bool single = keys_.count == 1;
    S delta[kRows] = {};
    Moves<S> moves[kRows];
    if (Gradients)
      dots(x.g.row(rows.begin), x.g.step, x.o.row(rows.begin), x.o.step, delta, rows.size(), shape_.outputs);
    if (!single && sweep.by_row) {
      for (int64_t j = 0; j < keys_.count && meets(call_.how, rows, keys_.at(j)); ++j)
        sum<Gradients>(x, rows, keys_.at(j), tiles, delta, moves);
      for_moves(x.head, rows, moves, [](S& kept, S& value) { kept = value; });
    } else if (!single) {
      for_moves(x.head, rows, moves, [](S& kept, S& value) { value = kept; });
    }
    clear(x.gg, rows, shape_.outputs);
    clear(x.gq, rows, shape_.size);
    for (int64_t j = key_tiles.begin; j < key_tiles.end && meets(call_.how, rows, keys_.at(j)); ++j) {
      if (single) sum<Gradients>(x, rows, keys_.at(j), tiles, delta, moves);
      else enter<Gradients>(x, rows, keys_.at(j), tiles);
      each_row<Gradients>(x, rows, keys_.at(j), tiles, delta,
                          [&](const SecondRow<S>& row, int64_t r) { second<Gradients>(row, moves[r]); });
      by_row(x, rows, keys_.at(j), tiles);
      by_key(x, rows, keys_.at(j), tiles);
    }
  }

  // f(kept number, row's number) for what is kept of rows between the sweeps.
  template <class F>
  void for_moves(const Head& head, Span rows, Moves<S>* moves, const F& f) const {
    for (int64_t r = 0; r < rows.size(); ++r) {
      f(numbers_.at(head, 0)[rows.begin + r], moves[r].sum);
      f(numbers_.at(head, 1)[rows.begin + r], moves[r].mean);
      f(numbers_.at(head, 2)[rows.begin + r], moves[r].slope);
    }
  }

  // The weights of a tile, of which it returns the sums by row, and its other products.
  template <bool Gradients>
  Sums<S> enter(const SecondHead<S>& x, Span rows, Span keys, const Tiles& tiles) const {
    Sums<S> sums;
    weigh(call_, x.head, rows, keys, x.k, x.lse, tiles.p, sums.row);
    multiply(x.hq, rows, x.k, keys, shape_.size, tiles.t, false);
    if (x.hk) multiply(x.q, rows, x.hk, keys, shape_.size, tiles.t, bool(x.hq));
    if (!x.hq && !x.hk) clear(tiles.t, {0, rows.size()}, keys.size());
    if (!Gradients) return sums;
    multiply(x.g, rows, x.v, keys, shape_.outputs, tiles.dp, false);
    if (x.hv) multiply(x.g, rows, x.hv, keys, shape_.outputs, tiles.td, false);
    else clear(tiles.td, {0, rows.size()}, keys.size());
    return sums;
  }

  // And what the tile adds to the rows' sums.
  template <bool Gradients>
  void sum(const SecondHead<S>& x, Span rows, Span keys, const Tiles& tiles, const S* delta,
           Moves<S>* moves) const {
    const Sums<S> sums = enter<Gradients>(x, rows, keys, tiles);
    each_row<Gradients>(x, rows, keys, tiles, delta, [&](const SecondRow<S>& row, int64_t r) {
      moves[r].sum += sums.row[r];
      add_moves<Gradients>(row, moves + r);
    });
  }

  // c (+)= a b^T over a tile, if there is an a.
  void multiply(Matrix<const S> a, Span rows, const Panels<S>& b, Span keys, int64_t width, Matrix<S> c,
                bool accumulate) const {
    if (!a) return;
    Product<S>{rows.size(), keys.size(), width, false, accumulate}(a.from(rows.begin), b.tile(keys), c);
  }

  template <bool Gradients, class F>
  void each_row(const SecondHead<S>& x, Span rows, Span keys, const Tiles& tiles, const S* delta,
                const F& f) const {
    S room[kKeys];
    for (int64_t r = 0; r < rows.size(); ++r) {
      const S* drop = call_.drop(x.head, rows.begin + r, keys.begin, keys.size(), room);
      f(SecondRow<S>{tiles.p.row(r), tiles.t.row(r), tiles.dp.row(r), tiles.td.row(r), drop,
                     static_cast<S>(call_.how.scale), delta[r], keys.size()},
        r);
    }
  }

  void by_row(const SecondHead<S>& x, Span rows, Span keys, const Tiles& tiles) const {
    const auto add = [&](Matrix<S> tile, const Panels<S>& b, int64_t width, Matrix<S> c) {
      if (!c || !b) return;
      Product<S>{rows.size(), width, keys.size(), false, true}(read(tile), b.tile(keys), c.from(rows.begin));
    };
    add(tiles.t, x.v_sum, shape_.outputs, x.gg);
    add(tiles.p, x.hv_sum, shape_.outputs, x.gg);
    add(tiles.td, x.k_sum, shape_.size, x.gq);
    add(tiles.dp, x.hk_sum, shape_.size, x.gq);
  }

  void by_key(const SecondHead<S>& x, Span rows, Span keys, const Tiles& tiles) const {
    const auto add = [&](Matrix<S> tile, Matrix<const S> b, int64_t width, Matrix<S> c) {
      if (!c || !b) return;
      const S* panels = packed_rows<14>(b, rows, width);
      Product<S>{keys.size(), width, rows.size(), true, true}(read(tile), panels, c.from(keys.begin));
    };
    add(tiles.td, x.q, shape_.size, x.gk);
    add(tiles.dp, x.hq, shape_.size, x.gk);
    add(tiles.t, x.g, shape_.outputs, x.gv);
  }

  const Call<S>& call_;
  const Shape& shape_;
  Tiling keys_, rows_;
  const SecondInputs<S>& in_;
  const SecondOutputs<S>& out_;
  const RowNumbers<S>& numbers_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> task_attention_bwd2(
    const OptionalTensor& hq, const OptionalTensor& hk, const OptionalTensor& hv, const Tensor& g,
    const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask, const OptionalTensor& key,
    const Tensor& o, const Tensor& lse, bool causal, double scale, double dropout, int64_t need) {
  const char* op = "task_attention_bwd2";
  const How how{causal, scale, dropout};
  const Shape shape = checked(op, q, k, v, mask, key, how);
  check_saved(op, shape, q, g, o, lse);
  check_optional(op, "hq", hq, q.scalar_type(), shape.like_q());
  check_optional(op, "hk", hk, q.scalar_type(), shape.like_k());
  check_optional(op, "hv", hv, q.scalar_type(), shape.like_v());
  const int32_t dtype = shim_dtype(q);
  const auto wanted = [&](int64_t bit, const Sizes& sizes) {
    return need & bit ? empty_heads(sizes, dtype) : nothing(dtype);
  };
  Tensor gg = wanted(1, shape.like_o()), gq = wanted(2, shape.like_q());
  Tensor gk = wanted(4, shape.like_k()), gv = wanted(8, shape.like_v());
  with_scalar(q, [&](auto zero) {
    using S = decltype(zero);
    const Call<S> call(shape, how, q, k, v, mask, key);
    const SecondInputs<S> in{Heads<S>(hq), Heads<S>(hk), Heads<S>(hv), Heads<S>(g), Heads<S>(o),
                             Input<S>(lse, row_major(4))};
    const SecondOutputs<S> out{Results<S>(gg), Results<S>(gq), Results<S>(gk), Results<S>(gv)};
    const RowNumbers<S> numbers(shape, 3, dtype);
    const Second<S> run(call, in, out, numbers);
    const double flops = 2.0 * shape.rows * shape.keys * (7 * shape.size + 5 * shape.outputs + 16);
    const Sweep wanted{(need & 0b0011) != 0, (need & 0b1100) != 0};
    for_all_heads(shape, run.rows(), run.keys(), flops, wanted, run);
  });
  return {gg, gq, gk, gv};
}

}  // namespace
}  // namespace fastmaml

STABLE_TORCH_LIBRARY_IMPL(fastmaml, CPU, m) {
  FM_CPU_KERNEL(m, task_attention_bwd2);
}
