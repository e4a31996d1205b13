// The module fastmaml._C: importing it registers the ops, it runs Python code on all cores, and makes
// programs.
#include <pybind11/pybind11.h>

#include <dlfcn.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>

#include "program_bind.h"

namespace py = pybind11;

// While it lives, libraries that this thread calls count on one thread. A nested region gets no more
// than that, and some (oneDNN) wait for the threads that they were told of.
class OneThread {
 public:
  OneThread() {
    torch::stable::get_num_threads();  // torch sets the number once a thread, at the first question
    before_ = get_ ? get_() : 0;
    use(1);
  }
  ~OneThread() { use(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  static void use(int threads) {
    if (set_ && threads > 0) set_(threads);
  }
  // From the OpenMP runtime that torch has loaded, whichever it is; the setting is a thread's own.
  static inline const auto set_ =
      reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
  static inline const auto get_ =
      reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "omp_get_max_threads"));
  int before_;
};

// Calls body(0), ..., body(count - 1), each on whichever of torch's threads is free. Operations that
// the body calls see that they are inside a parallel region and stay on their own thread.
static void parallel_region(const py::function& body, int64_t count) {
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex errors;
  auto work = [&](int64_t, int64_t) {
    OneThread one;
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

// Calls body() on this thread, for work so small that a second one would only be waited for.
static void alone(const py::function& body) {
  OneThread one;
  body();
}

PYBIND11_MODULE(_C, module) {
  module.doc() = "fastmaml's native ops (torch.ops.fastmaml) and its parallel region.";
  module.def("alone", &alone, py::arg("body"));
  module.def("parallel_region", &parallel_region, py::arg("body"), py::arg("count"));
  fastmaml::program::bind(module);
}
