// One block of memory for all that a program makes: where each value lies is decided once.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "../allocations.h"

namespace fastmaml::program {

class Program;

// For each step where its allocations go. Values whose times overlap do not overlap in memory; outputs,
// which are the caller's, lie elsewhere, as does what PyTorch's own operations make.
struct MemoryPlan {
  struct Step {
    std::vector<Place> places;                         // in the order of allocation
    std::vector<std::pair<int64_t, int64_t>> results;  // values, and the bytes before them
  };
  std::vector<Step> steps;
  int64_t bytes = 0;

  // made: for each step and allocation the number of the value that lies there, or -1.
  MemoryPlan(const Program& program, const std::vector<std::vector<int64_t>>& made);
};

// Memory for one run, from those that are left of others; it goes back there.
class Lease {
 public:
  explicit Lease(int64_t bytes);
  ~Lease();
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  AtenTensorHandle floats() const { return block_.floats.get(); }
  AtenTensorHandle doubles() const { return block_.doubles.get(); }

  // x, or a copy where it lies in this memory and not at `before`: it is another value's then.
  Tensor settled(Tensor x, int64_t before) const;

  struct Block {
    Tensor floats, doubles;  // the same memory
    int64_t bytes = 0;
  };

 private:
  Block block_;
};

// No program needs more: larger blocks go, those in use when they come back.
void keep_blocks_of(int64_t most_bytes);

// The bytes of all blocks that no run has now.
int64_t idle_blocks();

// Lets go of them; the next runs make theirs anew.
void drop_idle_blocks();

// What is freed in a heap's middle goes back to the system, where the C library can do that.
void trim_heap();

}  // namespace fastmaml::program
