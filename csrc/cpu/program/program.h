// A recorded meta-step as one object: its operations in order, called without Python.
//
// fastmaml/engine/recording/native.py makes programs, from recordings whose sizes, strides and dtypes
// are known. Numbers and order of operations are those of the Python replay.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "../kernel_table.h"
#include "../views.h"
#include "memory.h"
#include "pointwise.h"

namespace fastmaml::program {

// How a value lies in memory.
struct Geometry {
  Sizes size, stride;
  ScalarType dtype = ScalarType::Undefined;
  int64_t bytes = 0;  // of memory that reaches from the first element to the last
  int64_t owner = 0;  // the value in whose memory it lies, most often it itself
};

// A call of a kernel of our own, or of an operation of PyTorch's through its dispatcher.
struct Call {
  const Kernel* kernel = nullptr;
  std::string name, overload;  // where there is no kernel
  std::vector<Argument> arguments;
  std::vector<int64_t> results;  // numbers of values, -1 for those that nobody needs
  bool list = false;             // the results come as one list
  int64_t inside = 0;            // the most bytes that it has alive of what it makes, where it calls back
};

// Another look at the memory of a value.
struct View {
  int64_t source = 0, result = 0, offset = 0;
  Sizes size, stride;
};

struct Step {
  enum class Type { call, view, pointwise };
  Type type = Type::call;
  Call call;
  View view;
  Pointwise pointwise;
  std::vector<int64_t> over;  // values that nothing needs any more
};

class Program {
 public:
  std::vector<Geometry> values;
  std::vector<int64_t> inputs, outputs;
  std::vector<Step> steps;

  // The outputs, in memory that is the caller's. The first run looks at every value, all runs at the
  // inputs: pointwise steps rely on where their numbers lie. Later runs have one block of memory for
  // what they make.
  std::vector<Tensor> run(const std::vector<Tensor>& given);

  // The most bytes that a run has alive of what it made, after a step.
  int64_t peak() const;

  // The bytes of a run's block; -1 before the first run.
  int64_t memory() const;

 private:
  void one(const Step& step, Values& now) const;
  void run_first(Values& now);
  void run_planned(Values& now) const;

  std::mutex planning_;
  std::unique_ptr<const MemoryPlan> plan_;
  std::atomic<bool> planned_{false};  // plan_ is there, for good
};

// Keeps it, until it is dropped; returns its number.
int64_t keep(std::shared_ptr<Program> program);
std::shared_ptr<Program> find(int64_t number);
void drop(int64_t number);

}  // namespace fastmaml::program
