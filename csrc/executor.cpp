// The module fastmaml._C: importing it registers the ops, and it runs Python code on all cores.
#include <pybind11/pybind11.h>

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>

namespace py = pybind11;

// Calls body(0), ..., body(count - 1), each on whichever of torch's threads is free. Operations that
// the body calls see that they are inside a parallel region and stay on their own thread.
static void parallel_region(const py::function& body, int64_t count) {
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex errors;
  auto work = [&](int64_t, int64_t) {
    py::gil_scoped_acquire gil;  // operations release it while they compute
    for (int64_t i = next++; i < count; i = next++) {
      try {
        body(i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(errors);
        if (!error) error = std::current_exception();
        next = count;
      }
    }
  };
  {
    py::gil_scoped_release release;
    torch::stable::parallel_for(0, torch::stable::get_num_threads(), 1, work);
  }
  if (error) std::rethrow_exception(error);
}

PYBIND11_MODULE(_C, module) {
  module.doc() = "fastmaml's native ops (torch.ops.fastmaml) and its parallel region.";
  module.def("parallel_region", &parallel_region, py::arg("body"), py::arg("count"));
}
