// How the kernels share work out to threads: elementwise and normalising ops by elements, the dense ops
// in (task, part) units.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace fastmaml {

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- by elements: results do not depend on how many threads there are ----

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

// ---- by units: few enough that a unit pays for its thread ----

// Below this many floating-point operations a second thread costs more than it brings.
constexpr double kWorthAThread = 1 << 20;

// Parts per task so that every thread has several units, when there are few tasks.
inline int64_t parts_per_task(int64_t tasks, int64_t most, double flops_per_task) {
  const int64_t threads = torch::stable::get_num_threads();
  if (threads == 1 || tasks == 0 || tasks >= 4 * threads) return 1;
  const int64_t wanted = (4 * threads + tasks - 1) / tasks;
  const auto paying = static_cast<int64_t>(flops_per_task / kWorthAThread) + 1;
  return std::max<int64_t>(1, std::min({wanted, most, paying}));
}

// f(unit) for every unit below count; each does about `flops`.
template <class F>
void for_each_unit(int64_t count, double flops, const F& f) {
  const auto grain = static_cast<int64_t>(kWorthAThread / std::max(flops, 1.0)) + 1;
  const auto units = [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) f(unit);
  };
  if (count <= grain) return units(0, count);
  torch::stable::parallel_for(0, count, grain, units);
}

}  // namespace fastmaml
