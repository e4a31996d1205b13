// The gradients of attention. With probabilities p, dropout mask m, and d = rowsum(g o):
//   gv = (p m)^T g,  ds = scale p (m (g v^T) - d),  gq = ds k,  gk = ds^T q,
// p computed again from the saved log-sum-exp, a tile of rows by keys at a time (Dao et al., 2022).
#include "../kernel_table.h"
#include "derivatives.h"

namespace fastmaml {
namespace {

using namespace attention;

template <class S>
class Backward {
 public:
  struct Saved {
    Heads<S> g, o;
    Input<S> lse;
  };
  struct Outputs {
    Results<S> gq, gk, gv;
  };

  Backward(const Call<S>& call, const Saved& saved, const Outputs& out, const RowNumbers<S>& norms)
      : call_(call),
        shape_(call.shape),
        keys_(shape_.keys, kKeys),
        rows_(shape_.rows, kRows),
        saved_(saved),
        out_(out),
        norms_(norms) {}

  const Tiling& keys() const { return keys_; }
  const Tiling& rows() const { return rows_; }

  void operator()(const Head& head, Span row_tiles, Span key_tiles, Sweep sweep) const {
    const Matrix<const S> k = call_.k.at(head), v = call_.v.at(head);
    const int64_t D = shape_.size, E = shape_.outputs;
    const int64_t by_size = Panels<S>::room(keys_, D), by_output = Panels<S>::room(keys_, E);
    const auto scores = Panels<S>::along_keys(buffer<2, S>(by_size), k, D, keys_, key_tiles);
    const auto values = Panels<S>::along_keys(buffer<3, S>(by_output), v, E, keys_, key_tiles);
    Panels<S> sums;
    if (sweep.by_row) sums = Panels<S>::along_width(buffer<4, S>(by_size), k, D, keys_, key_tiles);
    if (sweep.by_key && key_tiles.size() > 0) {
      const Span some{keys_.at(key_tiles.begin).begin, keys_.at(key_tiles.end - 1).end};
      clear(out_.gk.at(head), some, D);
      clear(out_.gv.at(head), some, E);
    }
    for (int64_t i = row_tiles.begin; i < row_tiles.end; ++i) {
      const Span rows = rows_.at(i);
      if (sweep.by_row && keys_.count > 1) normalise(head, rows, scores);
      one(head, rows, key_tiles, sweep, scores, values, sums);
    }
  }

 private:
  // The norms of rows whose keys are many tiles.
  void normalise(const Head& head, Span rows, const Panels<S>& scores) const {
    S* norm = norms_.at(head, 0) + rows.begin;
    std::fill_n(norm, rows.size(), S(0));
    for (int64_t j = 0; j < keys_.count && meets(call_.how, rows, keys_.at(j)); ++j)
      weigh(call_, head, rows, keys_.at(j), scores, lse(head), tile<5, S>(keys_), norm);
    for (int64_t r = 0; r < rows.size(); ++r) norm[r] = inverse(norm[r]);
  }

  void one(const Head& head, Span rows, Span key_tiles, Sweep sweep, const Panels<S>& scores,
           const Panels<S>& values, const Panels<S>& sums) const {
    const Matrix<S> p = tile<5, S>(keys_), ds = tile<6, S>(keys_);
    const Matrix<const S> g = saved_.g.at(head), o = saved_.o.at(head);
    const S *q_panels = nullptr, *g_panels = nullptr;
    if (sweep.by_key) {
      q_panels = packed_rows<7>(call_.q.at(head), rows, shape_.size);
      g_panels = packed_rows<8>(g, rows, shape_.outputs);
    }
    if (sweep.by_row) clear(out_.gq.at(head), rows, shape_.size);
    S delta[kRows];
    dots(g.row(rows.begin), g.step, o.row(rows.begin), o.step, delta, rows.size(), shape_.outputs);
    for (int64_t j = key_tiles.begin; j < key_tiles.end && meets(call_.how, rows, keys_.at(j)); ++j) {
      const Span keys = keys_.at(j);
      const int64_t n = keys.size();
      gradients(head, rows, keys, scores, values, delta, p, ds);
      if (sweep.by_row)
        Product<S>{rows.size(), shape_.size, n, false, true}(read(ds), sums.tile(keys),
                                                             out_.gq.at(head).from(rows.begin));
      if (!sweep.by_key) continue;
      Product<S>{n, shape_.size, rows.size(), true, true}(read(ds), q_panels,
                                                          out_.gk.at(head).from(keys.begin));
      Product<S>{n, shape_.outputs, rows.size(), true, true}(read(p), g_panels,
                                                             out_.gv.at(head).from(keys.begin));
    }
  }

  // p m and ds of a tile.
  void gradients(const Head& head, Span rows, Span keys, const Panels<S>& scores, const Panels<S>& values,
                 const S* delta, Matrix<S> p, Matrix<S> ds) const {
    const int64_t n = keys.size();
    S sum[kRows] = {}, drop[kKeys];
    weigh(call_, head, rows, keys, scores, lse(head), p, sum);
    Product<S>{rows.size(), n, shape_.outputs}(saved_.g.at(head).from(rows.begin), values.tile(keys), ds);
    const S* norms = norms_.at(head, 0);
    for (int64_t r = 0; r < rows.size(); ++r) {
      const int64_t row = rows.begin + r;
      const S norm = keys_.count > 1 ? norms[row] : inverse(sum[r]);
      backward(p.row(r), ds.row(r), call_.drop(head, row, keys.begin, n, drop), norm, delta[r],
               static_cast<S>(call_.how.scale), n);
    }
  }

  const S* lse(const Head& head) const {
    return saved_.lse.task(head.task) + (head.batch * shape_.heads + head.head) * shape_.rows;
  }

  const Call<S>& call_;
  const Shape& shape_;
  Tiling keys_, rows_;
  const Saved& saved_;
  const Outputs& out_;
  const RowNumbers<S>& norms_;
};

std::tuple<Tensor, Tensor, Tensor> task_attention_bwd(const Tensor& g, const Tensor& q, const Tensor& k,
                                                      const Tensor& v, const OptionalTensor& mask,
                                                      const OptionalTensor& key, const Tensor& o,
                                                      const Tensor& lse, bool causal, double scale,
                                                      double dropout) {
  const char* op = "task_attention_bwd";
  const How how{causal, scale, dropout};
  const Shape shape = checked(op, q, k, v, mask, key, how);
  check_saved(op, shape, q, g, o, lse);
  const int32_t dtype = shim_dtype(q);
  Tensor gq = empty_heads(shape.like_q(), dtype), gk = empty_heads(shape.like_k(), dtype);
  Tensor gv = empty_heads(shape.like_v(), dtype);
  with_scalar(q, [&](auto zero) {
    using S = decltype(zero);
    const Call<S> call(shape, how, q, k, v, mask, key);
    const typename Backward<S>::Saved saved{Heads<S>(g), Heads<S>(o), Input<S>(lse, row_major(4))};
    const typename Backward<S>::Outputs out{Results<S>(gq), Results<S>(gk), Results<S>(gv)};
    const RowNumbers<S> norms(shape, 1, dtype);
    const Backward<S> run(call, saved, out, norms);
    const double flops = 2.0 * shape.rows * shape.keys * (3 * shape.size + 2 * shape.outputs + 16);
    for_all_heads(shape, run.rows(), run.keys(), flops, {true, true}, run);
  });
  return {gq, gk, gv};
}

}  // namespace
}  // namespace fastmaml

STABLE_TORCH_LIBRARY_IMPL(fastmaml, CPU, m) {
  FM_CPU_KERNEL(m, task_attention_bwd);
}
