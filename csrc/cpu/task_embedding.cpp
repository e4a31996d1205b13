// Rows of each task's table by ids, and the transpose: sums of rows by ids.
#include "kernel_table.h"
#include "simd.h"
#include "views.h"
#include "work.h"

namespace fastmaml {
namespace {

// Ids [T, N], each a row of a table.
struct Ids {
  Tensor tensor;
  const int64_t* data;
  int64_t stride;

  Ids(const char* op, const Tensor& ids, int64_t tasks, int64_t rows)
      : tensor(task_contiguous(ids)),
        data(static_cast<const int64_t*>(tensor.const_data_ptr())),
        stride(task_stride(tensor)) {
    const int64_t count = ids.size(1);
    for (int64_t t = 0; t < (stride == 0 ? std::min<int64_t>(tasks, 1) : tasks); ++t)
      for (int64_t n = 0; n < count; ++n)
        STD_TORCH_CHECK(task(t)[n] >= 0 && task(t)[n] < rows, op, ": ids[", t, ", ", n, "] is ", task(t)[n],
                        ", which is no row: there are ", rows);
  }
  const int64_t* task(int64_t t) const { return data + t * stride; }
};

void check_table(const char* op, const char* name, const Tensor& x, const Tensor& ids, const char* rows) {
  check_floating(op, name, x);
  STD_TORCH_CHECK(x.dim() == 3, op, ": ", name, " has shape ", shape_text(sizes_of(x)), ", not [tasks, ",
                  rows, ", features]");
  STD_TORCH_CHECK(ids.dim() == 2, op, ": ids has shape ", shape_text(sizes_of(ids)),
                  ", not [tasks, examples]");
  check_tensor(op, "ids", ids, ScalarType::Long, {x.size(0), ids.size(1)});
}

Tensor task_embedding(const Tensor& w, const Tensor& ids) {
  const char* op = "task_embedding";
  check_table(op, "w", w, ids, "rows");
  const int64_t tasks = w.size(0), count = ids.size(1), features = w.size(2);
  const Ids chosen(op, ids, tasks, w.size(1));
  Tensor y = empty_dense({tasks, count, features}, shim_dtype(w));
  with_scalar(w, [&](auto zero) {
    using S = decltype(zero);
    const Input<S> table(w, {1, 2});
    S* out = output<S>(y);
    parallel(tasks * count, features, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t t = i / count, row = chosen.task(t)[i % count];
        std::copy_n(table.task(t) + row * features, features, out + i * features);
      }
    });
  });
  return y;
}

template <class S>
FM_CLONES void add(S* to, const S* from, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

// A task's features are cut into parts where there are few tasks: no two threads share a sum, and each
// adds in the order of the examples.
Tensor task_embedding_grad(const Tensor& g, const Tensor& ids, int64_t rows) {
  const char* op = "task_embedding_grad";
  check_table(op, "g", g, ids, "examples");
  const int64_t tasks = g.size(0), count = ids.size(1), features = g.size(2);
  STD_TORCH_CHECK(g.size(1) == count, op, ": g has ", g.size(1), " examples, ids has ", count);
  STD_TORCH_CHECK(rows >= 0, op, ": rows is ", rows, "; it must not be negative");
  const Ids chosen(op, ids, tasks, rows);
  Tensor gw = empty_dense({tasks, rows, features}, shim_dtype(g));
  with_scalar(g, [&](auto zero) {
    using S = decltype(zero);
    const Input<S> from(g, {1, 2});
    S* out = output<S>(gw);
    constexpr int64_t kPart = 256;
    const int64_t parts = divide_up(features, kPart);
    parallel_elements(tasks, rows * features, [&](int64_t t, int64_t begin, int64_t end) {
      std::fill_n(out + t * rows * features + begin, end - begin, S(0));
    });
    parallel(tasks * parts, count * std::min(features, kPart), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t t = i / parts, first = i % parts * kPart, width = std::min(kPart, features - first);
        S* table = out + t * rows * features + first;
        for (int64_t n = 0; n < count; ++n)
          add(table + chosen.task(t)[n] * features, from.task(t) + n * features + first, width);
      }
    });
  });
  return gw;
}

}  // namespace
}  // namespace fastmaml

STABLE_TORCH_LIBRARY_IMPL(fastmaml, CPU, m) {
  FM_CPU_KERNEL(m, task_embedding);
  FM_CPU_KERNEL(m, task_embedding_grad);
}
