// Attention: o = (softmax(scale q k^T + mask) drop) v in one pass over tiles of keys.
//
// The softmax is taken online (Milakov and Gimelshein, 2018): what was summed so far is scaled down
// when a larger score turns up. No matrix of all rows by all keys exists at any time.
#include "../kernel_table.h"
#include "rows.h"
#include "tiles.h"

namespace fastmaml {
namespace {

using namespace attention;

// A tile of rows of one head.
template <class S>
class Forward {
 public:
  Forward(const Call<S>& call, const Results<S>& o, S* lse)
      : call_(call),
        shape_(call.shape),
        keys_(shape_.keys, kKeys),
        rows_(shape_.rows, kRows),
        o_(o),
        lse_(lse) {}

  const Tiling& rows() const { return rows_; }

  void operator()(const Head& head, Span row_tiles) const {
    const Span all{0, keys_.count};
    const int64_t D = shape_.size, E = shape_.outputs;
    S *k_room = buffer<2, S>(Panels<S>::room(keys_, D)), *v_room = buffer<3, S>(Panels<S>::room(keys_, E));
    const auto k = Panels<S>::along_keys(k_room, call_.k.at(head), D, keys_, all);
    const auto v = Panels<S>::along_width(v_room, call_.v.at(head), E, keys_, all);
    for (int64_t i = row_tiles.begin; i < row_tiles.end; ++i) one(head, rows_.at(i), k, v);
  }

 private:
  void one(const Head& head, Span rows, const Panels<S>& k, const Panels<S>& v) const {
    const Matrix<S> p = tile<4, S>(keys_), o = o_.at(head).from(rows.begin);
    const Matrix<const S> q = call_.q.at(head).from(rows.begin);
    Softmax<S> softmax[kRows];
    bool first = true;
    for (int64_t j = 0; j < keys_.count; ++j) {
      const Span keys = keys_.at(j);
      if (!meets(call_.how, rows, keys)) break;
      Product<S>{rows.size(), keys.size(), shape_.size}(q, k.tile(keys), p);
      for (int64_t r = 0; r < rows.size(); ++r) {
        const S shrink = scores(head, rows.begin + r, keys, p.row(r), softmax + r);
        if (!first && shrink != S(1)) multiply(o.row(r), shrink, shape_.outputs);
      }
      Product<S>{rows.size(), shape_.outputs, keys.size(), false, !first}(read(p), v.tile(keys), o);
      first = false;
    }
    S* lse = lse_ + head.index * shape_.rows + rows.begin;
    for (int64_t r = 0; r < rows.size(); ++r) finish(softmax[r], o.row(r), lse + r);
  }

  S scores(const Head& head, int64_t row, Span keys, S* x, Softmax<S>* softmax) const {
    S bias[kKeys], drop[kKeys];
    const int64_t n = keys.size();
    return forward(x, call_.bias(head, row, keys.begin, n, bias),
                   call_.drop(head, row, keys.begin, n, drop), static_cast<S>(call_.how.scale), softmax,
                   call_.seen(row, keys.begin, n), n);
  }

  // A row that saw no key is 0.
  void finish(const Softmax<S>& softmax, S* o, S* lse) const {
    *lse = softmax.top + std::log(softmax.sum);
    if (softmax.sum == 0) {
      *lse = -std::numeric_limits<S>::infinity();
      std::fill_n(o, shape_.outputs, S(0));
    } else {
      multiply(o, S(1) / softmax.sum, shape_.outputs);
    }
  }

  const Call<S>& call_;
  const Shape& shape_;
  Tiling keys_, rows_;
  const Results<S>& o_;
  S* lse_;
};

std::tuple<Tensor, Tensor> task_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                          const OptionalTensor& mask, const OptionalTensor& key, bool causal,
                                          double scale, double dropout) {
  const How how{causal, scale, dropout};
  const Shape shape = checked("task_attention", q, k, v, mask, key, how);
  Tensor o = empty_heads(shape.like_o(), shim_dtype(q)), lse = empty_dense(shape.like_lse(), shim_dtype(q));
  with_scalar(q, [&](auto zero) {
    using S = decltype(zero);
    const Call<S> call(shape, how, q, k, v, mask, key);
    const Results<S> out(o);
    const Forward<S> run(call, out, output<S>(lse));
    const double flops = 2.0 * shape.rows * shape.keys * (shape.size + shape.outputs + 16);
    const int64_t parts = parts_per_task(shape.all_heads(), run.rows().count, flops);
    for_each_unit(shape.all_heads() * parts, flops / parts, [&](int64_t unit) {
      run(Head(shape, unit / parts), run.rows().part(unit % parts, parts));
    });
  });
  return {o, lse};
}

}  // namespace
}  // namespace fastmaml

STABLE_TORCH_LIBRARY_IMPL(fastmaml, CPU, m) {
  FM_CPU_KERNEL(m, task_attention);
}
