// How the dense ops share work out: (task, part) units, few enough that a unit pays for its thread.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace fastmaml {

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
