// What the attention ops are given: checked, and as one head after another.
#pragma once

#include "../dropout_bits.h"
#include "../views.h"

namespace fastmaml::attention {

struct How {
  bool causal;
  double scale, dropout;
};

struct Shape {
  int64_t tasks, batch, heads, rows, keys, size, outputs;

  int64_t all_heads() const { return tasks * batch * heads; }
  Sizes like_q() const { return {tasks, batch, heads, rows, size}; }
  Sizes like_k() const { return {tasks, batch, heads, keys, size}; }
  Sizes like_v() const { return {tasks, batch, heads, keys, outputs}; }
  Sizes like_o() const { return {tasks, batch, heads, rows, outputs}; }
  Sizes like_lse() const { return {tasks, batch, heads, rows}; }
};

// The memory order of all results: a row's heads lie side by side, as a projection has them.
inline const Sizes kOrder{1, 3, 2, 4};

inline Tensor empty_heads(const Sizes& sizes, int32_t dtype) { return empty_in_order(sizes, kOrder, dtype); }

inline Shape checked(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
                     const OptionalTensor& mask, const OptionalTensor& key, const How& how) {
  check_floating(op, "q", q);
  const auto rank_of_five = [&](const char* name, const Tensor& x) {
    STD_TORCH_CHECK(x.dim() == 5, op, ": ", name, " has shape ", shape_text(sizes_of(x)),
                    ", not [tasks, batch, heads, rows, size]");
  };
  rank_of_five("q", q);
  rank_of_five("k", k);
  rank_of_five("v", v);
  const Shape shape{q.size(0), q.size(1), q.size(2), q.size(3), k.size(3), q.size(4), v.size(4)};
  const ScalarType dtype = q.scalar_type();
  check_tensor(op, "k", k, dtype, shape.like_k());
  check_tensor(op, "v", v, dtype, shape.like_v());
  check_optional(op, "mask", mask, dtype, {shape.tasks, shape.batch, shape.heads, shape.rows, shape.keys});
  STD_TORCH_CHECK(how.dropout >= 0 && how.dropout <= 1, op, ": dropout is ", how.dropout,
                  "; it must be a probability");
  STD_TORCH_CHECK(how.dropout == 0 || key, op, ": dropout is ", how.dropout, " and needs key");
  check_optional(op, "key", key, ScalarType::Long, {shape.tasks});
  return shape;
}

// What the derivatives are given besides.
inline void check_saved(const char* op, const Shape& shape, const Tensor& q, const Tensor& g, const Tensor& o,
                        const Tensor& lse) {
  check_tensor(op, "g", g, q.scalar_type(), shape.like_o());
  check_tensor(op, "o", o, q.scalar_type(), shape.like_o());
  check_tensor(op, "lse", lse, q.scalar_type(), shape.like_lse());
}

struct Head {
  int64_t task, batch, head;
  int64_t index;  // over all of them

  Head(const Shape& shape, int64_t index)
      : task(index / shape.heads / shape.batch),
        batch(index / shape.heads % shape.batch),
        head(index % shape.heads),
        index(index) {}
};

// One head's matrix: dense rows, `step` apart.
template <class S>
struct Matrix {
  S* data = nullptr;
  int64_t step = 0;

  S* row(int64_t i) const { return data + i * step; }
  Matrix from(int64_t i) const { return {row(i), step}; }
  explicit operator bool() const { return data != nullptr; }
};

// An input [T, B, H, rows, width] of any strides but the last; a missing optional one has no data.
template <class S>
struct Heads {
  Tensor tensor;  // keeps a copy alive
  const S* data = nullptr;
  int64_t task = 0, batch = 0, head = 0, step = 0;
  static constexpr S kNothing = 0;  // an input without elements is there all the same

  explicit Heads(const Tensor& x)
      : tensor(x.size(4) <= 1 || x.stride(4) == 1 ? x : in_order(x, kOrder)),
        data(tensor.numel() ? static_cast<const S*>(tensor.const_data_ptr()) : &kNothing),
        task(task_stride(tensor)),
        batch(tensor.stride(1)),
        head(tensor.stride(2)),
        step(tensor.stride(3)) {}
  explicit Heads(const OptionalTensor& x) {
    if (x) *this = Heads(*x);
  }

  Matrix<const S> at(const Head& i) const {
    if (!data) return {};
    return {data + i.task * task + i.batch * batch + i.head * head, step};
  }
};

// A result; one that was not asked for has no elements.
template <class S>
struct Results {
  S* data = nullptr;
  int64_t task = 0, batch = 0, head = 0, step = 0;

  explicit Results(const Tensor& x) {
    if (x.dim() != 5) return;
    data = output<S>(x);
    task = x.stride(0), batch = x.stride(1), head = x.stride(2), step = x.stride(3);
  }

  Matrix<S> at(const Head& i) const {
    if (!data) return {};
    return {data + i.task * task + i.batch * batch + i.head * head, step};
  }
};

// The call's inputs, and what belongs to a row of scores: the mask, what is seen of it, the dropout.
template <class S>
struct Call {
  Shape shape;
  How how;
  Heads<S> q, k, v;
  Tensor mask_tensor, key_tensor;
  const S* mask = nullptr;
  int64_t mask_strides[5] = {};
  const int64_t* key = nullptr;
  int64_t key_stride = 0;
  dropout::Rule<S> rule;

  Call(const Shape& shape, const How& how, const Tensor& q, const Tensor& k, const Tensor& v,
       const OptionalTensor& mask, const OptionalTensor& key)
      : shape(shape), how(how), q(q), k(k), v(v), rule(how.dropout) {
    if (mask) {
      mask_tensor = *mask;
      this->mask = static_cast<const S*>(mask->const_data_ptr());
      for (int64_t d = 0; d < 5; ++d) mask_strides[d] = mask->stride(d);
    }
    if (key && how.dropout > 0) {
      key_tensor = *key;
      this->key = static_cast<const int64_t*>(key->const_data_ptr());
      key_stride = key->stride(0);
    }
  }

  // How many of the n keys from `first` on a row sees.
  int64_t seen(int64_t row, int64_t first, int64_t n) const {
    return how.causal ? std::clamp<int64_t>(row + 1 - first, 0, n) : n;
  }

  // What is added to the scores of n keys; null for nothing. `room` may hold it.
  const S* bias(const Head& i, int64_t row, int64_t first, int64_t n, S* room) const {
    if (!mask) return nullptr;
    const int64_t* s = mask_strides;
    const S* from = mask + i.task * s[0] + i.batch * s[1] + i.head * s[2] + row * s[3] + first * s[4];
    if (s[4] == 1) return from;
    for (int64_t k = 0; k < n; ++k) room[k] = from[k * s[4]];
    return room;
  }

  // What the probabilities of n keys are multiplied by; null for nothing.
  const S* drop(const Head& i, int64_t row, int64_t first, int64_t n, S* room) const {
    if (!key) return nullptr;
    const uint32_t seed = dropout::mixed(static_cast<uint64_t>(key[i.task * key_stride]));
    const int64_t head = i.batch * shape.heads + i.head;
    dropout::fill(room, rule, seed, (head * shape.rows + row) * shape.keys + first, n);
    return room;
  }
};

}  // namespace fastmaml::attention
