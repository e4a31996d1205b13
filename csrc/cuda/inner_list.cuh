// A list of parameters as one launch: the list travels in the kernel's arguments.
#pragma once

#include "device.cuh"

namespace fastmaml::cuda {

// 4 KiB of arguments is what every driver takes.
constexpr int kTensorsPerLaunch = 28;

struct InnerList {
  InnerTensor tensors[kTensorsPerLaunch];
  int count = 0;
};
static_assert(sizeof(InnerList) + 64 <= 4096, "the kernel's arguments are too large");

// Which tensor a job belongs to, found by bisection in the arguments, and which job of it it is.
struct InnerJob {
  int tensor;
  int64_t job;
};

FM_DEVICE InnerJob find_job(const InnerList& list, int64_t job) {
  int low = 0, high = list.count - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (job < list.tensors[middle].end) high = middle;
    else low = middle + 1;
  }
  return {low, low == 0 ? job : job - list.tensors[low - 1].end};
}

// Hands launch() pieces of the list, with jobs_of(tensor) jobs each.
template <class Jobs, class Launch>
void for_pieces(const InnerTensor* tensors, int64_t count, Jobs jobs_of, Launch launch) {
  for (int64_t first = 0; first < count; first += kTensorsPerLaunch) {
    InnerList list;
    int64_t end = 0;
    for (int64_t i = first; i < count && list.count < kTensorsPerLaunch; ++i) {
      const int64_t jobs = jobs_of(tensors[i]);
      if (jobs == 0) continue;  // an empty tensor
      list.tensors[list.count] = tensors[i];
      list.tensors[list.count++].end = end += jobs;
    }
    if (end > 0) launch(list, grid(end), end);
  }
}

}  // namespace fastmaml::cuda
