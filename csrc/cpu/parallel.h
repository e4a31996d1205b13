// Ways to spread work over threads whose results do not depend on how many there are.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace fastmaml {

// Below this many elements a second thread costs more than it brings.
constexpr int64_t kGrain = 32768;

// f(begin, end) over items that touch about `elements` elements each.
template <class F>
void parallel(int64_t items, int64_t elements, const F& f) {
  if (items <= 0) return;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements));
  if (items <= grain) return f(0, items);
  torch::stable::parallel_for(0, items, grain, f);
}

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// f(task, begin, end) over blocks of each task's elements, for elementwise work.
template <class F>
void parallel_elements(int64_t tasks, int64_t elements, const F& f) {
  constexpr int64_t kBlock = 16384;
  const int64_t blocks = divide_up(elements, kBlock);
  parallel(tasks * blocks, std::min(elements, kBlock), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = i % blocks * kBlock;
      f(i / blocks, from, std::min(elements, from + kBlock));
    }
  });
}

// A reduction over each task's blocks followed by a pass that uses it: part(t, b), then once
// combine(t), then apply(t, b). With many tasks a thread takes a task through all three while it is in
// its cache; with few, threads share a task. Either way each block's arithmetic is the same.
template <class Part, class Combine, class Apply>
void parallel_phases(int64_t tasks, int64_t blocks, int64_t elements, const Part& part,
                     const Combine& combine, const Apply& apply) {
  const bool whole = blocks == 1 || tasks >= static_cast<int64_t>(torch::stable::get_num_threads());
  if (whole) {
    parallel(tasks, blocks * elements, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t b = 0; b < blocks; ++b) part(t, b);
        combine(t);
        for (int64_t b = 0; b < blocks; ++b) apply(t, b);
      }
    });
    return;
  }
  const auto each = [&](const auto& f) {
    parallel(tasks * blocks, elements, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(i / blocks, i % blocks);
    });
  };
  each(part);
  for (int64_t t = 0; t < tasks; ++t) combine(t);
  each(apply);
}

}  // namespace fastmaml
